import collections
import contextlib
import dataclasses
import errno
import logging
import os
import random
import shutil
import sys
import threading
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import rnnjax
from rnnjax import CheckpointError, InvalidInputError, RnnjaxError
from rnnjax.training import Checkpoints, TrainState, load_params, save_params
from rnnjax.training import checkpoints as module
from rnnjax.training.files import read_sealed, write_sealed

RUN_OF_0_1_0 = Path(__file__).parent / "run_of_0_1_0"
ADAM = optax.adam(1e-3)
STACK = rnnjax.Stack([rnnjax.LSTMCell(4), rnnjax.GRUCell(3)])


def of_shape(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), tree)


def state_at(step, stack=STACK, optimizer=ADAM, carry=None):
    params = of_shape(jax.eval_shape(lambda: stack.init(jax.random.key(0), 2)), step)
    carry = of_shape(stack.initial_carry((2,)), step) if carry is None else carry
    state = TrainState.create(params, optimizer, key=jax.random.key(step + 1), carry=carry)
    return dataclasses.replace(state, step=jnp.int32(step))


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints")


@pytest.fixture
def two(checkpoints):
    """With those of the steps 1 and 2, of which the first is the best."""
    for step in (1, 2):
        checkpoints.save(state_at(step), {}, loss=step)
    return checkpoints


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_what_is_saved_comes_back_bit_for_bit(checkpoints):
    """Guards the random key of a run too."""
    odd = {impl: jax.random.key(0, impl=impl) for impl in ("threefry2x32", "rbg")}
    odd["empty"] = jnp.zeros((0, 4), jnp.bfloat16)
    for step, carry in ((7, None), (8, ()), (9, odd)):
        state = state_at(step, carry=carry)
        checkpoints.save(state, {"hidden_size": 4, "name": "é"}, loss=0.5)
        saved = checkpoints.latest()
        restored = saved.restore(jax.eval_shape(lambda carry=carry: state_at(0, carry=carry)))
        assert_same(restored, state)
        assert (saved.step, saved.about) == (step, {"hidden_size": 4, "name": "é"})


def test_the_best_and_the_last_are_kept(checkpoints):
    # Of those without a loss the last.
    for step, loss, best, steps in (
        (0, None, 0, [0]),
        (1, float("nan"), 1, [0, 1]),
        (2, 3.0, 2, [0, 1, 2]),
        (3, 1.0, 3, [1, 2, 3]),
        (4, 2.0, 3, [2, 3, 4]),
        (5, 2.5, 3, [3, 4, 5]),
        (6, 1.0, 3, [3, 4, 5, 6]),
        (7, 3.0, 3, [3, 5, 6, 7]),
    ):
        checkpoints.save(state_at(step), {}, loss=loss)
        assert (checkpoints.best().step, checkpoints.steps()) == (best, steps)
    assert checkpoints.latest().step == 7
    assert int(checkpoints.at(3).restore(state_at(0)).step) == 3
    (checkpoints.path(3) / "about.json").write_text("{")
    with pytest.warns(UserWarning, match="3 is damaged"):
        assert checkpoints.best().step == 6


def test_another_model_is_told_by_the_arrays_that_differ(checkpoints):
    checkpoints.save(state_at(1, carry=jnp.zeros((0, 4), jnp.bfloat16)), {})
    wide = rnnjax.Stack([rnnjax.LSTMCell(4), rnnjax.GRUCell(5)])
    for other, *parts in (
        ({"stack": wide}, "another model: ['params'][1]['bias']: model float32[15], saved float32[",
         "]['kernel']: model float32[4, 15], saved float32[4, 9]", "; and 6 more; give one"),
        ({"carry": jnp.zeros((0, 5), jnp.bfloat16)}, "model bfloat16[0, 5], saved bfloat16[0, 4]"),
        ({"optimizer": optax.sgd(0.1)}, "another optimizer: ", "no such array", "; give one"),
    ):  # fmt: skip
        given = {"carry": jnp.zeros((0, 4), jnp.bfloat16)} | other
        with pytest.raises(CheckpointError) as error:
            checkpoints.latest().restore(state_at(0, **given))
        assert [part for part in parts if part not in str(error.value)] == []
    assert checkpoints.steps() == [1]


