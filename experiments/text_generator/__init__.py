"""A character-level language model: train it, let it write, evaluate it."""
