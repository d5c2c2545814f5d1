"""What people write first who come from Keras, PyTorch or Flax: the sentence names the answer."""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from cell_table import blank

import rnnjax
from rnnjax import LSTMCell
from rnnjax.checks import answer, package
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
        (lambda: LSTMCell(50, return_state=True), "the carry is always returned"),
        (lambda: LSTMCell(50, stateful=True), "carry, ys = unroll(cell, params, xs, carry)"),
        (lambda: LSTMCell(50, dropout=0.2), "Regularized(LSTMCell(50), input_dropout=0.1"),
        (lambda: LSTMCell(50, recurrent_dropout=0.2), "Regularized(LSTMCell(50)"),
        (lambda: LSTMCell(50, go_backwards=True), "reverse=True"),
        (lambda: LSTMCell(50, kernel_initializer="zeros"), "kernel_init"),
        (lambda: rnnjax.Bidirectional(CELL, merge_mode="sum"), "merge"),
        (lambda: rnnjax.Sequential([CELL]), "a function of params and xs"),
        (lambda: rnnjax.Dense(1), "ys @ kernel + bias"),
        (lambda: rnnjax.Embedding(10, 3), "table[ids]"),
        (lambda: rnnjax.Masking(), "mask=mask"),
        (lambda: run(initial_state=None), "unroll(cell, params, xs, carry)"),
        (lambda: run(return_sequences=False), 'outputs="last"'),
        (lambda: run(training=True), "key=key"),
        (lambda: run(time_major=True), "(time, batch, features)"),
        (lambda: CELL.compile("adam", "mse"), "fit(loss, params, optimizer"),
        (lambda: CELL.fit(XS, XS), "fit(loss, params, optimizer"),
        (lambda: CELL.predict(XS), "jax.jit(apply)(result.params, xs)"),
        (lambda: rnnjax.Model(XS, XS), "a function of params and xs"),
        (lambda: CELL.summary(), "jax.tree.map(jnp.shape, params)"),
        (lambda: train(batch_size=32), "minibatches({"),
        (lambda: train(validation_data=(XS, XS)), "evaluate=valid"),
        (lambda: train(validation_split=0.2), ".split(0.2)"),
        (lambda: train(callbacks=[]), "hooks=[EarlyStopping(5)"),
        (lambda: train(verbose=0), "Silent()"),
        (lambda: rnnjax.EarlyStopping(5), "rnnjax.training.EarlyStopping"),
        (lambda: rnnjax.training.ModelCheckpoint("run"), 'run_dir="run"'),
        (lambda: LSTMCell(8, implementation=2), "method=Auto()"),
        (lambda: LSTMCell(8, input_shape=(5, 3)), "cell.init(key, input_size=3)"),
        (lambda: LSTMCell(8, name="encoder"), '{"encoder": cell.init(key, 3)}'),
        (lambda: CELL.get_weights(), "params"),
        (lambda: rnnjax.TimeDistributed(CELL), "ys @ kernel + bias"),
        (lambda: rnnjax.load_model("lstm.keras"), 'rnnjax.interop.load("lstm.keras")'),
        (lambda: rnnjax.pad_sequences([[1, 2]]), "pad(rows)"),
        (lambda: train(metrics=["accuracy"]), "returned with the loss"),
        (lambda: train(class_weight={0: 1}), "class_weight[labels]"),
        (lambda: rnnjax.training.EarlyStopping(5, restore_best_weights=True), "result.params"),
        (lambda: rnnjax.layers.LSTM(3), "LSTMCell(50)"),
        (lambda: CELL.weights, "cell.init(key, input_size=3) returns"),
        (lambda: CELL.step(PARAMS, XS[0], CELL.initial_carry((2,))), "step(params, carry, x)"),
    ],
    "PyTorch": [
        (lambda: LSTMCell(3, 8), "the size of the inputs is given to init"),
        (lambda: rnnjax.training.DataLoader(XS), "rnnjax.training.minibatches"),
        (lambda: LSTMCell(input_size=3, hidden_size=8), "cell.init(key, input_size=3)"),
        (lambda: LSTMCell(8, num_layers=2), "Stack([LSTMCell(8)] * 2"),
        (lambda: LSTMCell(8, batch_first=True), "xs.swapaxes(0, 1)"),
        (lambda: LSTMCell(8, bidirectional=True), "rnnjax.Bidirectional(LSTMCell(8))"),
        (lambda: LSTMCell(8, dropout=0.1), "dropout=Dropout(0.3))"),
        (lambda: LSTMCell(8, bias=False), "use_bias"),
        (lambda: CELL(XS), "in rnnjax: unroll(cell, params, xs)"),
        (lambda: CELL.forward(XS), "unroll(cell, params, xs, carry)"),
        (lambda: CELL.state_dict(), "rnnjax.training.save_params"),
        (lambda: CELL.load_state_dict({}), "load_params"),
        (lambda: rnnjax.nn.LSTM(3, 8), "a function of params and xs"),
        (lambda: run(enforce_sorted=False), "lengths=lengths"),
        (lambda: rnnjax.pack_padded_sequence(XS, [5, 2]), "unroll(..., lengths=lengths)"),
        (lambda: CELL.to("cuda"), "jax.device_put(params, device)"),
        (lambda: CELL.eval(), "one without draws none"),
        (lambda: rnnjax.Linear(8, 2), "ys @ kernel + bias"),
        (lambda: rnnjax.Adam(1e-3), "optax.adam(1e-3)"),
        (lambda: rnnjax.save(PARAMS, "lstm.pt"), "rnnjax.training.save_params(path, params)"),
        (lambda: run(hx=None), "unroll(cell, params, xs, carry)"),
        (lambda: CELL.named_parameters(), 'params["kernel"]'),
        (lambda: rnnjax.training.minibatches(XS, 2, axis=1, drop_last=True), "leaves the rest out"),
        (lambda: rnnjax.Dropout(p=0.1), "Dropout(0.1)"),
        (lambda: train(lr=1e-3), "optax.adam(1e-3)"),
        (lambda: save_params(PARAMS, "lstm.safetensors"), "save_params(path, params)"),
    ],
    "Flax": [
        (lambda: LSTMCell(features=8), "hidden_size"),
        (lambda: LSTMCell(3, 8, rngs=None), "init"),
        (lambda: LSTMCell(in_features=3, hidden_size=8), "cell.init(key, input_size=3)"),
        (lambda: rnnjax.RNN(CELL), "rnnjax.linen.RNN(cell)"),
        (lambda: rnnjax.nnx.RNN(CELL), "RNN(cell, in_features, rngs=nnx.Rngs(0))"),
        (lambda: CELL.apply(PARAMS, XS), "unroll(cell, params, xs)"),
        (lambda: CELL.initialize_carry(jax.random.key(0), (2, 3)), "cell.initial_carry"),
        (lambda: CELL.num_feature_axes, "rnnjax.linen.RNN"),
        (lambda: CELL.init(jax.random.key(0), XS), "cell.init(key, input_size)"),
        (lambda: run(seq_lengths=[5, 2]), "lengths=lengths"),
        (lambda: run(initial_carry=None), "unroll(cell, params, xs, carry)"),
        (lambda: TrainState.create(apply_fn=None, params=PARAMS, tx=None), "optimizer, key=key"),
        (lambda: train(tx=None), "the third argument"),
        (lambda: train(rngs=None), "key=jax.random.key(0)"),
        (lambda: rnnjax.Module(), "a module of rnnjax.linen"),
        (lambda: train(seed=0), "key=jax.random.key(0)"),
        (lambda: train(num_epochs=20), "epochs=20"),
        (lambda: rnnjax.scan(CELL, XS), "unroll(cell, params, xs)"),
    ],
    "Haiku": [
        (lambda: CELL.initial_state(2), "cell.initial_carry((8,))"),
        (lambda: rnnjax.unroll(CELL, PARAMS, (XS, XS[..., 0] > 0)), "resets=xs"),
        (lambda: rnnjax.DeepRNN([CELL]), "Stack([...])"),
    ],
    "darts": [(lambda: rnnjax.RNNModel("LSTM"), "docs/from/darts.md")],
    "sktime": [(lambda: rnnjax.GRUClassifier(), "docs/from/sktime.md")],
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
    assert len(said) < 400
    assert "\n" not in said


