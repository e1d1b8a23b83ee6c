"""Masks from supports, finetuning to them (paper 4.6), and what is counted of them."""
