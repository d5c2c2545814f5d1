"""The engine: how a cell runs over time."""

from rnnjax.engine.auto import Auto
from rnnjax.engine.core.masking import StepMarks, Steps
from rnnjax.engine.core.method import Method
from rnnjax.engine.core.scan import Scan
from rnnjax.engine.functions import causal_convolution, linear_recurrence, matrix_memory
from rnnjax.engine.fused.method import Fused
from rnnjax.engine.pallas.method import Kernel
from rnnjax.engine.parallel.method import Parallel
from rnnjax.engine.unroll import Explanation, explain, unroll

__all__ = [
    "Auto",
    "Explanation",
    "Fused",
    "Kernel",
    "Method",
    "Parallel",
    "Scan",
    "StepMarks",
    "Steps",
    "causal_convolution",
    "explain",
    "linear_recurrence",
    "matrix_memory",
    "unroll",
]
