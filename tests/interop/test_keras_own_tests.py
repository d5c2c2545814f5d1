"""The numbers in Keras's own tests of its recurrent layers, computed by rnnjax.

They ship inside the Keras wheel. Each test runs as it stands, with its expected numbers, but the
layers hand their weights and inputs to rnnjax, and return what rnnjax computes.
"""

import dataclasses
import functools
import importlib
import inspect
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import interop
from rnnjax.interop import keras as interop_keras

os.environ["KERAS_BACKEND"] = "jax"
keras = pytest.importorskip("keras", reason="keras is in the extra `test`")
assert keras.backend.backend() == "jax", "keras was imported with another backend before"

RECURRENT = ("SimpleRNN", "LSTM", "GRU", "RNN", "Bidirectional")
MODULES = (
    "simple_rnn_test",
    "lstm_test",
    "gru_test",
    "rnn_test",
    "stacked_rnn_cells_test",
    "bidirectional_test",
    "time_distributed_test",
)
NOT_APPLICABLE = {
    # Two layers of Keras are compared with each other; no number is expected.
    "bidirectional_test.test_fused_lstm_matches_unfused",
    "bidirectional_test.test_fused_gru_matches_unfused",
    # A wrapper written in the test itself, which changes its outputs by the mask.
    "time_distributed_test.test_masking",
}
# The convolutional layers' tests use padding="valid", which rnnjax.ConvLSTMCell has not.


class TwoStates(NamedTuple):
    hidden: jax.Array
    second: jax.Array


@dataclasses.dataclass(frozen=True)
class TwoStatesCell(rnnjax.Cell):
    """The cell of two states that Keras's tests define for themselves."""

    size: int

    @property
    def output_size(self) -> int:
        return self.size

    def init(self, key: jax.Array, input_size: int) -> Any:
        shapes = {"kernel": (input_size, self.size), "recurrent_1": (self.size, self.size)}
        return {name: jnp.ones(shape) for name, shape in shapes.items()} | {
            "recurrent_2": jnp.ones((self.size, self.size))
        }

    def initial_carry(self, batch_shape: Any = (), dtype: Any = None) -> TwoStates:
        zeros = jnp.zeros((*batch_shape, self.size), dtype)
        return TwoStates(zeros, zeros)

    def step(self, params: Any, carry: Any, x: Any) -> Any:
        h = x @ params["kernel"]
        first = h + carry.hidden @ params["recurrent_1"]
        second = h + carry.hidden @ params["recurrent_2"]
        return TwoStates(first, second), first + second


def own_cell(cell: Any) -> tuple[rnnjax.Cell, Any] | None:
    """The cells that Keras's tests define, as cells and parameters of rnnjax."""
    kind, weights = type(cell).__name__, [np.asarray(w) for w in cell.weights]
    if kind == "OneStateRNNCell":
        linear = rnnjax.SimpleRNNCell(cell.units, activation="linear", use_bias=False)
        return linear, dict(zip(("kernel", "recurrent_kernel"), weights, strict=True))
    if kind == "TwoStatesRNNCell":
        names = ("kernel", "recurrent_1", "recurrent_2")
        return TwoStatesCell(cell.units), dict(zip(names, weights, strict=True))
    if kind == "StackedRNNCells":
        found = [own for one in cell.cells if (own := own_cell(one)) is not None]
        if len(found) == len(cell.cells):
            cells, params = zip(*found, strict=True)
            return rnnjax.Stack(cells), params
    return None


def to_rnnjax(layer: Any) -> interop.Model:
    """By the loader, or by hand where the cell is one that only this test knows."""
    if type(layer).__name__ == "RNN" and (found := own_cell(layer.cell)):
        cell, params = found
        recurrent = interop.Recurrent(
            "rnn",
            cell,
            reverse=layer.go_backwards,
            keep_order=False,
            return_sequences=layer.return_sequences,
            masked_outputs="zero" if layer.zero_output_for_mask else "last",
        )
        return interop.Model(interop.Sequential((recurrent,)), {"rnn": params})
    return interop_keras.load(layer)


