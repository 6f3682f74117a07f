"""Looks at images before the first forward pass: whether they are what the sensor gives and the backbone expects."""
