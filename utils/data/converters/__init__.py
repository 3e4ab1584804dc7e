"""Converters: a reader for each format of data sets, and one writer of the format that the programs read.

A reader (oxford, voc, coco) returns :class:`~utils.data.converters.samples.DataSet`: the class names, and for each
split its samples. Whatever a reader leaves out on purpose it notes in the sample, and the report counts it.
"""
