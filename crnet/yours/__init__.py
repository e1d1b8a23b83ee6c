"""What you bring or take along: predictions made elsewhere, photos of your own, trained weights."""
