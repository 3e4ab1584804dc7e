"""One idea a file: see the README for which."""
