import contextlib
import dataclasses
import errno
import json
import logging
import os
import random
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import CheckpointError, InvalidInputError, RnnjaxError
from rnnjax.training import Checkpoints, Silent, TrainState, fit, load_params, save_params
from rnnjax.training.files import read_sealed, write_sealed

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
    return Checkpoints(tmp_path / "checkpoints", keep_last=2)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_what_is_saved_comes_back_bit_for_bit(checkpoints):
    state = state_at(7)
    checkpoints.save(state, {"hidden_size": 4, "name": "é"}, loss=0.5)
    saved = checkpoints.latest()
    restored = saved.restore(jax.eval_shape(lambda: state_at(0)))
    assert_same(restored, state)
    assert isinstance(restored.carry[0], rnnjax.LSTMCarry)
    assert (saved.step, saved.about) == (7, {"hidden_size": 4, "name": "é"})


def test_an_empty_carry_comes_back(checkpoints):
    checkpoints.save(state_at(1, carry=()), {})
    assert checkpoints.latest().restore(state_at(0, carry=())).carry == ()


def test_the_best_and_the_last_are_kept(checkpoints):
    for step, loss in enumerate([3.0, 1.0, 2.0, 2.5, 2.2]):
        checkpoints.save(state_at(step), {}, loss=loss)
    assert checkpoints.steps() == [1, 3, 4]
    assert checkpoints.latest().step == 4
    assert checkpoints.best().step == 1
    assert int(checkpoints.at(1).restore(state_at(0)).step) == 1


def test_the_best_is_that_of_the_lowest_loss_given_or_else_the_latest(checkpoints):
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        checkpoints.best()
    checkpoints.save(state_at(1), {})
    checkpoints.save(state_at(2), {}, loss=float("nan"))
    assert checkpoints.best().step == 2
    for step, loss in ((3, 1.5), (4, 1.2), (5, 1.9)):
        checkpoints.save(state_at(step), {}, loss=loss)
    assert checkpoints.best().step == 4


def test_a_best_one_whose_own_description_is_damaged_is_said(checkpoints):
    for step in (1, 2):
        checkpoints.save(state_at(step), {}, loss=step)
    (checkpoints.path(1) / "about.json").write_text("{")
    with pytest.warns(UserWarning, match="1 is damaged"):
        assert checkpoints.best().step == 2


def test_another_model_is_told_by_the_arrays_that_differ(checkpoints):
    checkpoints.save(state_at(1), {})
    other = rnnjax.Stack([rnnjax.LSTMCell(4), rnnjax.GRUCell(5)])
    with pytest.raises(CheckpointError, match=r"belongs to another model") as error:
        checkpoints.latest().restore(state_at(0, other))
    assert "['params'][1]['kernel']: model float32[4, 15], checkpoint float32[4, 9]" in str(
        error.value
    )
    assert "['params'][0]" not in str(error.value)
    assert checkpoints.steps() == [1]


@pytest.mark.parametrize(
    ("optimizer", "how"),
    [(optax.sgd(0.1), "no such array"), (optax.adamw(1e-3), r"\[2\]: model empty")],
)
def test_another_optimizer_is_told_too(checkpoints, optimizer, how):
    checkpoints.save(state_at(1, optimizer=optax.adam(1e-3)), {})
    with pytest.raises(CheckpointError, match=f"another optimizer: .*{how}.*build the optimizer"):
        checkpoints.latest().restore(state_at(0, optimizer=optimizer))


def test_nothing_there(checkpoints, tmp_path):
    assert checkpoints.latest() is None
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3 .* there are none"):
        checkpoints.at(3)
    checkpoints.save(state_at(3), {})
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 9 .* there are \[3\]"):
        checkpoints.at(9)
    # What somebody else left in the folder is none.
    (checkpoints.directory / "99").touch()
    (checkpoints.directory / "\N{ARABIC-INDIC DIGIT FOUR}").mkdir()
    assert checkpoints.steps() == [3]
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        Checkpoints(tmp_path / "nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written to"):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_what_a_writer_left_half_done_is_removed_by_the_next_and_left_alone_by_readers(checkpoints):
    checkpoints.save(state_at(3), {})
    unfinished = [checkpoints.directory / name for name in (".writing-9", ".deleting-2")]
    for path in unfinished:
        path.mkdir()
    reader = Checkpoints(checkpoints.directory, read_only=True)
    assert reader.steps() == [3]
    assert all(path.exists() for path in unfinished)
    assert Checkpoints(checkpoints.directory).steps() == [3]
    assert not any(path.exists() for path in unfinished)


