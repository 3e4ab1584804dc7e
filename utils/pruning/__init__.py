"""Which channels die, and the smaller network that computes the same."""
