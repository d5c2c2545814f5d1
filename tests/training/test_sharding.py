"""What may be divided, and which processes belong together."""

import jax
import numpy as np
import optax
import pytest
from cell_table import blank
from jax.experimental import multihost_utils

import rnnjax
from rnnjax import InvalidInputError
from rnnjax.errors import PeerEndedError
from rnnjax.training import (
    Sharding,
    StopRequest,
    TrainState,
    minibatches,
    processes,
    start_processes,
    use_cores,
)
from rnnjax.training.sharding import cores_for
from rnnjax.training.sources import divided


def test_what_does_not_fit_the_devices_is_told(monkeypatch):
    assert [dict(Sharding.over(n).mesh.shape) for n in (None, 3)] == [{"data": 4}, {"data": 3}]
    for given, message in (
        ({"data": 8}, "a mesh must take some of the 4 devices, at least 1, but takes 8; take an"),
        ({"data": 0}, "but takes 0"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            Sharding.over(**given)
    with pytest.raises(InvalidInputError, match=r"4 rows .* over 3 devices; take a multiple"):
        Sharding.over(3).rows(4)
    for names in (("rows",), ("data", "hidden")):
        with pytest.raises(InvalidInputError, match=r'the axes \("data",\), along .*, but has \('):
            Sharding(jax.make_mesh((1,) * len(names), names))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InvalidInputError, match="a mesh must take all of the 4 devices"):
        Sharding.over(2)
    assert Sharding.over().mesh.size == 4


def small_state(hidden_size):
    cell = rnnjax.LSTMCell(hidden_size)
    params = {"cell": blank(cell, 3), "out": {"bias": np.ones(5, np.float32)}}
    carry = cell.initial_carry((4,))
    return TrainState.create(params, optax.adam(1e-3), key=jax.random.key(1), carry=carry)


def test_a_carry_of_parameters_lies_as_these_and_one_without_rows_is_everywhere():
    """As a mean of them, though its first axes cannot be divided, or could."""
    params = {"kernel": np.ones((3, 4), np.float32), "out": np.ones((4, 6), np.float32)}
    carry = {"mean": params, "classes": np.ones(3), "rows": np.ones((8, 2)), "one": np.ones(())}
    state = TrainState.create(params, optax.adam(0.1), key=jax.random.key(0), carry=carry)
    # Over devices that are not there: shapes need none.
    laid = Sharding(jax.sharding.AbstractMesh((4,), ("data",))).of_state(state)
    assert laid.carry["mean"] == laid.params
    assert {each.spec for each in jax.tree.leaves((laid.params, laid.opt_state))} == {jax.P()}
    assert [laid.carry[name].spec for name in ("classes", "rows", "one")] == [
        jax.P(), jax.P("data"), jax.P()]  # fmt: skip


def test_putting_and_gathering_copy_so_that_donation_takes_nobody_elses_array():
    over, given = Sharding.over(1), small_state(4)
    state = over.put_state(given)
    whole = over.whole(state.params)
    jax.jit(lambda x: x, donate_argnums=0)(state)
    jax.tree.map(np.testing.assert_array_equal, whole, given.params)


def test_what_lies_right_is_left_where_it_is_and_what_has_no_rows_is_everywhere():
    sharding = Sharding.over(2)
    laid = sharding.put_batches({"xs": np.arange(8).reshape(2, 4), "rate": np.arange(2)})
    assert [leaf.addressable_shards[1].data.tolist() for leaf in jax.tree.leaves(laid)] == [
        [0, 1], [[2, 3], [6, 7]]]  # fmt: skip
    assert sharding.put_batches(laid)["xs"] is laid["xs"]
    state = sharding.put_state(small_state(4))
    assert sharding.put_state(state).carry.cell is state.carry.cell


def test_small_networks_stay_on_one_core_and_large_kernels_with_few_rows_too():
    sizes = {(8, 32): 1, (64, 15): 1, (64, 16): 4, (512, 16): 2, (512, 15): 1, (512, 27): 3}
    for (hidden, rows), cores in (sizes | {(700, 12): 1}).items():
        kernel = jax.ShapeDtypeStruct((hidden, 4 * hidden), np.float32)
        assert cores_for({"kernel": kernel, "rate": 0.5}, rows) == cores
    assert cores_for({}, 4) == 1
    with pytest.raises(InvalidInputError, match='batches of sharding="cores" must be those of min'):
        divided(np.ones((2, 64, 3)), "cores", {}, print)


@pytest.mark.parametrize(("devices", "processes"), [(1, 1), (4, 2)])
def test_that_one_device_is_used_is_said(devices, processes, monkeypatch):
    there, said = jax.local_devices()[:devices], []
    monkeypatch.setattr(jax, "local_devices", lambda: there)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    batches = minibatches(np.ones((64, 3)), 16, axis=0)
    assert divided(batches, "cores", {"w": np.ones((512, 512))}, said.append) == (batches, None)
    assert ["has no second core of a CPU" in line for line in said] == [True]


def test_jax_is_told_of_the_cores_unless_it_was_or_has_no_cpu(monkeypatch):
    told = []
    monkeypatch.setattr(jax.config, "update", lambda *given: told.append(given))
    assert use_cores() == 4
    monkeypatch.setattr(type(jax.config), "values", {"jax_num_cpu_devices": -1})
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    assert use_cores() == 4
    assert told == []
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2, 3}, raising=False)
    use_cores()
    assert told == [("jax_num_cpu_devices", 3)]

    def devices(backend=None):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", devices)
    assert use_cores() == 1