def test_a_checkpoint_is_on_the_disk_before_it_is_in_its_place(checkpoints, monkeypatch):
    """Or a machine that loses its power would leave files that are there, and empty."""
    synced, real = set(), os.fsync

    def fsync(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        real(descriptor)

    def rename(path, target):
        missing = [p for p in path.rglob("*") if p.stat().st_ino not in synced]
        assert path.name.startswith(".deleting") or not missing
        os.rename(path, target)
        return target

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    checkpoints.save(state_at(3), {})
    assert checkpoints.path(3).stat().st_ino in synced


def damage(path, rng):
    """One of the ways in which a file comes back other than it was written."""
    content = path.read_bytes()
    kind = rng.choice(["flip", "cut", "empty", "zeros", "grow", "other", "gone"])
    at = rng.randrange(max(1, len(content)))
    damaged = {
        "flip": content[:at] + bytes([(content[at] if content else 0) ^ rng.randint(1, 255)])
        + content[at + 1 :],
        "cut": content[:at],
        "empty": b"",
        "zeros": bytes(len(content)),
        "grow": content + rng.randbytes(rng.randint(1, 9)),
        "other": rng.randbytes(len(content)),
    }  # fmt: skip
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes(damaged[kind])
    return content


def damage_all(tmp_path, number, seed):
    """Damage files at random: what comes out is exact, or the one before with a warning."""
    rng, whole = random.Random(seed), tmp_path / "whole"
    states = {step: state_at(step) for step in (1, 2)}
    writer = Checkpoints(whole)
    for step, state in states.items():
        writer.save(state, {"layers": 2}, loss=1 / step)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    outcomes = {"exact": 0, "fallback": 0, "sentence": 0}
    for i in range(number):
        chosen = rng.sample(files, rng.choice([1, 1, 1, 2]))
        if i % 8 == 0:  # one of each, which orbax's names of files, not the seed's, leave to chance
            chosen = [rng.choice([f for f in files if f.parts[0] == str(step)]) for step in states]
        before = [(path, damage(folder / path, rng)) for path in chosen]
        checkpoints = Checkpoints(folder, read_only=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                saved = rng.choice([checkpoints.latest, checkpoints.best])()
                restored = saved.restore(states[1])
            except RnnjaxError:
                assert len({path.parts[0] for path in chosen}) == 2
                outcomes["sentence"] += 1
            else:
                assert saved.about == {"layers": 2}
                assert_same(restored, states[saved.step])
                assert saved.step == 2 or "2 is damaged" in str(caught[0].message)
                outcomes["exact" if saved.step == 2 else "fallback"] += 1
        for path, content in before:
            (folder / path).write_bytes(content)
    return outcomes


def test_damaged_files_are_noticed_before_they_are_read(tmp_path):
    outcomes = damage_all(tmp_path, 30, seed=0)
    assert min(outcomes.values()) > 0, outcomes


@pytest.mark.slow
def test_five_thousand_damages(tmp_path):
    print(damage_all(tmp_path, 5000, seed=1))


def test_a_damaged_about_is_another_version_or_an_error_of_its_checksum(checkpoints):
    checkpoints.save(state_at(1), {"layers": 2})
    path = checkpoints.path(1) / "about.json"
    stored = json.loads(path.read_text())
    stored["value"]["about"]["layers"] = 3
    path.write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=r"about.json is damaged, or was changed"):
        checkpoints.at(1)


def test_files_of_another_state_are_noticed_by_their_checksums(checkpoints, tmp_path):
    """Files that are whole for the layers below: those of a state that differs in one number."""
    state = state_at(1)
    checkpoints.save(state, {})
    first, second = state.params
    changed = first | {"bias": first["bias"].at[0].add(1e-3)}
    other = Checkpoints(tmp_path / "other")
    other.save(dataclasses.replace(state, params=(changed, second)), {})
    shutil.rmtree(checkpoints.path(1) / "arrays")
    shutil.copytree(other.path(1) / "arrays", checkpoints.path(1) / "arrays")
    with pytest.raises(CheckpointError, match=r"is damaged \((the checksum of )?.*arrays/"):
        checkpoints.at(1)


def test_a_step_is_saved_once_and_a_failed_save_keeps_the_rest(checkpoints, monkeypatch):
    checkpoints.save(state_at(1), {})
    with pytest.raises(CheckpointError, match="1 is there already; save each step once"):
        checkpoints.save(state_at(1), {})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"step 2 could not be written.*No space left"):
        checkpoints.save(state_at(2), {})
    assert checkpoints.steps() == [1]
    assert sorted(path.name for path in checkpoints.directory.iterdir()) == ["1"]


