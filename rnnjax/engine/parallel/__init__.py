"""Parallel in time: affine recurrences, chunks of matrix memories, and Newton's method."""