FROM = Path(__file__).parents[1] / "docs/from"
# What stands on the left of a table, and is nothing that one types here.
UNASKED = {
    "(h, c)": "a carry, which `unroll` compares with the cell's",
    "(layers, batch, units)": "axes",
    "(xs, should_reset)": "inputs, of which `unroll` says that resets are an argument",
    "h[:, done] = 0": "an assignment",
    "obs[np.newaxis]": "an index",
    "last_done[np.newaxis]": "an index",
}


def words_of_the_pages() -> dict[str, dict[str, bool]]:
    """The words in the left columns of the tables of ``docs/from``, and which are keywords."""
    found: dict[str, dict[str, bool]] = {}
    for path in FROM.glob("*.md"):
        for line in path.read_text("utf-8").splitlines():
            left, *rest = line.split(" | ")
            for code in re.findall("`(.+?)`", left) if left.startswith("| ") and rest else ():
                called = re.findall(r"(\w+)[(=]|^[\w.]*?(\w+)$", code.replace(" = ", " "))
                assert called or code in UNASKED, f"{path.name}: {code}"
                for word in map("".join, called):
                    keyword = (word == code and "**" not in left) or bool(
                        re.search(rf"\b{word}=(?!=)", code)
                    )
                    words = found.setdefault(path.stem, {})
                    words[word] = words.get(word, False) or keyword
    return found


