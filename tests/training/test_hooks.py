"""Hooks of `fit`: each decides from the history, so that a run that was killed goes on exactly."""

import csv
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnjax import InvalidInputError
from rnnjax.training import (
    Checkpoints,
    CSVLog,
    EarlyStopping,
    Hook,
    ReduceOnPlateau,
    RunFolder,
    Silent,
    TensorBoard,
    TrainState,
    fit,
)

POINTS = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (4, 1))
SGD = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)


def line(params, batch, key):
    return jnp.mean((params["w"] * batch - 3 * batch) ** 2)


def train(epochs=3, folder=None, hooks=(), optimizer=SGD, **options):
    options = {"key": jax.random.key(0), "run_dir": folder, **options}
    return fit(line, {"w": jnp.zeros(())}, optimizer, POINTS, epochs,
               hooks=[Silent(), *hooks], **options)  # fmt: skip


def scores(name, *values):
    """Measures of one epoch after the other."""
    left = list(values)
    return lambda params: {"validation_loss": 0.0} | {name: left.pop(0)}


@pytest.mark.parametrize(
    ("options", "values", "epochs"),
    [
        ({"patience": 2, "min_delta": 0.1}, (3.0, 2.0, 1.95, 1.91, 1.0), 4),
        ({"patience": 2, "min_delta": 0.01}, (3.0, 2.0, 1.95, 1.91, 1.0), 8),
        ({"patience": 1, "mode": "max"}, (0.1, 0.4, 0.4, 0.9), 3),
        ({"patience": 2, "mode": "max"}, (0.1, float("nan"), 0.05, 0.9), 3),
        ({"patience": 1}, (float("nan"), float("nan"), 0.0), 2),
        ({"patience": 3}, (3.0, 4.0, 4.0, 2.0, 2.5, 2.0, 2.0), 7),
    ],
)
def test_early_stopping_waits_for_an_improvement(options, values, epochs):
    hook = EarlyStopping(monitor="validation_score", **options)
    result = train(9, hooks=[hook], evaluate=scores("validation_score", *values, *[0.0] * 9))
    assert (len(result.history), result.finished) == (epochs, True)


def test_a_longer_patience_goes_on_and_the_same_call_does_nothing(tmp_path):
    def measured(params):
        return {"validation_loss": abs(float(params["w"]) - 1.0)}  # grows again on the way to 3

    first = train(50, tmp_path, [EarlyStopping(1)], evaluate=measured)
    again = train(50, tmp_path, [EarlyStopping(1)], evaluate=None)
    assert 1 < len(first.history) == len(again.history) < 50
    more = train(50, tmp_path, [EarlyStopping(3)], evaluate=measured)
    assert len(more.history) == len(first.history) + 2
    assert more.best == first.best
    np.testing.assert_array_equal(more.params["w"], first.params["w"])


def test_a_function_ends_the_run_for_good(tmp_path):
    seen = []

    def enough(state, summary):
        seen.append((int(state.step), summary["epoch"]))
        return np.bool_(summary["epoch"] == 2)

    for _ in range(2):
        result = train(5, tmp_path, [enough])
        assert (len(result.history), result.finished) == (2, True)
    assert seen == [(4, 1), (8, 2)]
    # Without it, or with one that does not say so, it goes on.
    assert len(train(5, tmp_path).history) == 5


