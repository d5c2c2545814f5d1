"""Benchmarks: one question a script; see ``timing`` for how they are timed."""
