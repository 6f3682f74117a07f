"""Metrics, result records and reports: plain numpy and JSON, no torch."""
