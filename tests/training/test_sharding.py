"""Training over several devices and processes gives the numbers of one device."""

import collections
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils

import rnnjax
from rnnjax import CheckpointError, InvalidInputError
from rnnjax.training import (
    Checkpoints,
    Sharding,
    TrainState,
    keras_adam,
    start_processes,
)
from rnnjax.training.processes import agreed_signal, from_first

SCRIPT = Path(__file__).with_name("sharded_run.py")


@pytest.fixture(scope="module")
def start(environment):
    def start(folder, devices, *arguments, flags=""):
        # What comes from the cache is not compiled, and so leaves no text behind; and of two
        # processes, one that has not to compile leaves the other behind at their first meeting.
        own = environment(devices, JAX_ENABLE_COMPILATION_CACHE="false")
        own["XLA_FLAGS"] += f" {flags}"
        return subprocess.Popen(
            [sys.executable, "-W", "error", str(SCRIPT), str(folder), *arguments],
            env=own,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    return start


def finish(*processes, timeout=200):
    """Wait for all; shows what each printed if one failed or hung, and ends those that are left."""
    outputs = []
    try:
        for process in processes:
            try:
                output, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                output = f"hung: {process.communicate()[0]}"
            outputs.append(f"status {process.returncode}: {output}")
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)


def on_eight(start, folder, role):
    """What one process saw on one device and on eight; and the folder with its checkpoint."""
    dump = f"--xla_dump_to={folder / 'hlo'} --xla_dump_hlo_module_re=.*train_steps.*"
    finish(start(folder, 8, role, flags=dump))
    return folder, json.loads((folder / f"{role}-0.json").read_text())


@pytest.fixture(scope="module")
def eight(tmp_path_factory, start):
    return on_eight(start, tmp_path_factory.mktemp("eight"), "eight")


@pytest.fixture(scope="module")
def pair(eight, start, free_port):
    """What two processes with two devices each saw."""
    folder, _ = eight
    where = f"localhost:{free_port()}"
    finish(*(start(folder, 2, "pair", where, str(index)) for index in range(2)))
    return [json.loads((folder / f"pair-{index}.json").read_text()) for index in range(2)]


def largest_difference(losses, expected):
    assert len(losses) == len(expected) == 10
    assert expected[-1] < 0.9 * expected[0]  # it did learn something
    return np.abs(np.array(losses) - expected).max()


def check_losses(results, **modes):
    for mesh, mode in modes.items():
        assert largest_difference(results[f"{mesh[1:]} {mode}"], results[f"1 {mode}"]) < 1e-5


def test_eight_devices_have_the_losses_of_one(eight):
    check_losses(eight[1], _8x1="carry", _4x2="carry")


@pytest.mark.slow
def test_eight_devices_have_the_losses_of_one_without_a_carry_too(tmp_path, start):
    folder, results = on_eight(start, tmp_path, "others")
    check_losses(results, _8x1="windows", _4x2="windows")
    check_programs(folder)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(eight, pair):
    losses, others = (results["2x2 carry"] for results in pair)
    assert largest_difference(losses, eight[1]["1 carry"]) < 1e-5
    assert losses == others
    for each in pair:
        check_shares(each["parts"], 12)


def test_each_device_holds_its_share_alone(eight):
    check_shares(eight[1]["parts"], 6)


