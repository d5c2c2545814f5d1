import dataclasses
import gc
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import CheckpointError
from rnnjax.training import Checkpoints, TrainState

ADAM = optax.adam(1e-3)
STACK = rnnjax.Stack([rnnjax.LSTMCell(4), rnnjax.GRUCell(3)])


def state_at(step, stack=STACK, optimizer=ADAM, carry=None):
    params = stack.init(jax.random.key(step), 2)
    carry = stack.initial_carry((2,)) if carry is None else carry
    carry = jax.tree.map(lambda leaf: leaf + step, carry)
    state = TrainState.create(params, optimizer, key=jax.random.key(step + 1), carry=carry)
    return jax.tree.map(
        lambda x: x, state.__class__(jnp.int32(step), *list(vars(state).values())[1:])
    )


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=2)
    yield checkpoints
    checkpoints.close()


def test_what_is_saved_comes_back_bit_for_bit(checkpoints):
    saved = state_at(7)
    checkpoints.save(saved, {"hidden_size": 4, "name": "é"})
    restored = checkpoints.restore(jax.eval_shape(lambda: state_at(0)))
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for a, b in zip(jax.tree.leaves(saved), jax.tree.leaves(restored), strict=True):
        assert a.dtype == b.dtype
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)
    assert jax.random.bits(restored.key) == jax.random.bits(saved.key)
    assert isinstance(restored.carry[0], rnnjax.LSTMCarry)
    assert checkpoints.config() == {"hidden_size": 4, "name": "é"}


def test_an_empty_carry_comes_back(checkpoints):
    checkpoints.save(state_at(1, carry=()), {})
    assert checkpoints.restore(state_at(0, carry=())).carry == ()


def test_the_best_and_the_last_are_kept(checkpoints):
    for step, loss in enumerate([3.0, 1.0, 2.0, 2.5, 2.2]):
        checkpoints.save(state_at(step), {}, loss=loss)
    assert checkpoints.steps() == [1, 3, 4]
    assert checkpoints.latest_step() == 4
    assert int(checkpoints.restore(state_at(0), 1).step) == 1


def test_another_model_is_told_by_the_arrays_that_differ(checkpoints):
    checkpoints.save(state_at(1), {})
    other = rnnjax.Stack([rnnjax.LSTMCell(4), rnnjax.GRUCell(5)])
    with pytest.raises(CheckpointError, match=r"belongs to another model") as error:
        checkpoints.restore(state_at(0, other))
    assert "['params'][1]['kernel']: model float32[4, 15], checkpoint float32[4, 9]" in str(
        error.value
    )
    assert "['params'][0]" not in str(error.value)
    with pytest.raises(CheckpointError, match="no such array"):
        checkpoints.restore(state_at(0, optimizer=optax.sgd(0.1)))


