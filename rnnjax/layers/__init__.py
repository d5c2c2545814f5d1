"""Layers: combinations of cells."""

from rnnjax.layers.stack import Stack

__all__ = ["Stack"]