WORDS = words_of_the_pages()


@pytest.mark.parametrize("page", sorted(WORDS))
def test_each_word_of_a_page_is_answered_where_it_is_typed(page: str) -> None:
    """As a name of the package or a cell, and as a keyword of a cell, `unroll` and `fit`."""
    takes = {**inspect.signature(fit).parameters, **inspect.signature(rnnjax.unroll).parameters}
    ours = {*dir(rnnjax), *dir(rnnjax.training), *dir(CELL), *takes}
    for word in WORDS[page].keys() - ours:
        names = [lambda word=word: getattr(rnnjax, word), lambda word=word: getattr(CELL, word)]
        keywords = [lambda word=word, f=f: f(**{word: None}) for f in (LSTMCell, run, train)]
        for typed in names + keywords * WORDS[page][word]:
            with pytest.raises((rnnjax.InvalidInputError, AttributeError)) as error:
                typed()
            assert "; in rnnjax: " in str(error.value) or "; write rnnjax." in str(error.value)


@pytest.mark.parametrize(
    "typed",
    [
        lambda: rnnjax.Perceptron,
        lambda: rnnjax.training.Perceptron,
        lambda: rnnjax.layers.Perceptron,
        lambda: CELL.perceptron,
        lambda: LSTMCell(4, perceptron=1),
        lambda: run(perceptron=1),
        lambda: train(perceptron=1),
        lambda: rnnjax.training.minibatches(XS, 2, axis=1, perceptron=1),
        lambda: rnnjax.training.EarlyStopping(5, perceptron=1),
        lambda: rnnjax.Dropout(0.1, perceptron=1),
        lambda: rnnjax.training.minibatches(XS, 2),
        lambda: CELL.init(jax.random.key(0)),
    ],
)
def test_a_word_that_no_page_has_ends_with_where_the_words_are(typed: Callable[[], Any]) -> None:
    with pytest.raises((rnnjax.InvalidInputError, AttributeError), match=r"stand in docs/from$"):
        typed()


def test_a_word_has_the_answer_of_the_place_where_it_is_typed() -> None:
    assert "third argument" in answer("tx", "fit")
    assert "TrainState.create(params" in answer("tx", "create")
    assert "jax.random.key(0)" in answer("rngs", "fit")
    assert "in training alone" in answer("rngs", "unroll")
    assert "initial_carry((8,))" in answer("initial_state")
    assert "unroll(cell, params, xs, carry)" in answer("initial_state", "unroll")


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
