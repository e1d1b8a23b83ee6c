"""What is to be run, as data: studies and tables are read, checked and resolved into runs. Imports no torch."""