def computed_by_rnnjax(original: Any, calls: list[str]) -> Any:
    """In the place of ``original``, the method `call` of a recurrent layer of Keras."""

    @functools.wraps(original)  # Keras looks at the arguments that a layer's call takes
    def call(
        self: Any, sequences: Any, initial_state: Any = None, mask: Any = None, **more: Any
    ) -> Any:
        symbolic = isinstance(sequences, keras.KerasTensor | jax.core.Tracer)
        if symbolic or more.get("training"):
            return original(self, sequences, initial_state=initial_state, mask=mask, **more)
        bidirectional = isinstance(self, keras.layers.Bidirectional)
        model = to_rnnjax(self)
        (name,) = model.initial_carry()
        start = model.initial_carry((len(sequences),))[name]
        shape: Any = jax.tree.structure(start)
        inner = [self.forward_layer, self.backward_layer] if bidirectional else [self]
        kept = [state for one in inner for state in jax.tree.leaves(one.states or ())]
        if initial_state is not None:
            start = shape.unflatten([jnp.asarray(s) for s in jax.tree.leaves(initial_state)])
        elif self.stateful:
            start = shape.unflatten([state.value for state in kept])
        carry, ys = model.apply(
            model.params,
            np.swapaxes(np.asarray(sequences), 0, 1),
            {name: start},
            mask=None if mask is None else np.swapaxes(np.asarray(mask), 0, 1),
        )
        calls.append(name)
        states = jax.tree.leaves(carry)
        if self.stateful:
            for variable, value in zip(kept, states, strict=True):
                variable.assign(value)
        if self.return_sequences:
            ys = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), ys)
        outputs = tuple(ys) if isinstance(ys, rnnjax.Directions) else (ys,)
        if self.return_state:
            if not bidirectional and isinstance(self.cell, keras.layers.StackedRNNCells):
                # One state a cell, or a list of them.
                layers = [list(jax.tree.leaves(one)) for one in carry[name]]
                states = [one[0] if len(one) == 1 else one for one in layers]
            outputs = (*outputs, *states)
        return outputs[0] if len(outputs) == 1 else outputs

    return call


def distributed_by_rnnjax(calls: list[str]) -> Any:
    """In the place of the method `call` of ``TimeDistributed``."""

    def call(self: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        model = interop_keras.load(self)
        calls.append(self.name)
        return jnp.swapaxes(model(jnp.swapaxes(jnp.asarray(inputs), 0, 1))[1], 0, 1)

    return call


def cases() -> Iterator[Any]:
    for name in MODULES:
        module = importlib.import_module(f"keras.src.layers.rnn.{name}")
        for kind in vars(module).values():
            if not (inspect.isclass(kind) and kind.__module__ == module.__name__):
                continue
            for method in dir(kind):
                function = getattr(kind, method)
                if not method.startswith("test_") or not inspect.isfunction(function):
                    continue
                # A parametrised test is wrapped; its text is that of the function inside.
                text = inspect.getsource(inspect.unwrap(function))
                identity = f"{name}.{method}"
                if "assertAllClose" in text and identity not in NOT_APPLICABLE:
                    yield pytest.param(module, kind, method, id=identity)


@pytest.mark.parametrize(("module", "kind", "method"), list(cases()))
def test_keras_numbers(
    module: Any, kind: type, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in RECURRENT:
        layer = getattr(keras.layers, name)
        monkeypatch.setattr(layer, "call", computed_by_rnnjax(layer.call, calls))
    monkeypatch.setattr(keras.layers.TimeDistributed, "call", distributed_by_rnnjax(calls))
    case: Any = kind(method)
    case.setUp()
    try:
        getattr(case, method)()
    finally:
        case.tearDown()
    assert calls, "nothing of this test was computed by rnnjax"


def test_the_tests_are_there() -> None:
    """Keras ships them with some forty expectations; a wheel without them would test nothing."""
    assert len(list(cases())) >= 25