def check_shares(shapes, rows):
    """A device holds half of the parameters and their means, and its rows of the carry."""
    assert shapes["['params']['stack'][0]['kernel']"] == [13, 4 * 16 // 2]
    assert shapes["['params']['stack'][0]['recurrent_kernel']"] == [16, 4 * 16 // 2]
    assert shapes["['params']['stack'][1]['recurrent_bias']"] == [3 * 16 // 2]
    assert shapes["['params']['kernel']"] == [16 // 2, 13]
    assert shapes["['params']['bias']"] == [13]
    assert shapes["['carry'][0].cell"] == [rows, 16]
    for name, shape in shapes.items():
        if name.startswith("['opt_state'][1].mu"):
            assert shape == shapes[name.replace("['opt_state'][1].mu", "['params']")]
            assert shape == shapes[name.replace(".mu", ".nu")]


def products(text):
    """How many products have each shape (the smaller side of a gradient may come first)."""
    shapes = re.findall(r"= f32\[(\d+),(\d+)\]\S* dot\(", text)
    return collections.Counter(tuple(sorted(map(int, shape))) for shape in shapes)


def messages(text):
    kinds = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    return collections.Counter(re.findall(kinds, text))


def test_the_compiled_program_divides_the_work(eight):
    check_programs(eight[0])


def check_programs(folder):
    """From the shapes of the products that one device computes, and from what it sends."""
    paths = sorted((folder / "hlo").glob("*train_steps*after_optimizations.txt"))
    texts = [path.read_text() for path in paths]
    one, data, hidden = texts  # on one device, 8x1 and 4x2, in this order
    gradients = {(13, 16): 1, (16, 48): 2, (16, 64): 1}
    # A step's rows are 24, those of all steps 120.
    rows = {(16, 24): 2, (24, 48): 1, (24, 64): 1, (13, 120): 1, (16, 120): 2, (48, 120): 1}
    assert products(one) == gradients | rows
    assert not messages(one)
    rows = {(3, 16): 2, (3, 48): 1, (3, 64): 1, (13, 15): 1, (15, 16): 2, (15, 48): 1}
    assert products(data) == gradients | rows
    assert messages(data) == {"all-reduce": 2}  # the weights of the rows, and the gradients
    # A fourth of the rows, and of all kernels the half.
    gradients = {(8, 13): 1, (16, 24): 2, (16, 32): 1}
    rows = {(6, 16): 2, (6, 24): 1, (6, 32): 1, (13, 30): 1, (16, 30): 1, (24, 30): 1}
    assert products(hidden) == gradients | rows | {(8, 30): 1}
    assert {"all-reduce", "all-gather", "all-to-all", "collective-permute"} == set(messages(hidden))


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_fits_two_processes(eight, pair):
    folder, _ = eight
    saved = np.load(folder / "saved.npz")
    for index in range(2):
        restored = np.load(folder / f"restored-{index}.npz")
        assert set(restored) == set(saved)
        for name in saved:
            assert restored[name].tobytes() == saved[name].tobytes(), name
    assert pair[0]["config"] == pair[1]["config"] == {"hidden_size": 16}


def test_a_checkpoint_of_eight_devices_fits_one(eight):
    folder, _ = eight
    saved = np.load(folder / "saved.npz")
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    about = json.loads((checkpoints.path(10) / "about.json").read_text())["value"]
    state = checkpoints.latest().restore(state_like(about["arrays"]))
    named = jax.tree_util.tree_leaves_with_path({"params": state.params, "carry": state.carry})
    for path, leaf in named:
        assert np.asarray(leaf).tobytes() == saved[jax.tree_util.keystr(path)].tobytes()


@pytest.mark.slow
def test_two_processes_write_one_checkpoint_and_fail_alike(eight, pair):
    folder, _ = eight
    first, second = (np.load(folder / f"trained-{index}.npz") for index in range(2))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    checkpoints = Checkpoints(folder / "pair", read_only=True)
    assert checkpoints.steps() == [10]
    about = json.loads((checkpoints.path(10) / "about.json").read_text())["value"]
    state = checkpoints.latest().restore(state_like(about["arrays"]))
    name = "['params']['stack'][1]['recurrent_kernel']"
    kernel = state.params["stack"][1]["recurrent_kernel"]
    assert np.asarray(kernel).tobytes() == first[name].tobytes()
    for results in pair:
        assert "there is no checkpoint of step 7" in results["missing"]


def state_like(arrays):
    """A state of the shapes that a checkpoint of `sharded_run` has."""
    stack = rnnjax.Stack([rnnjax.LSTMCell(16), rnnjax.GRUCell(16)])

    def new():
        params = {
            "stack": stack.init(jax.random.key(0), 13),
            "kernel": jax.numpy.zeros((16, 13)),
            "bias": jax.numpy.zeros(13),
        }
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), keras_adam(1e-2))
        carry = stack.initial_carry((24,)) if "['carry'][0].hidden" in arrays else ()
        return TrainState.create(params, optimizer, key=jax.random.key(1), carry=carry)

    return jax.eval_shape(new)


# ---- on one device


def test_what_does_not_fit_the_devices_is_told():
    with pytest.raises(InvalidInputError, match="a mesh of 8 x 1 must take some of the"):
        Sharding.over(8)
    with pytest.raises(InvalidInputError, match=r"a mesh of [01] x 3 must take all of the"):
        Sharding.over(hidden=3)
    with pytest.raises(InvalidInputError, match="a mesh of 0 x 1 must take some of"):
        Sharding.over(0)
    with pytest.raises(InvalidInputError, match=r'the axes \("data", "hidden"\), but has'):
        Sharding(jax.make_mesh((1,), ("rows",)))


def abstract(data, hidden, **options):
    """Over devices that are not there: shapes and errors need none."""
    mesh = jax.sharding.AbstractMesh((data, hidden), ("data", "hidden"))
    return Sharding(mesh, **options)


def small_state(hidden_size, rows=4):
    cell = rnnjax.LSTMCell(hidden_size)
    drawn = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), 3)
    params = {"cell": drawn, "out": {"bias": np.zeros(5, np.float32)}}
    carry = cell.initial_carry((rows,))
    return TrainState.create(params, optax.adam(1e-3), key=jax.random.key(1), carry=carry)


