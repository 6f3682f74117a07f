"""Looks at images before the first forward pass: are they what the sensor gives and the backbone expects?"""
