"""The engine: how a cell runs over time."""

from rnnjax.engine.auto import Auto
from rnnjax.engine.explain import Explanation, explain
from rnnjax.engine.fused import Fused
from rnnjax.engine.method import Method
from rnnjax.engine.parallel import Parallel
from rnnjax.engine.scan import Scan
from rnnjax.engine.unroll import unroll

__all__ = ["Auto", "Explanation", "Fused", "Method", "Parallel", "Scan", "explain", "unroll"]