def test_nothing_there(checkpoints, tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        checkpoints.restore(state_at(0))
    checkpoints.save(state_at(3), {})
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 9 .* there are \[3\]"):
        checkpoints.config(9)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        Checkpoints(tmp_path / "nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_reader_leaves_half_written_checkpoints_of_a_running_writer_alone(checkpoints):
    checkpoints.save(state_at(3), {})
    unfinished = checkpoints.directory / "9.orbax-checkpoint-tmp"
    unfinished.mkdir()
    reader = Checkpoints(checkpoints.directory, read_only=True)
    assert reader.steps() == [3]
    reader.close()
    assert unfinished.exists()


def files_of(checkpoints, step):
    return sorted(p for p in checkpoints.path(step).rglob("*") if p.is_file() and p.stat().st_size)


@pytest.fixture
def no_unraisable_errors(monkeypatch):
    """Orbax leaves coroutines behind when a read fails; Python complains when it collects them."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_every_damaged_file_is_noticed_or_harmless(checkpoints, no_unraisable_errors):
    """Flip a byte in the middle of each file, and cut each short: wrong numbers never come out."""
    saved = state_at(2)
    checkpoints.save(state_at(1), {})
    checkpoints.save(saved, {})
    files = files_of(checkpoints, 2)
    messages = []
    for file in files:
        content = file.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0x5A]) + content[middle + 1 :]
        for damaged in (flipped, content[:middle]):
            file.write_bytes(damaged)
            try:
                restored = checkpoints.restore(state_at(0), 2)
            except CheckpointError as error:
                messages.append(str(error))
            else:
                jax.tree.map(np.testing.assert_array_equal, restored.params, saved.params)
        file.write_bytes(content)
    assert len(messages) >= 4
    assert all("is damaged" in m and "goes on from step 1" in m for m in messages)
    checkpoints.restore(state_at(0), 2)


def test_arrays_of_another_state_are_noticed_by_their_checksums(checkpoints, tmp_path):
    """Files that are whole for the layers below: those of a state that differs in one number."""
    saved = state_at(1)
    checkpoints.save(saved, {})
    first, second = saved.params
    changed = first | {"bias": first["bias"].at[0].add(1e-3)}
    other = Checkpoints(tmp_path / "other")
    other.save(dataclasses.replace(saved, params=(changed, second)), {})
    other.close()
    shutil.rmtree(checkpoints.path(1) / "state")
    shutil.copytree(other.path(1) / "state", checkpoints.path(1) / "state")
    message = r"is damaged \(the checksum of \['params'\]\[0\]\['bias'\] is wrong\)"
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore(state_at(0))


def test_saving_twice_writes_once_and_a_failed_save_keeps_the_rest(checkpoints, monkeypatch):
    checkpoints.save(state_at(1), {})
    checkpoints.save(state_at(1), {})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(CheckpointError, match=r"step 2 could not be written.*No space left"):
        checkpoints.save(state_at(2), {})
    assert checkpoints.steps() == [1]


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_damaged_latest_checkpoint_is_set_aside_for_the_one_before(
    checkpoints, no_unraisable_errors
):
    for step in (1, 2, 3):
        checkpoints.save(state_at(step), {})
    largest = max(files_of(checkpoints, 3), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"3 is damaged .* set aside as damaged-3"):
        restored = checkpoints.restore_latest(state_at(0))
    assert int(restored.step) == 2
    assert checkpoints.steps() == [2]
    assert (checkpoints.directory / "damaged-3").is_dir()
    # The run comes to the same step again, and what it writes there is whole.
    checkpoints.save(state_at(3), {})
    assert int(checkpoints.restore_latest(state_at(0)).step) == 3
    # And so it can be damaged there again.
    largest.write_bytes(largest.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"3 is damaged .* set aside as damaged-3-2"):
        assert int(checkpoints.restore_latest(state_at(0)).step) == 2
    assert (checkpoints.directory / "damaged-3-2").is_dir()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(
    checkpoints, no_unraisable_errors
):
    assert checkpoints.restore_latest(state_at(0)) is None
    checkpoints.save(state_at(1), {})
    (checkpoints.path(1) / "about" / "metadata").write_text("{")
    with (
        pytest.warns(UserWarning, match="1 is damaged"),
        pytest.raises(CheckpointError, match="all 1 checkpoints in"),
    ):
        checkpoints.restore_latest(state_at(0))


def test_a_checkpoint_of_another_model_is_not_set_aside(checkpoints):
    checkpoints.save(state_at(1), {})
    other = rnnjax.Stack([rnnjax.LSTMCell(4), rnnjax.GRUCell(5)])
    with pytest.raises(CheckpointError, match="belongs to another model"):
        checkpoints.restore_latest(state_at(0, other))
    assert checkpoints.steps() == [1]


def test_the_best_step_is_that_of_the_lowest_loss_given(checkpoints):
    assert checkpoints.best_step() is None
    checkpoints.save(state_at(1), {})
    assert checkpoints.best_step() is None
    for step, loss in ((2, 1.5), (3, 1.2), (4, 1.9)):
        checkpoints.save(state_at(step), {}, loss=loss)
    assert checkpoints.best_step() == 3
