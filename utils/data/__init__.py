"""Data sets: lists, labels, images, augmentations, and the check before the first step."""
