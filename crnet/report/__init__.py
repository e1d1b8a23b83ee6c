"""What people read: tables, plots, sheets, made from stored counts and logs. Nothing here imports torch."""
