"""The engine: how a cell runs over time."""

from rnnjax.engine.auto import Auto
from rnnjax.engine.core.method import Method
from rnnjax.engine.core.scan import Scan
from rnnjax.engine.functions import linear_recurrence, matrix_memory
from rnnjax.engine.fused.method import Fused
from rnnjax.engine.pallas.method import Kernel
from rnnjax.engine.parallel.diagnostics import Convergence, LayerConvergence, newton
from rnnjax.engine.parallel.method import Parallel
from rnnjax.engine.parallel.newton import Newton
from rnnjax.engine.unroll import Explanation, explain, unroll

__all__ = [
    "Auto",
    "Convergence",
    "Explanation",
    "Fused",
    "Kernel",
    "LayerConvergence",
    "Method",
    "Newton",
    "Parallel",
    "Scan",
    "explain",
    "linear_recurrence",
    "matrix_memory",
    "newton",
    "unroll",
]
