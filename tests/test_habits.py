"""What people write first who come from Keras, PyTorch or Flax: the sentence names the answer."""

import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
from cell_table import blank

import rnnjax
from rnnjax import LSTMCell
from rnnjax.checks import HABITS, package
from rnnjax.training import TrainState, fit, save_params

CELL = LSTMCell(4)
PARAMS = blank(CELL, 3)
XS = np.zeros((5, 2, 3), np.float32)


def run(**more: Any) -> Any:
    return rnnjax.unroll(CELL, PARAMS, XS, **more)


def train(**more: Any) -> Any:
    return fit(lambda *_: 0.0, PARAMS, optax.sgd(0.1), XS, 1, key=jax.random.key(0), **more)


TRIES: dict[str, list[tuple[Callable[[], Any], str]]] = {
    "Keras": [
        (lambda: rnnjax.LSTM(50), "rnnjax.LSTMCell"),
        (lambda: LSTMCell(units=50), "hidden_size=50"),
        (lambda: LSTMCell(50, return_sequences=True), 'outputs="last"'),
        (lambda: LSTMCell(50, return_state=True), "carry, y = unroll"),
        (lambda: LSTMCell(50, stateful=True), "carry, ys = unroll(cell, params, xs, carry)"),
        (lambda: LSTMCell(50, dropout=0.2), "rnnjax.Regularized(cell, input_dropout=0.1)"),
        (lambda: LSTMCell(50, go_backwards=True), "reverse=True"),
        (lambda: LSTMCell(50, kernel_initializer="zeros"), "kernel_init"),
        (lambda: rnnjax.Bidirectional(CELL, merge_mode="sum"), "merge"),
        (lambda: rnnjax.Sequential([CELL]), "a function of params and xs"),
        (lambda: rnnjax.Dense(1), "ys @ kernel + bias"),
        (lambda: rnnjax.Embedding(10, 3), "table[ids]"),
        (lambda: rnnjax.Masking(), "mask=mask"),
        (lambda: rnnjax.Kernel(), "method=Auto()"),
        (lambda: run(initial_state=None), "unroll(cell, params, xs, carry)"),
        (lambda: run(return_sequences=False), 'outputs="last"'),
        (lambda: run(training=True), "key=key"),
        (lambda: run(time_major=True), "(time, batch, features)"),
        (lambda: CELL.compile("adam", "mse"), "rnnjax.training.fit"),
        (lambda: CELL.fit(XS, XS), "rnnjax.training.fit"),
        (lambda: CELL.predict(XS), "rnnjax.unroll(cell, params, xs)"),
        (lambda: CELL.summary(), "jax.tree.map(np.shape, params)"),
        (lambda: train(batch_size=32), "rnnjax.training.minibatches"),
        (lambda: train(validation_data=(XS, XS)), "evaluate=valid"),
        (lambda: train(validation_split=0.2), "batches.split(0.2)"),
        (lambda: train(callbacks=[]), "hooks=[EarlyStopping(5)"),
        (lambda: train(verbose=0), "Silent()"),
        (lambda: rnnjax.EarlyStopping(5), "rnnjax.training.EarlyStopping"),
        (lambda: rnnjax.training.ModelCheckpoint("run"), 'run_dir="runs/first"'),
        (lambda: LSTMCell(8, implementation=2), "unroll(..., method=m)"),
        (lambda: LSTMCell(8, input_shape=(5, 3)), "cell.init(key, input_size)"),
        (lambda: LSTMCell(8, name="encoder"), 'params = {"encoder": params}'),
        (lambda: CELL.get_weights(), "params"),
        (lambda: rnnjax.TimeDistributed(CELL), "ys @ kernel + bias"),
        (lambda: rnnjax.load_model("lstm.keras"), "rnnjax.interop.load(path)"),
        (lambda: rnnjax.pad_sequences([[1, 2]]), "rnnjax.pad(rows)"),
        (lambda: CELL.step(PARAMS, XS[0], CELL.initial_carry((2,))), "step(params, carry, x)"),
    ],
    "PyTorch": [
        (lambda: LSTMCell(3, 8), "the size of the inputs is given to init"),
        (lambda: rnnjax.training.DataLoader(XS), "rnnjax.training.minibatches"),
        (lambda: LSTMCell(input_size=3, hidden_size=8), "cell.init(key, input_size)"),
        (lambda: LSTMCell(8, num_layers=2), "rnnjax.Stack([cell, cell])"),
        (lambda: LSTMCell(8, batch_first=True), "xs.swapaxes(0, 1)"),
        (lambda: LSTMCell(8, bidirectional=True), "rnnjax.Bidirectional(cell)"),
        (lambda: LSTMCell(8, dropout=0.1), "rnnjax.Stack(cells, dropout=rnnjax.Dropout(0.1))"),
        (lambda: LSTMCell(8, bias=False), "use_bias"),
        (lambda: CELL(XS), "rnnjax.unroll(cell, params, xs)"),
        (lambda: CELL.state_dict(), "rnnjax.training.save_params"),
        (lambda: CELL.load_state_dict({}), "load_params"),
        (lambda: rnnjax.nn.LSTM(3, 8), "a function of params and xs"),
        (lambda: run(enforce_sorted=False), "lengths=lengths"),
        (lambda: rnnjax.pack_padded_sequence(XS, [5, 2]), "unroll(..., lengths=lengths)"),
        (lambda: CELL.to("cuda"), "jax.device_put(params, device)"),
        (lambda: CELL.eval(), "no key to predict"),
        (lambda: rnnjax.Adam(1e-3), "optax.adam(1e-3)"),
        (lambda: rnnjax.save(PARAMS, "lstm.pt"), "rnnjax.training.save_params(path, params)"),
        (lambda: train(lr=1e-3), "optax.adam(1e-3)"),
        (lambda: save_params(PARAMS, "lstm.safetensors"), "save_params(path, params)"),
    ],
    "Flax": [
        (lambda: LSTMCell(features=8), "hidden_size"),
        (lambda: LSTMCell(3, 8, rngs=None), "init"),
        (lambda: LSTMCell(in_features=3, hidden_size=8), "cell.init(key, input_size)"),
        (lambda: rnnjax.RNN(CELL), "rnnjax.linen.RNN(cell)"),
        (lambda: rnnjax.nnx.RNN(CELL), "RNN(cell, in_features, rngs=nnx.Rngs(0))"),
        (lambda: CELL.apply(PARAMS, XS), "rnnjax.unroll(cell, params, xs)"),
        (lambda: CELL.initialize_carry(jax.random.key(0), (2, 3)), "cell.initial_carry"),
        (lambda: CELL.num_feature_axes, "rnnjax.linen.RNN"),
        (lambda: CELL.init(jax.random.key(0), XS), "cell.init(key, input_size)"),
        (lambda: run(seq_lengths=[5, 2]), "lengths=lengths"),
        (lambda: run(initial_carry=None), "unroll(cell, params, xs, carry)"),
        (lambda: TrainState.create(apply_fn=None, params=PARAMS, tx=None), "optimizer, key=key"),
        (lambda: rnnjax.Module(), "a module of rnnjax.linen"),
        (lambda: train(seed=0), "key=jax.random.key(0)"),
        (lambda: train(num_epochs=20), "epochs=20"),
        (lambda: rnnjax.scan(CELL, XS), "rnnjax.unroll"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("tried", "answer"),
    [pytest.param(*one, id=f"{home}-{i}") for home in TRIES for i, one in enumerate(TRIES[home])],
)
def test_a_first_try_ends_in_a_sentence_that_names_the_answer(tried: Any, answer: str) -> None:
    with pytest.raises((rnnjax.InvalidInputError, AttributeError, TypeError)) as error:
        tried()
    said = str(error.value)
    assert answer in said
    assert len(said) < 300
    assert "\n" not in said


def test_no_word_that_is_advised_on_is_ours() -> None:
    """But for a method of cells, which is refused as a keyword of `unroll` alone."""
    assert {*dir(CELL), *rnnjax.__all__}.intersection(HABITS) == {"initial_carry"}


def test_a_property_of_a_cell_raises_what_it_raised() -> None:
    class Broken(LSTMCell):
        carry_shapes = property(lambda self: self.no_such_field)

    with pytest.raises(AttributeError, match="'Broken' object has no attribute 'no_such_field'"):
        Broken(4).initial_carry()


@pytest.mark.parametrize("name", ["rnnjax", "rnn-for-jax", None])
def test_a_missing_package_is_installed_by_the_name_that_we_are_installed_by(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index may know the library by another name than it is imported by."""
    found = {"rnnjax": [name]} if name else {}
    monkeypatch.setattr("rnnjax.checks.packages_distributions", lambda: found)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(rnnjax.InteropError, match=rf"pip install '{name or 'rnnjax'}\[onnx\]'$"):
        package("onnx", "ONNX models", "onnx")
