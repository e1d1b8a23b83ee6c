"""What a network computes and holds, counted."""