def test_nothing_there(checkpoints, tmp_path):
    assert checkpoints.latest() is None
    for step, message in (
        ("best", "there is no checkpoint in"),
        ("last", "there is no checkpoint in"),
        (3, "no checkpoint of step 3 .* there are none"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_params(checkpoints.directory, step=step)
    checkpoints.save(state_at(3), {})
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 9 .* there are \[3\]"):
        checkpoints.at(9)
    # What somebody else left in the folder is none.
    (checkpoints.directory / "99").touch()
    for name in ("\N{ARABIC-INDIC DIGIT FOUR}", "007"):
        (checkpoints.directory / name).mkdir()
    # What a writer left half done is removed by the next, and left alone by readers.
    unfinished = [checkpoints.directory / name for name in (".writing-9", ".deleting-2")]
    for path in unfinished:
        path.mkdir()
    assert Checkpoints(checkpoints.directory).latest().step == 3
    assert all(path.exists() for path in unfinished)
    checkpoints.save(state_at(4), {})
    assert not any(path.exists() for path in unfinished)
    assert checkpoints.steps() == [3, 4]
    assert Checkpoints(tmp_path / "nowhere").latest() is None
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="could not be written to"):
        Checkpoints(tmp_path / "file" / "checkpoints").save(state_at(3), {})


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
    at = rng.randrange(max(1, len(content)))
    flipped = bytes([(content[at] if content else 0) ^ rng.randint(1, 255)])
    other, more = rng.randbytes(len(content)), rng.randbytes(rng.randint(1, 9))
    path.write_bytes(rng.choice([content[:at] + flipped + content[at + 1 :], content[:at], b"",
                                 bytes(len(content)), content + more, other]))  # fmt: skip
    if rng.random() < 0.15:
        path.unlink()
    return content


def damage_all(tmp_path, number, seed):
    """Damage files at random: what comes out is exact, or the one before with a warning."""
    rng, folder = random.Random(seed), tmp_path / "damaged"
    states = {step: state_at(step) for step in (1, 2)}
    for step, state in states.items():
        Checkpoints(folder).save(state, {"layers": 2}, loss=1 / step)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    outcomes = collections.Counter()
    for i in range(number):
        chosen = rng.sample(files, rng.choice([1, 1, 1, 2]))
        if i % 8 == 0:  # one of each, which orbax's names of files, not the seed's, leave to chance
            chosen = [rng.choice([f for f in files if f.parts[0] == str(step)]) for step in states]
        before = [(path, damage(folder / path, rng)) for path in chosen]
        checkpoints = Checkpoints(folder)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                saved = rng.choice([checkpoints.latest, checkpoints.best])()
                restored = saved.restore(states[1])
            except RnnjaxError:
                assert len({path.parts[0] for path in chosen}) == 2
                outcomes["none"] += 1
            else:
                assert saved.about == {"layers": 2}
                assert_same(restored, states[saved.step])
                assert saved.step == 2 or "2 is damaged" in str(caught[0].message)
                outcomes[saved.step] += 1
        for path, content in before:
            (folder / path).write_bytes(content)
    return outcomes


def test_damaged_files_are_noticed_before_they_are_read(tmp_path):
    assert damage_all(tmp_path, 30, seed=0).keys() == {1, 2, "none"}


@pytest.mark.slow
def test_five_thousand_damages(tmp_path):
    print(damage_all(tmp_path, 5000, seed=1))


def test_a_changed_about_is_an_error_of_its_checksum(checkpoints):
    checkpoints.save(state_at(1), {"layers": 2})
    path = checkpoints.path(1) / "about.json"
    path.write_text(path.read_text().replace('"layers": 2', '"layers": 3'))
    with pytest.raises(CheckpointError, match=r"about.json is damaged, or was changed"):
        checkpoints.at(1)


def test_a_step_is_saved_once_and_a_failed_save_keeps_the_rest(checkpoints, monkeypatch, caplog):
    checkpoints.save(state_at(1), {})
    with pytest.raises(CheckpointError, match="1 is there already; save each step once"):
        checkpoints.save(state_at(1), {})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_for_orbax(*args, **kwargs):
        logging.getLogger("absl").error("a traceback of a hundred lines")
        raise ValueError(f'RESOURCE_EXHAUSTED: "{"x" * 300}": No space left on device')

    for owner, name, call in ((os, "fsync", full), (ocp.Checkpointer, "save", full_for_orbax)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, call)
            with pytest.raises(CheckpointError, match=r"step 2 could .* device\);") as error:
                checkpoints.save(state_at(2), {})
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500
    assert not caplog.records
    assert sorted(path.name for path in checkpoints.directory.iterdir()) == ["1"]


@pytest.mark.skipif(sys.platform != "linux", reason="reserves no room there")
def test_room_for_a_checkpoint_is_there_before_orbax_writes(checkpoints, monkeypatch, capfd):
    """Or its threads print tracebacks, now and then; a limit of files stands for a full disk."""
    resource = pytest.importorskip("resource")
    checkpoints.save(state_at(1), {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.Checkpointer, "save", lambda *args, **options: pytest.fail("writes"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, before[1]))
        try:
            with pytest.raises(CheckpointError, match=r"step 2 could .*File too large\); the"):
                checkpoints.save(state_at(2), {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in checkpoints.directory.iterdir()) == ["1"]
    checkpoints.save(state_at(2), {})
    assert checkpoints.latest().step == 2
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="reserves no room there")
@pytest.mark.parametrize(("leaves", "size"), [(1, 0), (1, 20_000), (100, 3)])
def test_a_checkpoint_takes_no_more_room_than_was_there(checkpoints, monkeypatch, leaves, size):
    asked = []
    monkeypatch.setattr(os, "posix_fallocate", lambda *given: asked.append(given[2]))
    rng = np.random.default_rng(0)
    params = {f"a_name_of_some_length_{i}": rng.normal(size=size) for i in range(leaves)}
    state = TrainState(jnp.int32(3), params, (), (), jax.random.key(0))
    checkpoints.save(state, {})
    arrays = (checkpoints.path(3) / "arrays").rglob("*")
    assert sum(path.stat().st_blocks * 512 for path in arrays) < asked[0]


def test_runs_at_once_leave_the_log_of_all_threads_as_it_was():
    def second():
        with module._checkpointer():
            inside.set()
            ended.wait(9)

    inside, ended, thread = threading.Event(), threading.Event(), threading.Thread(target=second)
    with module._checkpointer():
        thread.start()
        inside.wait(0.2)
    ended.set()
    thread.join()
    assert not logging.getLogger("absl").disabled


def test_a_damaged_latest_checkpoint_is_set_aside_for_a_new_one(two):
    about = two.path(2) / "about.json"
    for number in (1, 2):
        about.write_bytes(about.read_bytes()[:100])
        damaged = about.read_bytes()
        with pytest.warns(UserWarning, match="2 is damaged .* another one is taken$"):
            assert int(two.latest().restore(state_at(0)).step) == 1
        # The run comes to the same step again, and what it writes there is whole.
        two.save(state_at(2), {})
        assert two.latest().step == 2
        aside = list(two.directory.glob("damaged-2-*/about.json"))
        assert len(aside) == number
        assert damaged in [path.read_bytes() for path in aside]
    # Where all are damaged, it is not begun anew.
    for step in (1, 2):
        (two.path(step) / "about.json").write_text("{")
    with (
        pytest.warns(UserWarning, match="[12] is damaged"),
        pytest.raises(CheckpointError, match="all 2 checkpoints in"),
    ):
        two.latest()


@pytest.mark.parametrize("name", ["about.json", "arrays"])
def test_a_damaged_checkpoint_takes_the_place_of_none(two, name):
    """What a run saves after it went on from the one before is kept."""
    two.save(state_at(5), {}, loss=0)
    path = two.path(5) / name
    file = path if path.is_file() else next(p for p in path.rglob("d/*") if p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-9])
    run = Checkpoints(two.directory, keep_last=1)
    with pytest.warns(UserWarning, match="5 is damaged"):
        assert run.latest().step == 2
    for step, steps in ((3, [1, 3, 5]), (4, [1, 4, 5])):
        run.save(state_at(step), {}, loss=step)
        assert run.steps() == steps


def test_what_cannot_be_read_now_is_no_damage(two, monkeypatch):
    """Too many open files, or no rights: nothing is moved, and it can be read later."""
    real = Path.read_bytes

    def refuse(path):
        if path.name == "about.json":
            return real(path)
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(CheckpointError, match="cannot be read now"):
            two.latest()
    assert (two.steps(), two.latest().step) == ([1, 2], 2)


def test_a_later_format_has_parameters_and_no_run_to_resume(checkpoints):
    checkpoints.save(state_at(1), {"a": 1})
    path = checkpoints.path(1) / "about.json"
    sealed, params = read_sealed(path), load_params(checkpoints.directory)
    assert sealed["format"] == 1
    others = [{**sealed, "format": 2}, {**sealed, "more": 1}, {**sealed, "format": "next"}]
    others += [{name: sealed[name] for name in ("leaves", "params", "files")}]
    for other in others:
        write_sealed(path, other)
        assert_same(load_params(checkpoints.directory), params)
        assert checkpoints.steps() == [checkpoints.latest().step] == [1]
        for resume in (lambda saved: saved.about, lambda saved: saved.restore(state_at(1))):
            with pytest.raises(CheckpointError, match=r"another version .* by load_params, or"):
                resume(checkpoints.latest())
    for missing in ("leaves", "params", "files"):
        write_sealed(path, {name: sealed[name] for name in sealed if name != missing})
        with pytest.raises(CheckpointError, match="of another version"):
            checkpoints.latest()


def test_a_run_of_0_1_0_is_read_from_now_on(tmp_path):
    """The first format had no number. Its parameters are read, and a run resumes from it."""
    params = load_params(RUN_OF_0_1_0)
    shapes = {"bias": (6,), "kernel": (1, 6), "recurrent_bias": (6,), "recurrent_kernel": (2, 6)}
    assert jax.tree.map(np.shape, params["cell"]) == shapes
    kernel, bias = params["head"]
    np.testing.assert_array_equal(kernel[:, 0], np.float32([0.7576339244842529, 1.25814950466156]))
    np.testing.assert_array_equal(bias, np.float32([0.007994486950337887]))
    total = sum(leaf.sum(dtype=np.float64) for leaf in map(np.asarray, jax.tree.leaves(params)))
    np.testing.assert_allclose(total, 0.35962165985256433, rtol=1e-12)
    saved = Checkpoints(RUN_OF_0_1_0 / "checkpoints").latest()
    assert (saved.step, saved.about["history"][-1]["epoch"]) == (8, 2)


@pytest.mark.parametrize("spared", ["", "about.json"])
def test_a_reader_takes_the_next_where_a_run_deletes_one(two, monkeypatch, spared):
    """Between the list of steps and the first file, or between two files: no word of damage."""
    reader, real = Checkpoints(two.directory), module.read_whole

    def read(path):
        if "1" in path.parts and path.name != spared:
            shutil.rmtree(two.path(1), ignore_errors=True)
        return real(path)

    saved, aside = reader.at(1), shutil.copytree(two.path(1), two.directory / "aside")
    monkeypatch.setattr(module, "read_whole", read)
    monkeypatch.setattr(module, "read_sealed", lambda path: read(path) and read_sealed(path))
    assert reader.best().step == 2
    shutil.copytree(aside, two.path(1))
    with pytest.raises(CheckpointError, match="1 was deleted while it was read"):
        reader.at(1)
    assert int(saved.restore(state_at(0)).step) == 1  # what was read stays
    assert two.steps() == [2]


def test_a_checkpoint_knows_its_own_step(two):
    """A folder that a backup renamed, or copied, is not taken for another step."""
    shutil.copytree(two.path(2), two.path(7))
    with pytest.warns(UserWarning, match=r"7 is damaged \(it is that of step 2, renamed\)"):
        assert two.latest().step == 2


def test_what_cannot_be_saved_or_read_is_told(checkpoints, tmp_path):
    state = state_at(1)
    for message, call in {
        r"state must be a TrainState, .* a tuple of": lambda: checkpoints.save(state.params, {}),
        "loss must be a number.* but is 'low'": lambda: checkpoints.save(state, {}, loss="low"),
        r"loss must be a number.* but is a list": lambda: checkpoints.save(state, {}, loss=[1.0]),
        "must be JSON": lambda: checkpoints.save(state, {"rate": np.float32(0.5)}),
        "state must hold arrays of numbers, but has one of": lambda: checkpoints.save(
            dataclasses.replace(state, carry="abc"), {}),
        r"keep_last must be .* is 0": lambda: Checkpoints(checkpoints.directory, keep_last=0),
        r"step must be a whole number, but is 1\.0": lambda: checkpoints.at(1.0),
        'step must be "best", "last" or a whole': lambda: load_params(tmp_path, step="newest"),
    }.items():  # fmt: skip
        with pytest.raises(InvalidInputError, match=message):
            call()
    assert checkpoints.steps() == []
    checkpoints.save(state, {1: "a"}, loss=np.float32(0.5))
    assert (checkpoints.best().step, checkpoints.latest().about) == (1, {"1": "a"})
    with pytest.raises(InvalidInputError, match=r"like must be a TrainState .*params reads"):
        checkpoints.latest().restore(state.params)


def test_parameters_alone_come_back_in_dicts_and_tuples(checkpoints):
    params = {
        "stack": state_at(1).params,
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
    # Any pytree may be, and then needs like.
    for step, params in enumerate((STACK.initial_carry((2,)), {0: jnp.ones(2)}), 1):
        state = TrainState.create(params, ADAM, key=jax.random.key(1))
        checkpoints.save(dataclasses.replace(state, step=jnp.int32(step)), {})
        with pytest.raises(CheckpointError, match=r"in containers of their own.*give like"):
            checkpoints.latest().params()
        assert_same(checkpoints.latest().params(params), params)


PARAMS = {"cell": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3).T, "none": None},
          "layers": (np.float32(2.0), np.zeros((0, 2), np.int8))}  # fmt: skip


