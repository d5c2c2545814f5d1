"""What the tests of ONNX share: small models, random arrays, and the reference of the format."""

import ast
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

TOLERANCE = 1e-5  # of the largest entry of each array
TIME, BATCH, FEATURES, HIDDEN = 5, 3, 2, 4
RNG = np.random.default_rng(0)
node = helper.make_node
# A test that compares with onnxruntime is skipped before it has done anything.
needs_runtime = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None,
    reason="onnxruntime is in the extra `parity`",
)


def normal(*shape: int) -> np.ndarray:
    return (0.6 * RNG.standard_normal(shape)).astype(np.float32)


def weights(gates: int, directions: int = 1, features: int = FEATURES) -> dict[str, np.ndarray]:
    return {
        "W": normal(directions, gates * HIDDEN, features),
        "R": normal(directions, gates * HIDDEN, HIDDEN),
        "B": normal(directions, 2 * gates * HIDDEN),
    }


def value(name: str, shape: Sequence[Any] | None = None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def nodes_of(text: str) -> list[Any]:
    """Nodes as ``Add x y > z; Softmax z > p axis=-1``, with ``_`` for what is left out."""
    made = []
    for one in text.split(";"):
        before, after = one.split(">")
        kind, *inputs = ("" if word == "_" else word for word in before.split())
        outputs = [word for word in after.split() if "=" not in word]
        more = (word.split("=") for word in after.split() if "=" in word)
        read = {name: ast.literal_eval(value) for name, value in more}
        made.append(node(kind, inputs, outputs, **read))
    return made


def graph_of(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[str], **arrays: Any
) -> Any:
    held = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    return helper.make_graph(list(nodes), "graph", list(inputs), [*map(value, outputs)], held)


def proto_of(*graph: Any, opset: int = 17, **arrays: Any) -> Any:
    """A model of nodes, inputs, the names of outputs, and initialisers."""
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph_of(*graph, **arrays), opset_imports=opsets, ir_version=8)


def by_reference(proto: Any, given: dict[str, Any]) -> dict[str, Any]:
    names = [output.name for output in proto.graph.output]
    return dict(zip(names, ReferenceEvaluator(proto).run(None, given), strict=True))


def session(proto: Any) -> Any:
    """Return a session of onnxruntime."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return runtime.InferenceSession(proto.SerializeToString(), options)