def test_rows_and_units_that_cannot_be_divided_are_named():
    with pytest.raises(InvalidInputError, match="a batch of 4 rows cannot be divided over 3 dev"):
        abstract(3, 1).of_state(small_state(4))
    with pytest.raises(InvalidInputError, match=r"out.bias has 5 along axis 0, which cannot be"):
        abstract(1, 2).of_state(small_state(4))
    with pytest.raises(InvalidInputError, match=r"a batch of 4 rows .* a multiple of 3 rows"):
        abstract(3, 1).rows(4)


def test_the_optimiser_lies_as_its_parameters_and_rules_decide():
    def columns(names, shape):
        return len(shape) - 1 if names[0] == "cell" else None

    laid = abstract(2, 2, divide=columns).of_state(small_state(6))
    assert laid.params["cell"]["kernel"].spec == jax.P(None, "hidden")
    assert laid.params["cell"]["bias"].spec == jax.P("hidden")
    assert laid.params["out"]["bias"].spec == jax.P()
    mean, _ = laid.opt_state
    assert jax.tree.map(lambda s: s.spec, mean.mu) == jax.tree.map(lambda s: s.spec, laid.params)
    assert mean.count.spec == jax.P()
    assert laid.carry.hidden.spec == jax.P("data")


def test_putting_copies_so_that_donation_takes_nobody_elses_array():
    state = small_state(4)
    laid = Sharding.over(1).put_state(state)
    jax.tree.map(lambda leaf: leaf.delete(), laid)
    assert float(state.params["cell"]["bias"].sum()) == 4


def test_the_checkpoints_of_a_sharded_state(tmp_path):
    state, sharding = small_state(4), Sharding.over(1)
    shared = Checkpoints(tmp_path)
    assert shared.latest() is None
    shared.save(sharding.whole(sharding.put_state(state)), {"a": 1}, loss=0.5)
    assert (shared.latest().step, shared.best().step, shared.steps()) == (0, 0, [0])
    restored = sharding.put_state(shared.latest().restore(state))
    assert jax.tree.leaves(restored.params)[0].sharding.mesh == sharding.mesh
    for a, b in ((restored.params, state.params), (restored.carry, state.carry)):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.random.bits(restored.key) == jax.random.bits(state.key)
    with pytest.raises(CheckpointError, match="there is no checkpoint of step 3"):
        shared.at(3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost:1", 2), "'num_processes': 2} came, and JAX says: The process id of"),
        ((None, 2, 0), "'process_id': 0} came, and JAX says: coordinator_address should be"),
        (("localhost", 2, 0), "start all of them alike"),
        (("localhost:1", 2, 2), "'process_id': 2} came, and JAX says: process_id and num_pro"),
    ],
)
def test_processes_that_do_not_belong_together(given, message, jax_not_begun):
    with pytest.raises(InvalidInputError, match=message):
        start_processes(*given)


@pytest.fixture
def jax_not_begun(monkeypatch):
    """As JAX looks upon a process in which it was not used."""
    monkeypatch.setattr(jax._src.xla_bridge, "backends_are_initialized", lambda: False)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)


def test_a_process_that_nobody_told_of_others_is_alone(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    start_processes()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(InvalidInputError, match=r"{'OMPI_COMM_WORLD_SIZE': '2'} came, and JAX say"):
        start_processes()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    start_processes()


def test_processes_from_the_environment(monkeypatch):
    told = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: told.append(given))
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "somewhere:12")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    start_processes(local_device_ids=[1])
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    start_processes(process_id=2)
    both = {"coordinator_address": "somewhere:12", "num_processes": 3}
    assert told == [
        both | {"process_id": None, "local_device_ids": [1]},  # JAX finds out
        both | {"process_id": 2, "cluster_detection_method": "deactivate"},
    ]
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(InvalidInputError, match="'process_id': 'first'} came, and JAX says: inv"):
        start_processes()


def test_an_error_of_the_first_process_is_its_own():
    def fail():
        raise CheckpointError("no room")

    with pytest.raises(CheckpointError, match="no room"):
        from_first(fail)


def test_work_for_all_processes_asks_none_of_them(monkeypatch):
    """Or the others, which do not call it, would take its questions for answers."""
    asked = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "broadcast_one_to_all", lambda value: asked.append(value) or value
    )
    assert from_first(lambda: [from_first(lambda: 1), agreed_signal(15)]) == [1, 15]
    assert len(asked) == 2  # how long the answer is, and the answer
