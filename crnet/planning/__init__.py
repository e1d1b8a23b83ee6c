"""What a study would run, take and need, before anything is run."""