def test_a_damaged_latest_checkpoint_is_set_aside_for_the_one_before(checkpoints):
    for step in (1, 2, 3):
        checkpoints.save(state_at(step), {})
    about = checkpoints.path(3) / "about.json"
    for name in ("damaged-3", "damaged-3-2"):
        about.write_bytes(about.read_bytes()[:100])
        with pytest.warns(UserWarning, match=f"3 is damaged .* set aside as {name}$"):
            assert int(checkpoints.latest().restore(state_at(0)).step) == 2
        assert checkpoints.steps() == [2]
        assert (checkpoints.directory / name).is_dir()
        # The run comes to the same step again, and what it writes there is whole.
        checkpoints.save(state_at(3), {})
        assert checkpoints.latest().step == 3


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(checkpoints):
    checkpoints.save(state_at(1), {})
    (checkpoints.path(1) / "about.json").write_text("{")
    with (
        pytest.warns(UserWarning, match="1 is damaged"),
        pytest.raises(CheckpointError, match="all 1 checkpoints in"),
    ):
        checkpoints.latest()


def test_what_cannot_be_read_now_is_no_damage(checkpoints, monkeypatch):
    """Too many open files, or no rights: nothing is moved, and it can be read later."""
    for step in (1, 2):
        checkpoints.save(state_at(step), {})
    real = Path.read_bytes

    def refuse(path):
        if path.name == "about.json":
            return real(path)
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(CheckpointError, match="cannot be read now"):
            checkpoints.latest()
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.latest().step == 2


def test_another_version_is_no_damage(checkpoints):
    checkpoints.save(state_at(1), {})
    path = checkpoints.path(1) / "about.json"
    sealed = read_sealed(path)
    leaves = sealed.pop("leaves")
    for other in ({"leaves": leaves, "more": 1}, {"arrays": leaves}):
        write_sealed(path, sealed | other)
        with pytest.raises(CheckpointError, match="of another version"):
            checkpoints.latest()
    assert checkpoints.steps() == [1]


def test_what_is_no_json_is_not_saved(checkpoints):
    with pytest.raises(rnnjax.InvalidInputError, match="must be JSON"):
        checkpoints.save(state_at(1), {"rate": np.float32(0.5)})
    assert checkpoints.steps() == []
    checkpoints.save(state_at(1), {1: "a"})
    assert checkpoints.latest().about == {"1": "a"}


@pytest.mark.parametrize("impl", [None, "rbg"])
def test_arrays_without_elements_come_back(checkpoints, impl):
    carry = {"none": jnp.zeros((0, 4), jnp.bfloat16), "keys": jax.random.key(0, impl=impl)}
    state = TrainState.create(jnp.ones(3), ADAM, key=jax.random.key(1), carry=carry)
    checkpoints.save(state, {})
    assert_same(checkpoints.latest().restore(jax.eval_shape(lambda: state)), state)
    other = dataclasses.replace(state, carry={**carry, "none": jnp.zeros((0, 5), jnp.bfloat16)})
    with pytest.raises(
        CheckpointError, match=r"model bfloat16\[0, 5\], checkpoint bfloat16\[0, 4\]"
    ):
        checkpoints.latest().restore(other)


@pytest.mark.parametrize("spared", ["", "about.json"])
def test_a_reader_takes_the_next_where_a_run_deletes_one(checkpoints, monkeypatch, spared):
    """Between the list of steps and the first file, or between two files: no word of damage."""
    from rnnjax.training import checkpoints as module

    for step in (1, 2):
        checkpoints.save(state_at(step), {}, loss=step)
    reader, real = Checkpoints(checkpoints.directory, read_only=True), module.read_whole

    def read(path):
        if "1" in path.parts and path.name != spared:
            shutil.rmtree(checkpoints.path(1), ignore_errors=True)
        return real(path)

    shutil.copytree(checkpoints.path(1), checkpoints.directory / "aside")
    monkeypatch.setattr(module, "read_whole", read)
    monkeypatch.setattr(module, "read_sealed", lambda path: read(path) and read_sealed(path))
    assert reader.best().step == 2
    shutil.copytree(checkpoints.directory / "aside", checkpoints.path(1))
    with pytest.raises(CheckpointError, match="1 was deleted while it was read"):
        reader.at(1)
    shutil.copytree(checkpoints.directory / "aside", checkpoints.path(1))
    monkeypatch.undo()
    saved = reader.at(1)
    shutil.rmtree(checkpoints.path(1))
    assert int(saved.restore(state_at(0)).step) == 1  # what was read stays
    assert checkpoints.steps() == [2]


