"""The fast path: a minimal loop over time, and a hand-written backward pass."""
