"""Episodic training (paper 3): where episodes come from, the optimiser, the loop that survives a kill."""