def test_parameters_in_one_file(tmp_path, monkeypatch):
    def refused(*args):
        raise PermissionError(errno.EACCES, "Permission denied")

    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "net.safetensors"
    params = jax.tree.map(jnp.asarray, PARAMS | {"half": jnp.ones(2, jnp.bfloat16), "empty": {}})
    save_params(path, params)
    assert_same(load_params(path), params)
    assert_same(load_params(path, jax.eval_shape(lambda: params)), params)
    save_params(path, {"a": [np.ones(2, np.float32)], "carry": STACK.initial_carry((2,))})
    with pytest.raises(CheckpointError, match=r"not say how its arrays are nested.*; give like"):
        load_params(path)
    safetensors.save_file({"b": np.ones(1)}, path, {"rnnjax.tree": '{"a": "a", "b": "b"}'})
    with pytest.raises(CheckpointError, match="is damaged: it has no array 'a'"):
        load_params(path)
    safetensors.save_file({"b": np.ones(1)}, path, {"rnnjax.tree": "[" * 10_000})
    with pytest.raises(CheckpointError, match=r"is damaged \(maximum recursion depth .*; save it"):
        load_params(path)
    written = set()
    for _ in range(12):
        save_params(path, PARAMS)
        written.add(path.read_bytes())
    assert len(written) == 1
    assert set(safetensors.load_file(path)) == {"cell.kernel", "layers.0", "layers.1"}
    for given, message in (
        ({"a.b": np.ones(1), "a": {"b": np.ones(1)}}, "two arrays of params have the path a.b"),
        ({"w": jax.random.key(0)}, "of a type that safetensors has, but w is"),
        ({"w": np.array(["a"])}, "of a type that safetensors has, but w is"),
        (object(), "but are a object; of a result of fit give result.params"),
        ({"w": np.ones(2, np.complex64)}, "cast it, or rename it"),
        ({"__metadata__": np.ones(2)}, "cast it, or rename it"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            save_params(path, given)
    with pytest.raises(InvalidInputError, match=r"params must be known, .* traced .*; save what"):
        jax.jit(lambda params: save_params(path, params))(params)
    with pytest.raises(InvalidInputError, match=r"path must be the run_dir of a fit, .* is None"):
        load_params(None)
    with pytest.raises(CheckpointError, match=r"cell.kernel: model float64\[\], saved float32"):
        load_params(path, {"cell": {"kernel": 1.0, "none": None}, "layers": PARAMS["layers"]})
    with pytest.raises(InvalidInputError, match="is a file, and has no step 3"):
        load_params(path, step=3)
    np.savez(tmp_path / "archive.npz", np.ones(3))  # as torch.save and Keras write one
    with pytest.raises(RnnjaxError, match=r"it is an archive, .*; call rnnjax.interop.load$"):
        load_params(tmp_path / "archive.npz")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        with pytest.raises(
            CheckpointError, match=r"cannot be read: Permission denied; check the p"
        ):
            load_params(path)
    whole = path.read_bytes()
    for i in range(0, len(whole), 3):  # each byte of the header another one, and no more than it
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with contextlib.suppress(CheckpointError):
            load_params(path)
        path.write_bytes(whole[:i])
        with pytest.raises(CheckpointError, match=r"net\.safetensors"):
            load_params(path)


def test_numbers_of_another_order_and_width(checkpoints, tmp_path):
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
    path = tmp_path / "net.safetensors"
    for number in (np.float64(0.1), np.int64(2**40), np.uint64(2**40)):
        params = {"w": np.arange(3, dtype=np.float32), "n": number}
        save_params(path, params)
        for like in (None, params):
            with pytest.raises(
                CheckpointError, match=rf"net.safetensors holds n in {number.dtype}, w"
            ):
                load_params(path, like)
        with jax.enable_x64(True):
            read = load_params(path)
        assert (read["w"].dtype, read["n"].dtype) == (np.float32, number.dtype)
        assert np.asarray(read["n"]) == number
