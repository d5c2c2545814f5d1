"""Parallel in time: affine recurrences, matrix memories in chunks, and Newton."""
