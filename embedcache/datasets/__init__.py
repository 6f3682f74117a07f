"""Datasets: images, targets, splits, read one sample at a time. One kind a file, found by folder."""
