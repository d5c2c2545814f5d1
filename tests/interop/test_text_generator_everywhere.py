"""One character model in Keras, PyTorch and onnxruntime: the same next characters everywhere."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from experiments.text_generator.config import Architecture
from experiments.text_generator.model import CharacterModel
from experiments.text_tools.export import to_interop
from rnnjax import LSTMCarry
from rnnjax.interop import Model
from rnnjax.interop import keras as our_keras
from rnnjax.interop import torch as our_torch
from rnnjax.interop.onnx.export import to_proto

keras = pytest.importorskip("keras", reason="keras is in the extra `test`")
torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `parity`")

# Logits of ids (time,) from a state, a list of (h, c) of all layers; and the state after them.
Run = Callable[[np.ndarray, Any], tuple[np.ndarray, Any]]


class Case(NamedTuple):
    """A character model, a state to begin with, and a text."""

    model: CharacterModel
    params: Any
    state: list[tuple[np.ndarray, np.ndarray]]
    ids: np.ndarray


def make_case(
    layers: int, hidden_size: int, vocabulary_size: int, steps: int, scale: float, seed: int
) -> Case:
    """Random weights of the size that training gives: logits have a standard deviation near 3.

    With kernels of the size that is drawn for training the state hardly moves, and a text that
    feeds on itself soon repeats one character; those here, and the seed, are such that it does not.
    """
    model = CharacterModel.build(
        Architecture(layers=layers, hidden_size=hidden_size), vocabulary_size
    )
    params = jax.device_get(jax.jit(model.init)(jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    stack = tuple(
        {
            "kernel": (10 if i else 20) * cell["kernel"],
            "recurrent_kernel": scale * cell["recurrent_kernel"],
            "bias": cell["bias"] + 0.3 * rng.standard_normal(cell["bias"].shape, np.float32),
        }
        for i, cell in enumerate(params["stack"])
    )
    params |= {"stack": stack}
    ids = rng.integers(0, vocabulary_size, steps)
    state = [
        tuple(0.5 * rng.standard_normal((2, 1, hidden_size), np.float32)) for _ in range(layers)
    ]
    carry = tuple(LSTMCarry(*both) for both in state)
    _, logits = jax.jit(model.unroll)(params, ids[:, None], carry)
    head = 3 / np.std(logits)
    bias = 0.3 * rng.standard_normal(params["bias"].shape, np.float32)
    params |= {"kernel": head * params["kernel"], "bias": bias}
    return Case(model, jax.device_put(params), state, ids)


# --- The same model in each framework ---


def in_rnnjax(case: Case) -> Run:
    run = jax.jit(case.model.unroll)

    def logits(ids: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        carry, ys = run(case.params, ids[:, None], tuple(LSTMCarry(*both) for both in state))
        return np.asarray(ys[:, 0]), carry

    return logits


def sequential(case: Case) -> Any:
    """What a user of Keras builds."""
    size, hidden = case.model.vocabulary_size, case.model.stack.output_size
    recurrent = [keras.layers.LSTM(hidden, return_sequences=True) for _ in case.state]
    return keras.Sequential([keras.Input((None, size)), *recurrent, keras.layers.Dense(size)])


def in_keras(case: Case, live: Any) -> Run:
    """The weights of a model in one whose states go in and out, run as the pure function it is."""
    size, hidden = case.model.vocabulary_size, case.model.stack.output_size
    xs = ys = keras.Input((None, size))
    before = [[keras.Input((hidden,)), keras.Input((hidden,))] for _ in case.state]
    after = []
    for both in before:
        layer = keras.layers.LSTM(hidden, return_sequences=True, return_state=True)
        ys, *states = layer(ys, initial_state=both)
        after.append(states)
    model = keras.Model([xs, before], [keras.layers.Dense(size)(ys), after])
    values = [weight.value for weight in live.weights]
    others = [variable.value for variable in model.non_trainable_variables]
    assert len(values) == 3 * len(case.state) + 2
    run = jax.jit(lambda xs, state: model.stateless_call(values, others, [xs, state])[0])

    def logits(ids: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        ys, after = run(np.eye(size, dtype=np.float32)[ids][None], [[*both] for both in state])
        return np.asarray(ys[0]), after

    return logits


def in_torch(case: Case, state_dict: dict[str, np.ndarray]) -> Run:
    size, hidden = case.model.vocabulary_size, case.model.stack.output_size
    module = torch.nn.Module()
    module.lstm = torch.nn.LSTM(size, hidden, num_layers=len(case.state))
    module.dense = torch.nn.Linear(hidden, size)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in state_dict.items()})

    def logits(ids: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        h, c = (np.stack([np.asarray(both[i]) for both in state]) for i in range(2))
        xs = torch.from_numpy(np.eye(size, dtype=np.float32)[ids][:, None])
        with torch.no_grad():
            ys, (h, c) = module.lstm(xs, (torch.from_numpy(h), torch.from_numpy(c)))
            ys = module.dense(ys)[:, 0].numpy()
        return ys, list(zip(h.numpy(), c.numpy(), strict=True))

    return logits


def in_onnxruntime(model: Model) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(to_proto(model).SerializeToString(), options)
    names = [value.name for value in session.get_inputs()[1:]]
    assert [value.name for value in session.get_outputs()[1:]] == [f"{n}_out" for n in names]

    def logits(ids: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        leaves = [np.asarray(leaf)[None] for both in state for leaf in both]
        feeds = {"ids": ids[:, None], **dict(zip(names, leaves, strict=True))}
        ys, *after = session.run(None, feeds)
        after = [leaf[0] for leaf in after]
        return ys[:, 0], list(zip(after[::2], after[1::2], strict=True))

    return logits


# --- What they predict ---


def write_greedily(run: Run, case: Case) -> list[int]:
    """Each most probable character is the next to be read; the state is carried."""
    state, ids = case.state, [int(case.ids[0])]
    for _ in case.ids:
        ys, state = run(np.array(ids[-1:]), state)
        ids.append(int(ys[0].argmax()))
    return ids[1:]


def read_in_pieces(run: Run, case: Case) -> np.ndarray:
    """The logits over the text, read in pieces of 100 between which the state is carried."""
    state, pieces = case.state, []
    for ids in np.split(case.ids, len(case.ids) // 100):
        ys, state = run(ids, state)
        pieces.append(ys)
    return np.concatenate(pieces)


def check_everywhere(case: Case, folder: Path) -> None:
    vocabulary_size = case.model.vocabulary_size
    ours = in_rnnjax(case)
    logits, text = read_in_pieces(ours, case), write_greedily(ours, case)
    assert 2.5 < logits.std() < 3.5
    assert len(set(text[-200:])) > 5  # a text that stands still would show nothing

    layers = to_interop(case.model, case.params)
    our_keras.save(layers, folder / "model.keras")
    loaded = keras.saving.load_model(folder / "model.keras")
    live = sequential(case)
    our_keras.save(layers, folder / "model.weights.h5")
    live.load_weights(folder / "model.weights.h5")
    for one, other in zip(loaded.weights, live.weights, strict=True):
        np.testing.assert_array_equal(one.value, other.value)
    stacked = to_interop(case.model, case.params, stacked=True)
    runs = {
        "keras": in_keras(case, live),
        "torch": in_torch(case, our_torch.to_state_dict(stacked)),
        "onnxruntime": in_onnxruntime(layers),
    }
    # The model that Keras reads itself too, which begins with zeros.
    begin, _ = ours(case.ids[:100], case.model.initial_carry(1))
    xs = np.eye(vocabulary_size, dtype=np.float32)[case.ids[:100]][None]
    (ys,) = jax.jit(lambda xs: loaded(xs))(xs)
    differences = {"keras_file": float(np.abs(ys - begin).max())}
    for name, run in runs.items():
        differences[name] = float(np.abs(read_in_pieces(run, case) - logits).max())
        assert write_greedily(run, case) == text, name
    print(differences, f"logits up to {np.abs(logits).max():.1f}, {len(set(text))} characters")
    assert max(differences.values()) < 1e-4


def test_a_small_model(tmp_path: Path) -> None:
    check_everywhere(make_case(2, 16, 20, 200, scale=2.0, seed=3), tmp_path)


@pytest.mark.slow
def test_three_layers_of_700(tmp_path: Path) -> None:
    check_everywhere(make_case(3, 700, 68, 1000, scale=1.0, seed=1), tmp_path)
