"""Canaries and shadows: what they show, and what is decided of them."""
