"""The engine: how a cell runs over time."""

from rnnjax.engine.auto import Auto as Auto
from rnnjax.engine.core.masking import StepMarks as StepMarks
from rnnjax.engine.core.masking import Steps as Steps
from rnnjax.engine.core.method import Method as Method
from rnnjax.engine.core.scan import Scan as Scan
from rnnjax.engine.functions import causal_convolution as causal_convolution
from rnnjax.engine.functions import linear_recurrence as linear_recurrence
from rnnjax.engine.functions import matrix_memory as matrix_memory
from rnnjax.engine.fused.method import Fused as Fused
from rnnjax.engine.parallel.method import Parallel as Parallel
from rnnjax.engine.unroll import Explanation as Explanation
from rnnjax.engine.unroll import explain as explain
from rnnjax.engine.unroll import unroll as unroll
