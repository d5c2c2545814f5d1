"""Parallel in time: affine recurrences, and matrix memories by chunks."""
