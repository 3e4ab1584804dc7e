"""Darknet's files: cfg text, its keys, the layers that it asks for, and .weights files."""
