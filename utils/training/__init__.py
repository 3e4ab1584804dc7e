"""A training run: its steps, its files, its reports."""
