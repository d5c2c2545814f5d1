import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import InvalidInputError, NonFiniteError
from rnnjax.training import (
    Checkpoints,
    Records,
    Reporter,
    Schedule,
    TrainState,
    make_train_steps,
    train,
)

CELL = rnnjax.GRUCell(4)
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-2, 20))
)
SCHEDULE = Schedule(epochs=3, steps_per_epoch=5, steps_per_dispatch=2, epochs_per_checkpoint=1)


def loss_fn(params, carry, batch, key):
    carry, ys = rnnjax.unroll(CELL, params, batch["xs"], carry)
    noise = jax.random.normal(key, ys.shape)
    return jnp.mean((ys - noise) ** 2), (carry, {"weight": batch["weight"]})


TRAIN_STEPS = make_train_steps(loss_fn, OPTIMIZER)


def batches(epoch, spoilt_step=None):
    xs = np.random.default_rng(epoch).normal(size=(5, 3, 2, 2)).astype(np.float32)
    if spoilt_step is not None and spoilt_step // 5 == epoch:
        xs[spoilt_step % 5] = np.nan
    return {"xs": xs, "weight": np.array([1, 1, 1, 1, 3], np.float32)}


def new_state():
    params = CELL.init(jax.random.key(0), 2)
    return TrainState.create(
        params, OPTIMIZER, key=jax.random.key(1), carry=CELL.initial_carry((2,))
    )


def run(folder, reporter=None, data=batches, schedule=SCHEDULE, evaluate=None):
    """Begin, or go on from the latest checkpoint, like a program does."""
    checkpoints = Checkpoints(folder / "checkpoints")
    state = new_state()
    if checkpoints.latest_step() is not None:
        state = checkpoints.restore(state)
    try:
        return train(
            state, TRAIN_STEPS, data, schedule,
            checkpoints=checkpoints, config={}, reporter=reporter,
            steps=Records(folder / "steps.jsonl"), epochs=Records(folder / "epochs.jsonl"),
            initial_carry=CELL.initial_carry((2,)), evaluate=evaluate,
        )  # fmt: skip
    finally:
        checkpoints.close()


def bits(state):
    arrays = jax.tree.map(np.asarray, (state.params, state.opt_state, state.carry))
    return b"".join(leaf.tobytes() for leaf in jax.tree.leaves(arrays))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    state, stopped_by = run(folder)
    assert stopped_by is None
    assert int(state.step) == 15
    return bits(state), Records(folder / "steps.jsonl").read()


class At(Reporter):
    """Does something when a step is reached."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_dispatch(self, step, losses):
        if step >= self.step:
            self.step = float("inf")
            self.action()


def fail():
    raise RuntimeError("an accident")


@pytest.mark.parametrize("step", [2, 4, 5, 7, 10, 12, 14, 15])
def test_a_run_that_failed_goes_on_exactly(undisturbed, tmp_path, step):
    with pytest.raises(RuntimeError, match="an accident"):
        run(tmp_path, At(step, fail))
    state, _ = run(tmp_path)
    assert bits(state) == undisturbed[0]
    assert Records(tmp_path / "steps.jsonl").read() == undisturbed[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [4, 10])
def test_a_signal_saves_the_step_in_progress(undisturbed, tmp_path, number, step):
    state, stopped_by = run(tmp_path, At(step, lambda: os.kill(os.getpid(), number)))
    assert stopped_by == number
    assert int(state.step) == step
    state, stopped_by = run(tmp_path)
    assert stopped_by is None
    assert bits(state) == undisturbed[0]
    assert Records(tmp_path / "steps.jsonl").read() == undisturbed[1]


def test_a_signal_at_the_very_end_is_no_early_stop(undisturbed, tmp_path):
    state, stopped_by = run(tmp_path, At(15, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert stopped_by is None
    assert bits(state) == undisturbed[0]


def test_the_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run(tmp_path)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_means_are_weighted_and_complete_after_a_resume(tmp_path):
    run(tmp_path, At(7, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    run(tmp_path)
    steps = Records(tmp_path / "steps.jsonl").read()
    epochs = Records(tmp_path / "epochs.jsonl").read()
    assert [e["epoch"] for e in epochs] == [1, 2, 3]
    for entry in epochs:
        losses = [s["loss"] for s in steps if s["epoch"] == entry["epoch"]]
        assert entry["loss"] == pytest.approx(np.average(losses, weights=[1, 1, 1, 1, 3]))


def test_not_finite_names_the_step_and_the_last_good_checkpoint(tmp_path):
    with pytest.raises(NonFiniteError, match=r"at step 9 the loss is nan") as error:
        run(tmp_path, data=lambda epoch: batches(epoch, spoilt_step=8))
    assert str(tmp_path / "checkpoints" / "5") in str(error.value)
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert checkpoints.steps() == [5]
    checkpoints.close()


def test_not_finite_before_any_checkpoint(tmp_path):
    with pytest.raises(NonFiniteError, match=r"at step 1 .* there is no checkpoint yet"):
        run(tmp_path, data=lambda epoch: batches(epoch, spoilt_step=0))


def test_a_schedule_has_positive_numbers():
    with pytest.raises(InvalidInputError, match="steps_per_epoch must be at least 1, but is 0"):
        Schedule(epochs=1, steps_per_epoch=0)


def scores(*losses):
    """Measures a state by its step alone: the loss of the first epoch, of the second ..."""

    def evaluate(state):
        return {"validation_loss": losses[int(state.step) // 5 - 1]}

    return evaluate


def test_each_better_epoch_is_saved_and_the_run_ends_when_none_comes(tmp_path):
    schedule = dataclasses.replace(SCHEDULE, epochs=8, epochs_per_checkpoint=50, patience=2)
    evaluate = scores(3.0, 2.0, 2.5, 1.5, 1.6, 1.5, 1.0, 0.5)
    state, stopped_by = run(tmp_path, schedule=schedule, evaluate=evaluate)
    assert (int(state.step), stopped_by) == (30, None)
    epochs = Records(tmp_path / "epochs.jsonl").read()
    assert [entry["validation_loss"] for entry in epochs] == [3.0, 2.0, 2.5, 1.5, 1.6, 1.5]
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert checkpoints.best_step() == 20
    # The last three, of which the best is one; not after the third and the fifth epoch.
    assert checkpoints.steps() == [10, 20, 30]
    checkpoints.close()
    # Going on with it does nothing more.
    again, _ = run(tmp_path, schedule=schedule, evaluate=evaluate)
    assert bits(again) == bits(state)


def test_a_resumed_run_waits_as_long_as_an_undisturbed_one(tmp_path):
    schedule = dataclasses.replace(SCHEDULE, epochs=8, epochs_per_checkpoint=50, patience=2)
    evaluate = scores(3.0, 2.0, 2.5, 2.4, 1.0, 1.0, 1.0, 1.0)
    with pytest.raises(RuntimeError, match="an accident"):
        run(tmp_path, At(17, fail), schedule=schedule, evaluate=evaluate)
    state, _ = run(tmp_path, schedule=schedule, evaluate=evaluate)
    assert int(state.step) == 20


def test_half_a_line_is_dropped(tmp_path):
    records = Records(tmp_path / "r.jsonl")
    records.append([{"step": 1}, {"step": 2}, {"step": 3}])
    with records.path.open("a") as file:
        file.write('{"step": 4, "lo')
    records.drop_after(2)
    assert records.path.read_text() == '{"step": 1}\n{"step": 2}\n'
