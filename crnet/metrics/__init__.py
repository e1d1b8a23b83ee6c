"""What is counted and how sure it is: intersections over unions, and intervals. Imports no torch."""
