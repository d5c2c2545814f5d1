"""A stateful LSTM that learns the alphabet one letter at a time."""
