"""Data sets: configuration, lists, labels, images, augmentations, batches, the data check, and converters."""