class Fails(Hook):
    """Kills the run in an epoch, before it is saved."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch(self, state, summary):
        if summary["epoch"] == self.epoch:
            raise RuntimeError("an accident")


def rates(folder):
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    like = TrainState.create({"w": jnp.zeros(())}, SGD, key=jax.random.key(0))
    found = [checkpoints.at(step).restore(like) for step in checkpoints.steps()]
    return [round(float(s.opt_state.hyperparams["learning_rate"]), 6) for s in found]


@pytest.mark.parametrize("killed", [None, 3, 4, 6])
def test_the_rate_falls_on_a_plateau_and_after_a_kill_the_same(tmp_path, killed):
    losses = {1: 3.0, 2: 2.0, 3: 2.0, 4: 2.5, 5: 2.5, 6: 2.5, 7: 1.0}
    seen = []

    def measure(params):
        return {"validation_loss": losses[len(seen) + 1]}

    def count(state, summary):
        seen.append(summary["epoch"])

    def go(*more):
        hooks = [ReduceOnPlateau(2, factor=0.5, min_rate=0.03), *more, count]
        return train(7, RunFolder(tmp_path, keep_last=9), hooks, evaluate=measure)

    if killed:
        with pytest.raises(RuntimeError, match="an accident"):
            go(Fails(killed))
        assert len(seen) == killed - 1
    result = go()
    assert rates(tmp_path) == [0.1, 0.1, 0.1, 0.05, 0.05, 0.03, 0.03]
    whole = train(
        7,
        None,
        [ReduceOnPlateau(2, factor=0.5, min_rate=0.03)],
        evaluate=scores("validation_loss", *losses.values()),
    )
    assert result.state.params["w"] == whole.state.params["w"]


def test_a_rate_that_cannot_be_set_is_refused_before_the_first_step():
    for optimizer, what in (
        (optax.adam(0.1), "holds none"),
        (optax.inject_hyperparams(optax.sgd)(optax.cosine_decay_schedule(0.1, 9)), "holds two, as"),
    ):
        with pytest.raises(InvalidInputError, match=f"one learning_rate, but {what}.*inject_hyp"):
            train(hooks=[ReduceOnPlateau(2)], optimizer=optimizer)
    chained = optax.chain(optax.clip_by_global_norm(1.0), SGD)
    result = train(4, hooks=[ReduceOnPlateau(1, monitor="epoch")], optimizer=chained)
    assert result.state.opt_state[1].hyperparams["learning_rate"] == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"patience": 0}, "patience must be a positive"),
        ({"patience": 1.5}, "patience must be a positive"),
        ({"patience": 1, "mode": "auto"}, "but are 'auto' and 0.0"),
        ({"patience": 1, "min_delta": -1.0}, "but are 'min' and -1.0"),
    ],
)
def test_what_a_patience_cannot_be(options, named):
    with pytest.raises(InvalidInputError, match=named):
        EarlyStopping(**options)


def test_a_factor_must_be_less_than_one():
    with pytest.raises(InvalidInputError, match="factor must be between 0 and 1, but is 2"):
        train(hooks=[ReduceOnPlateau(1, factor=2)])


def test_a_table_has_a_row_for_each_epoch_after_a_kill_too(tmp_path):
    path, measure = tmp_path / "log.csv", lambda params: {"validation_loss": 1.0}
    with pytest.raises(RuntimeError, match="an accident"):
        train(4, tmp_path / "run", [CSVLog(path), Fails(3)], evaluate=measure)
    assert len(path.read_text().splitlines()) == 4  # the third was not saved
    result = train(4, tmp_path / "run", [CSVLog(path)], evaluate=measure)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [float(row["loss"]) for row in rows] == [entry["loss"] for entry in result.history]


def test_a_hook_may_return_a_state(tmp_path):
    def halve(state, summary):
        return state.__class__(**{**vars(state), "params": {"w": state.params["w"] / 2}})

    whole = train(4, None, [halve])
    train(2, tmp_path, [halve])
    result = train(4, tmp_path, [halve])
    assert result.state.params["w"] == whole.state.params["w"] != train(4).state.params["w"]


def test_hooks_hear_of_everything_in_turn(tmp_path):
    heard = []

    class Hears(Hook):
        def on_start(self, state):
            heard.append(("start", int(state.step), len(self.history), self.epochs))

        def on_phase(self, phase):
            heard.append(phase)

        def on_dispatch(self, step, losses, seconds):
            heard.append((step, len(losses)))

        def on_epoch(self, state, summary):
            assert self.history[-1] is summary
            heard.append(("epoch", summary["epoch"]))

        def close(self):
            heard.append("close")

    train(1, tmp_path, [Hears()], steps_per_dispatch=2)
    assert heard == [("start", 0, 0, 1), "reading", "compiling", (2, 2), "training", (4, 2),
                     ("epoch", 1), "writing", "close"]  # fmt: skip
    heard.clear()
    train(2, tmp_path, [Hears()])
    assert heard[0] == ("start", 4, 1, 2)


def test_tensorboard_that_is_missing_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(InvalidInputError, match=r'pip install "rnnjax\[tensorboard\]"'):
        train(hooks=[TensorBoard(tmp_path)])


@pytest.mark.skipif(not importlib.util.find_spec("tensorboardX"), reason="needs tensorboardX")
def test_events_of_steps_and_epochs(tmp_path):
    train(2, hooks=[TensorBoard(tmp_path)])
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    assert content.count(b"epoch/loss") == 2
