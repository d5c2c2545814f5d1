"""Parallel in time: affine recurrences in blocks, matrix memories in chunks, and Newton."""
