"""Training over several devices gives the numbers of one."""

import collections
import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.training import Progress, Sharding, Silent, fit, keras_adam, minibatches, step

STEPS, ROWS, TIME, SIZE, HIDDEN = 10, 24, 5, 13, 16
NAMES = "inputs", "targets", "mask", "resets"
FIRST = 4  # steps of the first of two dispatches
STACK = rnnjax.Stack([rnnjax.LSTMCell(HIDDEN), rnnjax.GRUCell(HIDDEN)])
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), keras_adam(1e-2))


def new_state(random_like):
    def params():
        stack = STACK.init(jax.random.key(0), SIZE)
        return {"stack": stack, "kernel": jnp.zeros((HIDDEN, SIZE)), "bias": jnp.zeros(SIZE)}

    carry = STACK.initial_carry((ROWS,))
    return step.TrainState.create(
        random_like(params, 1, scale=0.3), OPTIMIZER, key=jax.random.key(1), carry=carry
    )


def whole_batches():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, SIZE, (STEPS, ROWS, TIME + 1)).cumsum(axis=2) % SIZE // 2
    mask, resets = (rng.random((STEPS, ROWS, TIME)) < share for share in (0.8, 0.2))
    mask[::7, ROWS // 2 :] = False
    return dict(zip(NAMES, (ids[..., :-1], ids[..., 1:], mask, resets), strict=True))


class Run:
    """Two dispatches over some devices; with the last state and the compiled program."""

    def __init__(self, sharding, state):
        programs, traces, jit = [], [], jax.jit

        def loss_fn(params, carry, batch, key):
            traces.append(1)
            inputs, targets, mask, resets = (batch[name].T for name in NAMES)
            xs = rnnjax.OneHot(inputs, SIZE)
            carry, ys = rnnjax.unroll(STACK, params["stack"], xs, carry, mask=mask, resets=resets)
            ys = ys * jax.random.bernoulli(key, 0.9, ys.shape)  # the same whatever the devices
            logits = ys @ params["kernel"] + params["bias"]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            # A mean over what is valid: no part of the rows knows by what to divide.
            return (losses * mask).sum() / mask.sum(), (carry, {})

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                jax, "jit", lambda *f, **how: programs.append(jit(*f, **how)) or programs[0]
            )
            train_steps = step.make_train_steps(loss_fn, OPTIMIZER, sharding)
        batches, self.sharding = whole_batches(), sharding
        if sharding is not None:
            rows = sharding.rows(ROWS)
            state = sharding.put_state(state)
            batches = sharding.put_batches({n: array[:, rows] for n, array in batches.items()})
        laid, given = jax.tree.map(lambda leaf: leaf.sharding, state), state
        state, first = train_steps(state, batches, 0, FIRST)
        assert jax.tree.leaves(given.params)[0].is_deleted(), "the state was not donated"
        traced = len(traces)
        self.state, then = train_steps(state, batches, FIRST, STEPS)
        self.whole = self.state if sharding is None else sharding.whole(self.state)
        if sharding is not None:  # else it is compiled once more
            assert jax.tree.map(lambda leaf: leaf.sharding, self.state) == laid, "the state moved"
        self.losses = [*first["loss"][:FIRST].tolist(), *then["loss"][FIRST:].tolist()]
        with contextlib.nullcontext() if sharding is None else jax.set_mesh(sharding.mesh):
            lowered = programs[0].lower(self.state, batches, np.int32(0), np.int32(STEPS))
            assert len(traces) == traced, "the second dispatch was traced again"
            self.program = lowered.compile().as_text()


@pytest.fixture(scope="module")
def runs(random_like):
    return [Run(sharding, new_state(random_like)) for sharding in (None, Sharding.over(4))]


def test_four_devices_have_the_losses_of_one(runs):
    one, four = runs
    assert one.losses[-1] < 0.9 * one.losses[0]  # it did learn something
    np.testing.assert_allclose(four.losses, one.losses, rtol=0, atol=1e-5)
    assert len(four.whole.params["kernel"].devices()) == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4),
                 four.whole.params, one.state.params)  # fmt: skip


def test_each_device_holds_its_rows_and_all_parameters(runs):
    state = runs[1].state
    shapes = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data.shape, state)
    assert (shapes.params["kernel"], shapes.params["bias"]) == ((16, 13), (13,))
    assert shapes.opt_state[1].mu == shapes.opt_state[1].nu == shapes.params
    assert shapes.carry[0].cell == (ROWS // 4, 16)


def products(run):
    """How many products have each shape (the smaller side of a gradient may come first)."""
    shapes = re.findall(r"= f32\[(\d+),(\d+)\]\S* dot\(", run.program)
    return collections.Counter(tuple(sorted(map(int, shape))) for shape in shapes)


def messages(run):
    kinds = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    return collections.Counter(re.findall(kinds, run.program))


def test_the_compiled_program_divides_the_work(runs):
    """From the shapes of the products that one device computes, and from what it sends."""
    one, data = runs
    gradients = {(13, 16): 1, (16, 48): 2, (16, 64): 1}
    for run, n in ((one, 24), (data, 6)):  # the rows of a step, of which there are five
        rows = {(n, 16): 2, (n, 48): 1, (n, 64): 1, (13, 5 * n): 1, (16, 5 * n): 2, (48, 5 * n): 1}
        assert products(run) == gradients | {tuple(sorted(at)): count for at, count in rows.items()}
    assert not messages(one)
    assert messages(data) == {"all-reduce": 2}  # how many count, and the gradients


def test_the_cores_are_used_where_it_pays(capsys):
    data = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)

    def fitted(sharding, progress, rows=16):
        return fit(lambda params, batch, key: (jnp.tanh(batch @ params) ** 2).mean(),
                   jnp.eye(128), optax.sgd(0.1), minibatches(data, rows, axis=0), 2,
                   key=jax.random.key(0), hooks=[progress], sharding=sharding)  # fmt: skip

    four, one = fitted("cores", Silent()), fitted(None, Silent())
    assert [len(run.state.params.sharding.device_set) for run in (four, one)] == [4, 1]
    np.testing.assert_allclose(four.params, one.params, rtol=1e-5, atol=1e-6)
    fitted("cores", Progress(), rows=1)
    assert "on one device, because" in capsys.readouterr().out
