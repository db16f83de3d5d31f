"""Measurements: each prints a table with ratios and can be written as JSON. No test asserts a time."""