def test_a_checkpoint_knows_its_own_step(checkpoints):
    """A folder that a backup renamed, or copied, is not taken for another step."""
    for step in (1, 2):
        checkpoints.save(state_at(step), {})
    shutil.copytree(checkpoints.path(2), checkpoints.path(7))
    with pytest.warns(UserWarning, match=r"7 is damaged \(it is that of step 2, renamed\)"):
        assert checkpoints.latest().step == 2
    checkpoints.path(1).rename(checkpoints.path(3))
    with pytest.raises(CheckpointError, match=r"that of step 1, renamed"):
        checkpoints.at(3)
    # The run comes to those steps, and saves them.
    for step in (3, 7):
        shutil.rmtree(checkpoints.path(step), ignore_errors=True)
        checkpoints.save(state_at(step), {})
    assert checkpoints.latest().step == 7


def test_what_is_no_state_is_told(checkpoints):
    state = state_at(1)
    with pytest.raises(InvalidInputError, match=r"state must be a TrainState, .* is a tuple of 2"):
        checkpoints.save(state.params, {})
    for loss in ("low", [1.0]):
        with pytest.raises(InvalidInputError, match="loss must be a number"):
            checkpoints.save(state, {}, loss=loss)
    with pytest.raises(
        InvalidInputError, match="state must hold arrays of numbers, but has one of"
    ):
        checkpoints.save(dataclasses.replace(state, carry="abc"), {})
    for keep_last in (0, 1.5):
        with pytest.raises(InvalidInputError, match=f"keep_last must be .* is {keep_last}"):
            Checkpoints(checkpoints.directory, keep_last=keep_last)
    with pytest.raises(InvalidInputError, match=r"step must be a whole number, but is 1\.0"):
        checkpoints.at(1.0)
    checkpoints.save(state, {}, loss=np.float32(0.5))
    assert checkpoints.best().step == 1
    with pytest.raises(InvalidInputError, match=r"like must be a TrainState .*params reads"):
        checkpoints.latest().restore(state.params)


def test_a_full_disk_is_told_in_one_sentence_and_orbax_is_quiet(checkpoints, caplog, monkeypatch):
    from rnnjax.training import checkpoints as module

    def full(self, path, *, args):
        logging.getLogger("absl").error("a traceback of a hundred lines")
        raise ValueError(
            f'RESOURCE_EXHAUSTED: Error writing "{"x" * 300}": No space left on device'
        )

    monkeypatch.setattr(module.ocp.Checkpointer, "save", full)
    with pytest.raises(CheckpointError, match=r"No space left on device\); the checkpoints before"):
        checkpoints.save(state_at(1), {})
    assert not caplog.records


def test_parameters_alone_come_back_in_dicts_and_tuples(checkpoints):
    params = {
        "stack": STACK.init(jax.random.key(0), 2),
        "list": [jnp.ones(2), {"a.b": np.ones((0, 3), np.int8)}],
        "empty": {}, "0": jnp.ones(3, jnp.bfloat16), "nothing": (),
    }  # fmt: skip
    state = TrainState.create(params, ADAM, key=jax.random.key(1), carry=STACK.initial_carry((2,)))
    checkpoints.save(state, {})
    saved = checkpoints.latest()
    assert_same(saved.params(), params | {"list": tuple(params["list"])})
    assert_same(saved.params(jax.eval_shape(lambda: params)), params)
    with pytest.raises(CheckpointError, match=r"belongs to another model: .*'extra'.* no such arr"):
        saved.params(params | {"extra": jnp.ones(1)})


def test_parameters_in_containers_of_their_own_need_like(checkpoints):
    trees = STACK.initial_carry((2,)), {0: jnp.ones(2), 1: jnp.zeros(2)}  # any pytree
    for step, params in enumerate(trees):
        state = TrainState.create(params, ADAM, key=jax.random.key(1))
        checkpoints.save(dataclasses.replace(state, step=jnp.int32(step)), {})
        with pytest.raises(CheckpointError, match=r"in containers of their own.*give like"):
            checkpoints.latest().params()
        assert_same(checkpoints.latest().params(params), params)


