"""A law of leaving: what a program computes elsewhere is what the model computes, state and all.

``step`` = ``unroll`` = C = ONNX = ``jax.export``, from drawn states, with the states that return. C
is that of a stream; what is written as text is compared in test_c.py.
"""

import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from cell_table import CELLS, grid
from interop_helpers import distance
from made_models import MODELS, inputs_of, model_of
from onnx_helpers import needs_runtime, session

from rnnjax import InteropError, InvalidInputError
from rnnjax.interop import Functional, Model, Recurrent, c, export, keras, onnx
from rnnjax.interop.model import Call, Input, Value

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*therefore destroy the mask information"),
]
MOST, STEPS, ROWS, FEATURES = 1e-5, 5, 2, 3
Result = tuple[list[Any], dict[str, Any]]
"""The outputs, and the states after the last step by name."""


def few(names: Any, *ordinary: str) -> list[Any]:
    """All names; an ordinary run takes a few."""
    return [pytest.param(n, marks=[] if n in ordinary else pytest.mark.slow) for n in names]


def listed(ys: Any) -> list[Any]:
    return [*ys] if isinstance(ys, tuple | list) else [ys]


def by_onnx(model: Model, xs: list[Any], carry: dict[str, Any]) -> Result:
    """What onnxruntime makes of a graph; its states have an axis of directions in front."""
    runner = session(onnx.to_proto(model))
    given = runner.get_inputs()
    wide = [x.astype(np.int64) if "int64" in i.type else x for x, i in zip(xs, given, strict=False)]
    ordered = OrderedDict((name, carry[name]) for name in model.network.stateful if name in carry)
    states, tree = jax.tree.flatten(ordered)
    arrays = [*wide, *(np.asarray(state)[None] for state in states)]
    made = runner.run(None, {i.name: array for i, array in zip(given, arrays, strict=True)})
    count = len(made) - len(states)
    return made[:count], dict(jax.tree.unflatten(tree, [state[0] for state in made[count:]]))


def by_export(model: Model, xs: list[Any], carry: dict[str, Any]) -> Result:
    """What a program makes that knows no model."""
    states, tree = jax.tree.flatten(carry)
    after, ys = export(model).call(states, xs[0] if len(xs) == 1 else tuple(xs))
    return listed(ys), jax.tree.unflatten(tree, after)


# Peepholes, a matrix, a rotation, layers, a window, a grid, and a state that is learned.
ORDINARY = (
    "peephole", "mlstm", "lru", "stack-nested", "temporal-conv", "convlstm-1d", "learned-carry",
)  # fmt: skip


@needs_runtime
@pytest.mark.parametrize("name", few(CELLS, *ORDINARY))
def test_cells(name: str, tmp_path: Path, random_like: Any) -> None:
    cell, space = CELLS[name], grid(name)
    params = random_like(lambda: cell.init(jax.random.key(0), FEATURES), 0)
    carry = random_like(lambda: {"rnn": cell.initial_carry((ROWS, *space))}, 1)
    xs = np.random.default_rng(2).standard_normal((STEPS, ROWS, *space, FEATURES), np.float32)
    # The input says how many features there are, where a kernel does not.
    given, call = Input("xs", (None, *space, FEATURES)), Call("rnn", "rnn", (Value("xs"),))
    network = Functional((given,), (Recurrent("rnn", cell),), (call,), (Value("rnn"),))
    model = Model(network, {"rnn": params})

    @jax.jit
    def both(carry: Any, xs: Any) -> Any:
        def step(carry: Any, x: Any) -> Any:
            return cell.step(params, carry, x)

        return jax.lax.scan(step, carry["rnn"], xs), model(xs, carry)

    (end, expected), (after, ys) = both(carry, xs)
    result: Result = [expected], {"rnn": end}
    assert distance(([ys], after), result) < MOST
    assert distance(by_onnx(model, [xs], carry), result) < MOST
    assert distance(by_export(model, [xs], carry), result) < MOST
    if shutil.which("cc"):
        stream = c.stream(cell, params, rows=ROWS, input_size=(*space, FEATURES))
        stream.carry = carry["rnn"]
        assert distance(([stream(xs)], {"rnn": stream.carry}), result) < MOST


# Whose steps follow from the steps before alone: C has these, and refuses the others.
FORWARD = (
    "normalised", "padded", "several_inputs", "several_outputs", "twins", "hard",
    "masked_branches", "stacked_cells", "lrcn",
)  # fmt: skip
BUILDS = {build.__name__: build for build in MODELS}


@needs_runtime
@pytest.mark.parametrize("name", few(BUILDS, "several_outputs", "translator_masked"))
def test_models(name: str, tmp_path: Path, random_like: Any) -> None:
    """With padded rows, and whole ones where steps come one by one."""
    theirs = model_of(BUILDS[name], pytest.importorskip("keras", reason="in the extra `parity`"))
    xs = inputs_of(theirs)
    theirs.save(tmp_path / "theirs.keras")
    model = keras.load(tmp_path / "theirs.keras", time_first=False)
    given = {call.name for call in getattr(model.network, "calls", ()) if call.states}
    carry = random_like(lambda: model.initial_carry((len(xs[0]),)), 1)
    carry = {name: state for name, state in carry.items() if name not in given}

    @jax.jit
    def run(carry: Any, xs: Any) -> Result:
        after, ys = model(xs[0] if len(xs) == 1 else tuple(xs), carry)
        return listed(ys), {name: after[name] for name in carry}

    result = run(carry, xs)
    assert distance(by_onnx(model, xs, carry), result) < MOST
    assert distance(by_export(model, xs, carry), result) < MOST
    if name not in FORWARD:
        with pytest.raises((InteropError, InvalidInputError)):
            c.save(model, tmp_path / "leaves.c")
        return
    xs = [np.where((x == 0) | (x == 0.5), 1, x).astype(x.dtype) for x in xs]
    series = [x.shape[1] > 3 for x in xs]
    count = min(x.shape[1] for x, one in zip(xs, series, strict=True) if one)
    xs = [x[:, :count] if one else x for x, one in zip(xs, series, strict=True)]
    (expected, end), state, each = run(carry, xs), carry, []
    for t in range(count):
        ys, state = run(
            state, [x[:, t : t + 1] if s else x for x, s in zip(xs, series, strict=True)]
        )
        each.append(ys)

    def together(ys: Any, i: int) -> Any:
        """All steps of an output, or the last of those that have no steps."""
        return np.concatenate(ys, 1) if expected[i].shape[1:2] == (count,) else ys[-1]

    ys = [together([step[i] for step in each], i) for i in range(len(expected))]
    assert distance((ys, state), (expected, end)) < MOST
    if shutil.which("cc"):
        stream, made = c.stream(model, rows=len(xs[0])), list[list[Any]]()
        stream.carry = carry
        for t in range(count):
            now = [x[:, t] if s else x for x, s in zip(xs, series, strict=True)]
            made.append(listed(stream(tuple(now) if len(now) > 1 else now[0])))
        sequences = [e.shape[1:2] == (count,) for e in expected]
        every = zip(sequences, zip(*made, strict=True), strict=True)
        ys = [np.stack(y, 1) if s else y[-1] for s, y in every]
        assert distance((ys, stream.carry), (expected, end)) < MOST
