"""A program of its own for `test_sharding`: the number of devices is settled when JAX begins.

``python sharded_run.py FOLDER eight|others`` or ``FOLDER pair COORDINATOR PROCESS``. The losses and
whatever else was seen go into the folder.
"""

import json
import logging
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from rnnjax.training import (
    Checkpoints,
    Sharding,
    TrainState,
    keras_adam,
    make_train_steps,
    start_processes,
)

FOLDER, ROLE = Path(sys.argv[1]), sys.argv[2]
STEPS, ROWS, TIME, SIZE, HIDDEN = 10, 24, 5, 13, 16
FIRST = 4  # steps of the first of two dispatches
STACK = rnnjax.Stack([rnnjax.LSTMCell(HIDDEN), rnnjax.GRUCell(HIDDEN)])
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), keras_adam(1e-2))


def divide(names, shape):
    return len(shape) - 1 if names[0] == "stack" else {"kernel": 0}.get(names[0])


def make_loss(carry_state):
    def loss_fn(params, carry, batch, key):
        traced.append(carry_state)
        start = carry if carry_state else STACK.initial_carry((ROWS,))
        xs = rnnjax.OneHot(batch["inputs"].T, SIZE)
        after, ys = rnnjax.unroll(STACK, params["stack"], xs, start)
        ys = ys * jax.random.bernoulli(key, 0.9, ys.shape)  # the same whatever the devices
        logits = ys @ params["kernel"] + params["bias"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"].T)
        loss = jnp.average(losses.mean(axis=0), weights=batch["weights"])
        return loss, (after if carry_state else (), {"weight": batch["weights"].sum()})

    return loss_fn


def new_state(carry_state):
    """Parameters from NumPy: JAX would compile a program for each, which are not cached here."""
    rng = np.random.default_rng(1)
    shapes = {
        "stack": jax.eval_shape(lambda: STACK.init(jax.random.key(0), SIZE)),
        "kernel": jax.ShapeDtypeStruct((HIDDEN, SIZE), np.float32),
        "bias": jax.ShapeDtypeStruct((SIZE,), np.float32),
    }
    params = jax.tree.map(
        lambda leaf: jax.device_put(
            rng.standard_normal(leaf.shape, np.float32) / np.sqrt(np.float32(leaf.shape[0]))
        ),
        shapes,
    )
    carry = STACK.initial_carry((ROWS,)) if carry_state else ()
    return TrainState.create(params, OPTIMIZER, key=jax.random.key(1), carry=carry)


def whole_batches():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, SIZE, (STEPS, ROWS, TIME + 1)).cumsum(axis=2) % SIZE // 2
    weights = np.ones((STEPS, ROWS), np.float32)
    weights[::7, ROWS // 2 :] = 0
    return {"inputs": ids[..., :-1], "targets": ids[..., 1:], "weights": weights}


def run(name, sharding, carry_state):
    """Train in two dispatches; returns the last state."""
    state, batches = new_state(carry_state), whole_batches()
    train_steps = make_train_steps(make_loss(carry_state), OPTIMIZER, sharding)
    if sharding is not None:
        rows = sharding.rows(ROWS)
        state = sharding.put_state(state)
        batches = sharding.put_batches({n: array[:, rows] for n, array in batches.items()})
    laid = jax.tree.map(lambda leaf: leaf.sharding, state)
    given = state
    compiled.clear()
    state, first = train_steps(state, batches, 0, FIRST)
    assert jax.tree.leaves(given.params)[0].is_deleted(), "the state was not donated"
    assert len(compiled) == 1, compiled
    traces = len(traced)
    state, then = train_steps(state, batches, FIRST, STEPS)
    assert len(traced) == traces, "the second dispatch was traced again"
    assert len(compiled) == 1, "the second dispatch was compiled again"
    if sharding is not None:
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == laid, "the state moved"
    losses = np.concatenate([np.asarray(first["loss"])[:FIRST], np.asarray(then["loss"])[FIRST:]])
    results[f"{name} {'carry' if carry_state else 'windows'}"] = losses.tolist()
    return state


def parts(tree):
    """The shapes that one device has of each array."""
    return {
        jax.tree_util.keystr(path): list(leaf.addressable_shards[0].data.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def keep_arrays(name, tree):
    """What each process has whole, as files that the test compares."""
    leaves = {
        jax.tree_util.keystr(p): np.asarray(leaf)
        for p, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    np.savez(FOLDER / name, **leaves)


def arrays_of(state):
    return {"params": state.params, "opt_state": state.opt_state, "carry": state.carry}


class Compilations(logging.Handler):
    def emit(self, record):
        text = record.getMessage()
        if "Finished XLA compilation" in text and "train_steps" in text:
            compiled.append(text)


results, traced, compiled = {}, [], []
logging.getLogger("jax").addHandler(Compilations())
logging.getLogger("jax").propagate = False
jax.config.update("jax_log_compiles", True)

index = 0
if ROLE == "pair":
    index = int(sys.argv[4])
    start_processes(sys.argv[3], 2, index)
    assert len(jax.devices()) == 2 * len(jax.local_devices()) == 4
if ROLE in ("eight", "others"):
    # With a carry, or with windows: compiling takes the time.
    run("1", None, ROLE == "eight")
    for mesh in ((8, 1), (4, 2)):
        sharding = Sharding.over(*mesh, divide=divide)
        state = run(f"{mesh[0]}x{mesh[1]}", sharding, ROLE == "eight")
if ROLE == "eight":
    results["parts"] = parts(arrays_of(state))
    whole = sharding.whole(state)
    keep_arrays("saved.npz", arrays_of(whole))
    Checkpoints(FOLDER / "checkpoints").save(whole, {"hidden_size": HIDDEN})
if ROLE == "pair":
    # Half of the rows in each process.
    sharding = Sharding.over(hidden=2, divide=divide)
    trained = run("2x2", sharding, carry_state=True)
    saved = Checkpoints(FOLDER / "checkpoints").latest()
    state = sharding.put_state(saved.restore(new_state(carry_state=True)))
    keep_arrays(f"restored-{index}.npz", arrays_of(sharding.whole(state)))
    results["parts"] = parts(arrays_of(state))
    results["config"] = saved.about
    both, whole = Checkpoints(FOLDER / "pair"), sharding.whole(trained)
    keep_arrays(f"trained-{index}.npz", arrays_of(whole))
    both.save(whole, {})
    try:
        both.at(7)
    except rnnjax.RnnjaxError as error:
        results["missing"] = str(error)
(FOLDER / f"{ROLE}-{index}.json").write_text(json.dumps(results))