# ---- processes that are not there


def test_rows_that_both_have_are_told_unless_all_are_alike(monkeypatch):
    more = np.array([0, 0], np.uint32)  # the second process has the same rows
    monkeypatch.setattr(
        multihost_utils, "process_allgather", lambda ours: np.stack([ours, ours + more])
    )
    sharding, rows = Sharding.over(), [np.arange(6.0).reshape(1, 6)]
    with pytest.raises(InvalidInputError, match="those of processes 0 and 1 are the same"):
        sharding._check_shares(rows)
    sharding._check_shares([np.ones((1, 6)), np.zeros((1, 0)), np.ones((1, 1))])
    more[:] = 1, 0  # and now others
    sharding._check_shares(rows)


@pytest.mark.parametrize("number", [1, 2])
def test_only_a_message_of_collectives_tells_that_a_process_ended(monkeypatch, number):
    left = []
    monkeypatch.setattr("atexit.register", left.append)
    monkeypatch.setattr(jax, "process_count", lambda: number)
    memory = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
    told = RuntimeError("Gloo: read"), ValueError("a shape"), InvalidInputError("Gloo"), memory
    for error in told:
        lost = number == 2 and "Gloo: read" in str(error)
        with pytest.raises(Exception, match=r".") as caught, processes.ending_with_peers():
            raise error
        assert (caught.type is PeerEndedError) == lost
        assert lost or caught.value is error
    assert len(left) == number - 1


def test_by_a_signal_the_first_process_ends_last(monkeypatch):
    done = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("time.sleep", lambda seconds: done.append("waits"))
    monkeypatch.setattr("signal.raise_signal", done.append)
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        stop = StopRequest()
        stop.raise_again()
        stop.signal = 15
        stop.raise_again()
    assert done == ["waits", 15, 15]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost:1", 2), "'num_processes': 2} came, and JAX says: The process id of"),
        ((None, 2, 0), "'process_id': 0} came, and JAX says: coordinator_address should be"),
        (("localhost", 2, 0), "start all of them alike"),
        (("localhost:1", 2, 2), "'process_id': 2} came, and JAX says: process_id and num_pro"),
    ],
)
def test_processes_that_do_not_belong_together(given, message, monkeypatch):
    # As JAX looks upon a process in which it was not used.
    monkeypatch.setattr(jax._src.xla_bridge, "backends_are_initialized", lambda: False)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(InvalidInputError, match=message):
        start_processes(*given)


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