PARAMS = {"cell": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3).T, "none": None},
          "layers": (np.float32(2.0), np.zeros((0, 2), np.int8))}  # fmt: skip


def test_parameters_in_one_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "net.safetensors"
    params = jax.tree.map(jnp.asarray, PARAMS | {"half": jnp.ones(2, jnp.bfloat16), "empty": {}})
    save_params(path, params)
    assert_same(load_params(path), params)
    assert_same(load_params(path, jax.eval_shape(lambda: params)), params)
    save_params(path, {"a": [np.ones(2, np.float32)], "carry": STACK.initial_carry((2,))})
    with pytest.raises(CheckpointError, match="does not say how its arrays are nested; give like"):
        load_params(path)
    with pytest.raises(CheckpointError, match=r"a\.0 should be float32\[3\], but is float32\[2"):
        load_params(path, {"a": [np.ones(3, np.float32)]})
    save_params(path, PARAMS)
    assert set(safetensors.load_file(path)) == {"cell.kernel", "layers.0", "layers.1"}
    with pytest.raises(InvalidInputError, match=r"two arrays of params have the path a.b"):
        save_params(path, {"a.b": np.ones(1), "a": {"b": np.ones(1)}})
    for leaf in (jax.random.key(0), np.array(["a"])):
        with pytest.raises(InvalidInputError, match="of a type that safetensors has, but w is"):
            save_params(path, {"w": leaf})
    for params in ({"w": np.ones(2, np.complex64)}, {"__metadata__": np.ones(2)}):
        with pytest.raises(InvalidInputError, match="cast it, or rename it"):
            save_params(path, params)
    with pytest.raises(CheckpointError, match=r"cell.kernel should be float64\[\], but is float32"):
        load_params(path, {"cell": {"kernel": 1.0, "none": None}, "layers": PARAMS["layers"]})
    with pytest.raises(InvalidInputError, match="is a file, and has no step 3"):
        load_params(path, step=3)
    whole = path.read_bytes()
    for i in range(0, len(whole), 3):  # each byte of the header another one, and no more than it
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with contextlib.suppress(CheckpointError):
            load_params(path)
        path.write_bytes(whole[:i])
        with pytest.raises(CheckpointError, match=r"net\.safetensors"):
            load_params(path)


def test_the_parameters_of_a_run(tmp_path):
    def loss_fn(params, batch, key):
        return ((params["w"] - batch) ** 2).sum()

    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        load_params(tmp_path)
    losses = [2.0, 1.0, 3.0]
    seen = []

    def evaluate(params):
        seen.append(np.asarray(params["w"]))
        return {"validation_loss": losses[len(seen) - 1]}

    result = fit(loss_fn, {"w": jnp.zeros(2)}, ADAM, np.ones((2, 2)), 3, key=jax.random.key(0),
                 run_dir=tmp_path / "run", evaluate=evaluate, hooks=[Silent()])  # fmt: skip
    files = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*"))
    for step, expected in (("best", 1), ("last", 2), (2, 0)):
        np.testing.assert_array_equal(load_params(tmp_path / "run", step=step)["w"], seen[expected])
    np.testing.assert_array_equal(load_params(tmp_path / "run")["w"], result.params["w"])
    # The folder of the checkpoints will do, and abstract parameters.
    like = jax.eval_shape(lambda: {"w": jnp.zeros(2)})
    np.testing.assert_array_equal(
        load_params(tmp_path / "run" / "checkpoints", like)["w"], result.params["w"]
    )
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*")) == files
    with pytest.raises(CheckpointError, match="no checkpoint of step 5"):
        load_params(tmp_path / "run", step=5)
    with pytest.raises(InvalidInputError, match='step must be "best", "last" or a whole number'):
        load_params(tmp_path / "run", step="newest")
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        load_params(tmp_path / "elsewhere")


def test_numbers_of_another_order_and_width(checkpoints):
    """The first are saved as they are here, and the second are not narrowed without a word."""
    state = dataclasses.replace(
        state_at(1), params={"w": np.arange(3, dtype=">f4"), "n": np.float64(2)}, opt_state=1.5
    )
    checkpoints.save(state, {})
    with pytest.raises(CheckpointError, match=r"holds \['params'\]\['n'\] in float64, which JAX"):
        checkpoints.latest().params()
    with jax.enable_x64(True):
        params = checkpoints.latest().params()
    assert params["w"].tolist() == [0, 1, 2]
    assert params["n"].dtype == np.float64
