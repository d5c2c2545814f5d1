"""The engine: how a cell runs over time."""

from rnnjax.engine.auto import Auto
from rnnjax.engine.convergence import Convergence, LayerConvergence, newton
from rnnjax.engine.explain import Explanation, explain
from rnnjax.engine.fused import Fused
from rnnjax.engine.iterations import Newton
from rnnjax.engine.kernel import Kernel
from rnnjax.engine.method import Method
from rnnjax.engine.parallel import Parallel
from rnnjax.engine.scan import Scan
from rnnjax.engine.unroll import unroll

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
    "newton",
    "unroll",
]
