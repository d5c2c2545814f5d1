"""A step of a trained cell or model as a file of C, for where no Python runs.

It needs no package, and no compiler.
"""

from rnnjax.interop.c.files import save

__all__ = ["save"]
