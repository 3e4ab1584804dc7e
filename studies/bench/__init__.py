"""The rows of benchmark.py, by what they measure."""
