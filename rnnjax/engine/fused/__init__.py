"""The fast path: a loop of what cannot be computed before it, and a gradient scheduled by hand."""
