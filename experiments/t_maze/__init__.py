"""A recurrent policy that learns to remember, by reinforcement, in a T-maze."""
