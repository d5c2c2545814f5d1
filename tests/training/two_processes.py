"""A program of its own for `test_processes`: one of two processes, or the only one.

``python two_processes.py FOLDER SCENE COORDINATOR PROCESS``; without a coordinator it is alone.
What was seen goes into the folder.
"""

import functools
import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnnjax.training import (
    Checkpoints,
    EarlyStopping,
    Sharding,
    Silent,
    TrainState,
    fit,
    load_params,
    minibatches,
    processes,
    start_processes,
)

FOLDER, SCENE, WHERE, INDEX = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
ROWS = 8
processes._BYTES_AT_ONCE = 1000  # so that what one reads comes in parts


def loss_fn(params, batch, key):
    return jnp.mean((batch["xs"] @ params - batch["ys"]) ** 2)


def data():
    xs = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    return minibatches({"xs": xs, "ys": xs.sum(1)}, ROWS, axis=0)


def measured(params):
    return {"validation_loss": float(jnp.sum(params**2)) + 100 * INDEX}


def of_rows(epoch, rows):
    """Return the rows of a process, as a user's function reads them."""
    return jax.tree.map(lambda x: x[:, rows], data()(epoch))


def stream_of_rows(epoch, rows):
    return (jax.tree.map(lambda x: x[rows], batch) for batch in stream(epoch))


def train(folder, epochs, *, loss=loss_fn, batches=None, sharding=None, **options):
    """With the rows over both processes, or all of them on each."""
    batches = data() if batches is None else batches
    options = {"evaluate": measured, "hooks": [Silent()], **options}
    return fit(
        loss, jnp.zeros(3), optax.adam(0.05), batches, epochs, key=jax.random.key(0),
        run_dir=FOLDER / folder, sharding=sharding, **options,
    )  # fmt: skip


def told(result):
    losses = [entry["loss"] for entry in result.history]
    return {"losses": losses, "params": np.asarray(result.params).tolist(), "best": result.best}


def all_scenes():
    """What both processes have to see alike, with the rows divided and without."""
    state = TrainState.create(
        {"w": jnp.arange(5.0)}, optax.sgd(0.1), key=jax.random.key(0), carry=jnp.full(3, -0.0)
    )
    if INDEX:  # what it has itself is not what it restores
        state = jax.tree.map(lambda x: x + x if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
    seen = {}
    checkpoints = Checkpoints(FOLDER / "checkpoints")
    checkpoints.save(state, {"a": 1})
    restored = checkpoints.latest().restore(state)
    seen["restored"] = [restored.params["w"].tolist(), int(restored.step)]
    seen["parameters"] = load_params(FOLDER / "checkpoints")["w"].tolist()
    over = Sharding.over()
    by_hand = functools.partial(of_rows, rows=over.rows(ROWS))
    for name, options in {
        "divided": {"sharding": over},
        "by hand": {"sharding": over, "batches": by_hand},
        "whole": {},
    }.items():
        seen[name] = [told(train(name, epochs, **options)) for epochs in (2, 4)]  # and goes on
        seen[f"{name} loaded"] = load_params(FOLDER / name, step="last").tolist()
    # Batch after batch, with data to measure on, until a hook of one process ends the run.
    sharding = Sharding.over()
    rows = sharding.rows(ROWS)
    last = jax.process_count() - 1 == INDEX

    def ends(state, summary):
        return last and summary["epoch"] == 2

    seen["stream"] = told(
        train("stream", 4, batches=functools.partial(stream_of_rows, rows=rows), sharding=sharding,
              evaluate=of_rows(0, rows), hooks=[Silent(), EarlyStopping(9), ends])
    )  # fmt: skip
    for name, call in {
        "another loss": lambda: train("whole", 4, loss=lambda *args: 2 * loss_fn(*args)),
        "other data": lambda: train("other", 1, batches=jax.tree.map(plus_index, data()(0))),
        "epochs": lambda: train("whole", 5 + INDEX),
        "raises": lambda: train("raises", 1, evaluate=on_the_first_alone),
        "unread": lambda: train("unread", 1, batches=on_the_first_alone),
        "doubled": lambda: train("doubled", 1, batches=data().__call__, sharding=over),
        "alike": lambda: train("alike", 1, batches=jax.tree.map(np.ones_like, data()(0)),
                               sharding=over),
    }.items():  # fmt: skip
        try:
            call()
        except Exception as error:
            seen[name] = f"{type(error).__name__}: {error}"
    return seen


def stream(epoch):
    steps = data()(epoch)
    for i in range(8):
        yield jax.tree.map(lambda leaf, i=i: leaf[i], steps)


def plus_index(leaf):
    return leaf + np.float32(INDEX)


def on_the_first_alone(given):
    if INDEX:
        raise OSError("a disk of its own")
    return data()(given) if isinstance(given, int) else measured(given)


if WHERE != "alone":
    start_processes(WHERE, 2, INDEX)
if SCENE == "all":
    (FOLDER / f"seen-{INDEX}.json").write_text(json.dumps(all_scenes()))
else:
    # One of the two gets a signal before its second epoch, of which eight steps are the first.
    number = {"kill": signal.SIGKILL, "term": signal.SIGTERM}[SCENE[:-2]]
    over = Sharding.over()

    def until_a_signal(epoch):
        if epoch == 1:
            print("on", flush=True)
            if SCENE[-1] == str(INDEX):
                os.kill(os.getpid(), number)
        return of_rows(epoch, over.rows(ROWS))

    train("run", 10**6, batches=until_a_signal, sharding=over, evaluate=None)
