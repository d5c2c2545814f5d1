"""What a trained model does while it reads a text: its states, its gates, what it expects."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from experiments.text_generator.blocks import Block
from experiments.text_generator.model import CharacterModel
from rnnjax.cells.activations import activate_gates
from rnnjax.cells.step import multiplied, update_input
from rnnjax.errors import InvalidInputError, NonFiniteError
from rnnjax.text.vocabulary import as_ids

CLOSED, OPEN = 0.1, 0.9
"""A gate below the first is left-saturated, and above the second right-saturated (Karpathy, Johnson
& Fei-Fei, 2016)."""

EXPECTED = 5
"""So many of the most probable next characters are kept."""

# So many characters are read in one dispatch, which bounds what waits on the device.
_PIECE = 1000

# The activated gates of a step in the order of the kernel's columns, and which of them let through:
# the others (g, n) are candidates, from -1 to 1.
_GATES: dict[type[rnnjax.Cell], tuple[str, str]] = {
    rnnjax.LSTMCell: ("ifgo", "ifo"),
    rnnjax.GRUCell: ("rzn", "rz"),
    rnnjax.MGUCell: ("fn", "f"),
}


class Group(NamedTuple):
    """Columns of the states that belong together: one field of the carry of one layer.

    Attributes:
        layer: counted from 0, at the input.
        kind: the name of the field: ``hidden``, or ``cell`` where the cell has one.
        size: units.
    """

    layer: int
    kind: str
    size: int


class Gate(NamedTuple):
    """The values of one gate.

    Attributes:
        layer: counted from 0.
        name: a letter, as in the equations of the cell.
        values: float16 ``(time, units)``, which is enough to tell 0.1 and 0.9.
    """

    layer: int
    name: str
    values: np.ndarray

    def saturation(self) -> np.ndarray:
        """The share of the time below 0.1 and above 0.9, of every unit: ``(units, 2)``.

        >>> Gate(0, "f", np.array([[0.95, 0.5], [0.99, 0.05]], np.float16)).saturation().tolist()
        [[0.0, 1.0], [0.5, 0.0]]
        """
        return np.stack(
            [(self.values < CLOSED).mean(axis=0), (self.values > OPEN).mean(axis=0)], axis=1
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """All that a model did while it read a text; entry ``t`` is after the character ``t``.

    Attributes:
        ids: of the text, ``(time,)``.
        groups: what the columns of the states are, from left to right.
        states: float32 ``(time, units)``, all units of all layers side by side.
        gates: of the layers whose cell tells its gates apart; perhaps none.
        expected: ids of the most probable next characters, most probable first, ``(time, 5)``, or
            fewer in a smaller vocabulary.
        probabilities: of these, float32.
        surprise: bits of the character ``t``, given those before it, float32 ``(time,)``; NaN for
            the first, which nothing predicts.
    """

    ids: np.ndarray
    groups: tuple[Group, ...]
    states: np.ndarray
    gates: tuple[Gate, ...]
    expected: np.ndarray
    probabilities: np.ndarray
    surprise: np.ndarray


def record(model: CharacterModel, params: Any, ids: np.ndarray) -> Recording:
    """Read a text once, character by character, and keep what happened.

    Args:
        model: predicts the next character.
        params: its parameters.
        ids: of the text, at least two.

    Raises:
        InvalidInputError: the text is too short, or ``ids`` are not integers in one dimension.
        NonFiniteError: a state or a probability is NaN or infinite.

    >>> from experiments.text_generator.config import Architecture
    >>> model = CharacterModel.build(Architecture(layers=2, hidden_size=3), 10)
    >>> recording = record(model, model.init(jax.random.key(0)), np.arange(8))
    >>> recording.states.shape, [f"{g.kind} {g.layer}" for g in recording.groups]
    ((8, 12), ['hidden 0', 'cell 0', 'hidden 1', 'cell 1'])
    >>> "".join(gate.name for gate in recording.gates), recording.expected.shape
    ('ifoifo', (8, 5))
    """
    ids = as_ids(ids)
    if len(ids) < 2:
        raise InvalidInputError(
            f"a text to look into needs at least 2 characters, but has {len(ids)}"
        )
    if any(isinstance(cell, Block) for cell in model.stack.cells):
        raise InvalidInputError(
            "what is looked into must have vectors of units as its state, but this model's blocks "
            "have matrices; take one of another --cell"
        )
    piece = min(_PIECE, len(ids))
    # Filled up to whole pieces, so that the loop is compiled once.
    padded = np.zeros(-(-len(ids) // piece) * piece + 1, np.int32)
    padded[: len(ids)] = ids
    carry, parts = model.initial_carry(1), []
    for begin in range(0, len(padded) - 1, piece):
        tokens, following = padded[begin : begin + piece], padded[begin + 1 : begin + piece + 1]
        carry, seen = _read(model, params, carry, tokens, following)
        parts.append(jax.tree.map(np.asarray, seen))
    seen = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(ids)], *parts)
    if not (np.isfinite(seen.states).all() and np.isfinite(seen.probabilities).all()):
        raise NonFiniteError(
            "the states and predictions of the model should be finite, but some are NaN or "
            "infinite; choose another checkpoint by --step"
        )
    names = [(layer, name) for layer, cell in enumerate(model.stack.cells) for name in _open(cell)]
    return Recording(
        ids=ids.astype(np.int32),
        groups=_groups(model),
        states=seen.states,
        gates=tuple(Gate(*name, v) for name, v in zip(names, seen.gates, strict=True)),
        expected=seen.expected,
        probabilities=seen.probabilities,
        surprise=np.concatenate([[np.nan], seen.next_bits[:-1]]).astype(np.float32),
    )


class _Seen(NamedTuple):
    states: Any
    gates: Any
    expected: Any
    probabilities: Any
    next_bits: Any


@functools.partial(jax.jit, static_argnums=0)
def _read(
    model: CharacterModel, params: Any, carry: Any, tokens: jax.Array, following: jax.Array
) -> tuple[Any, _Seen]:
    """Step the model over ``tokens (time,)``, each with the one after it."""

    def step(carry: Any, at: Any) -> tuple[Any, _Seen]:
        token, after = at
        gates: list[jax.Array] = []

        def one_layer(cell: Any, params: Any, xs: Any, carry: Any, **_: Any) -> Any:
            gates.extend(_gates(cell, params, xs, carry))
            return cell.step(params, carry, xs)

        # As `Stack.step` runs its layers, with a look at each before it.
        x = model.embed(params, token[None])
        carry, y = model.stack.unroll_layers(one_layer, params["stack"], x, carry, None)
        log_probabilities = jax.nn.log_softmax(model.predict(params, y)[0])
        top, expected = jax.lax.top_k(log_probabilities, min(EXPECTED, model.vocabulary_size))
        states = jnp.concatenate([leaf[0] for entry in carry for leaf in entry])
        bits = -log_probabilities[after] / jnp.log(2.0)
        return carry, _Seen(states, gates, expected, jnp.exp(top), bits)

    return jax.lax.scan(step, carry, (tokens, following))


def _single(cell: Any) -> Any:
    """The cell that computes: without the noise of training around it."""
    return cell.cell if isinstance(cell, rnnjax.Regularized) else cell


def _open(cell: Any) -> str:
    """The letters of the gates that the cell tells apart; none if its step is in one piece."""
    cell = _single(cell)
    return _GATES[type(cell)][1] if type(cell) in _GATES and cell.recurrent else ""


def _gates(cell: Any, params: Any, x: Any, carry: Any) -> list[jax.Array]:
    """The values of these gates in the step from ``carry``, each ``(units,)``."""
    names, cell = _open(cell), _single(cell)
    if not names:
        return []
    letters, _ = _GATES[type(cell)]
    given = update_input(cell, params, multiplied(cell, params, x, cell.dtype), carry)
    sums = given if cell.additive else sum(given)
    # Of a candidate that is more than the sum these are not the values, but it is no gate.
    values = activate_gates(sums, [cell.recurrent_activation] * len(letters))[0]
    split = dict(zip(letters, jnp.split(values, len(letters)), strict=True))
    return [split[name].astype(jnp.float16) for name in names]


def _groups(model: CharacterModel) -> tuple[Group, ...]:
    carry = jax.eval_shape(lambda: model.initial_carry(1))
    return tuple(
        Group(layer, kind, leaf.shape[-1])
        for layer, entry in enumerate(carry)
        for kind, leaf in entry._asdict().items()
    )
