"""A program of its own for `test_processes`: ``python two_processes.py FOLDER SCENE``.

It is one of the processes that a launcher starts, and what it saw goes into the folder. The tests
run `together` by themselves too, for what one process sees.
"""

import dataclasses
import errno
import functools
import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnnjax.training import (
    Checkpoints,
    Sharding,
    Silent,
    fit,
    load_params,
    minibatches,
    processes,
    run_folder,
)
from rnnjax.training.hooks import EarlyStopping, Hook
from rnnjax.training.state import TrainState
from tests.training_helpers import share_steps

ROWS, ADAM = 12, optax.adam(0.05)
if __name__ == "__main__":
    share_steps()
    processes._BYTES_AT_ONCE = 1000  # so that what one reads comes in parts
    processes.start_processes()
    assert len(jax.devices()) == 2 * jax.process_count() > 2
INDEX = jax.process_index()
XS = np.random.default_rng(0).normal(size=(96, 4)).astype(np.float32)
DATA = minibatches({"xs": XS, "ys": XS.sum(1)}, ROWS, axis=0)
OVER = Sharding.over()
MINE = OVER.rows(ROWS)


def loss_fn(params, batch, key):
    return jnp.mean((batch["xs"] @ params - batch["ys"]) ** 2)


def measured(params):
    return {"validation_loss": float(jnp.sum(params**2)) + 100 * INDEX}


def by_hand(epoch):
    """The rows of this process, as a user's function reads them."""
    return jax.tree.map(lambda x: x[:, MINE], DATA(epoch))


def stream(epoch):
    steps = by_hand(epoch)
    return (jax.tree.map(lambda leaf, i=i: leaf[i], steps) for i in range(8))


def train(folder, epochs, *, loss=loss_fn, batches=DATA, sharding=None, **options):
    """With the rows over both processes, or all of them on each."""
    options = {"evaluate": measured, "hooks": [Silent()], **options}
    return fit(
        loss, jnp.zeros(4), ADAM, batches, epochs, key=jax.random.key(0),
        run_dir=folder, sharding=sharding, **options,
    )  # fmt: skip


def told(folder, *args, **options):
    result = train(folder, *args, **options)
    losses = [entry["loss"] for entry in result.history]
    loaded = load_params(folder, step="last").tolist()
    return {"losses": losses, "params": np.asarray(result.params).tolist(), "loaded": loaded,
            "best": result.best["validation_loss"]}  # fmt: skip


def restored(folder):
    """What it has itself is not what it restores."""
    given = {"w": (1 + INDEX) * jnp.arange(5.0)}, optax.sgd(0.1)
    state = TrainState.create(*given, key=jax.random.key(0), carry=jnp.full(3, -0.0))
    checkpoints = Checkpoints(folder)
    checkpoints.save(state, {"a": 1})
    state = checkpoints.latest().restore(state)
    signs = np.signbit(state.carry).tolist()
    return [state.params["w"].tolist(), load_params(folder)["w"].tolist(), signs]


def ends(state, summary):
    """A hook of the last process alone."""
    return jax.process_count() - 1 == INDEX and summary["epoch"] == 2


def plus_index(leaf):
    return leaf + np.float32(INDEX)


def on_the_first_alone(given):
    if INDEX:
        raise OSError("a disk of its own")
    return DATA(given) if isinstance(given, int) else measured(given)


def together(folder, ways, over):
    """What processes see alike, with the rows divided and without."""
    seen = {"restored": restored(folder / "checkpoints")}
    for name, options in ways.items():  # and goes on
        seen[name] = [told(folder / name, epochs, **options) for epochs in (2, 4)]
    seen["carried"] = [told(
        folder / "carried", 3, carry=jnp.ones(ROWS), sharding=over,
        loss=lambda p, carry, b, key: (loss_fn(p, b, key) + carry.mean(), (carry / 2, {})),
        # Its processes return the same, but of a carry that is divided each its rows.
        hooks=[Silent(), lambda s, _: jax.tree.map(lambda x: x / 2 if x.ndim else x, s)],
    )]  # fmt: skip
    # Batch after batch, with data to measure on, until a hook of one process ends the run.
    hooks = [Silent(), EarlyStopping(9), ends]
    seen["stream"] = [told(folder / "stream", 4, batches=stream, sharding=over,
                           evaluate=by_hand(0), hooks=hooks)]  # fmt: skip
    return seen


def refused(folder):
    """What each process says of what one or both cannot do."""
    seen = {}
    for name, call in {
        "missing": lambda: Checkpoints(folder / "checkpoints").at(7),
        "another loss": lambda: train(folder / "whole", 4, loss=lambda *args: 2 * loss_fn(*args)),
        "other data": lambda: train(folder / "o", 1, batches=jax.tree.map(plus_index, DATA(0))),
        "epochs": lambda: train(folder / "whole", 5 + INDEX),
        "raises": lambda: train(folder / "raises", 1, evaluate=on_the_first_alone),
        "unread": lambda: train(folder / "unread", 1, batches=on_the_first_alone),
        "a state": lambda: train(folder / "s", 2, hooks=[
            Silent(), lambda s, _: dataclasses.replace(s, params=plus_index(s.params))]),
        "doubled": lambda: train(folder / "d", 1, batches=DATA.__call__, sharding=OVER),
    }.items():  # fmt: skip
        try:
            call()
        except Exception as error:
            seen[name] = f"{type(error).__name__}: {error}"
    return seen


def until_a_signal(scene, epoch):
    """One of the two gets it before its second epoch, of which eight steps are the first."""
    if epoch == 1:
        print("on", flush=True)
        if scene[-1] == str(INDEX):
            if "kill" in scene:  # Gloo may miss a death during the beginning of a collective
                time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL if "kill" in scene else signal.SIGTERM)
    return by_hand(epoch)


class FailsAlone(Hook):
    """A hook of a process that fails, in its second epoch, or returns a state after it."""

    def __init__(self, kind):
        self.kind = kind

    def on_dispatch(self, step, losses, seconds):
        if step > 8 and self.kind in ("hook", "interrupt"):
            self.fail()

    def on_epoch(self, state, summary):
        if summary["epoch"] == 2 and self.kind == "epoch":
            self.fail()
        if summary["epoch"] == 2 and self.kind == "state":
            print("fails", flush=True)
            return dataclasses.replace(state, params=state.params + 1)
        return None

    def close(self):
        if self.kind == "close":
            self.fail()

    def fail(self):
        print("fails", flush=True)
        raise (KeyboardInterrupt if self.kind == "interrupt" else RuntimeError)(3)


def full_disk(write, path, entries, **options):
    if any(entry["epoch"] > 1 for entry in entries):
        print("fails", flush=True)
        raise OSError(errno.ENOSPC, "No space left on device")
    write(path, entries, **options)


def fail_alone(folder, kind, who):
    """A run in which one process fails, or all of them in the same way."""
    hooks = [Silent()]
    if who in (str(INDEX), "all"):
        if kind == "disk":  # which the first process alone writes to
            run_folder.write_lines = functools.partial(full_disk, run_folder.write_lines)
        else:
            hooks.append(FailsAlone(kind))
    try:
        epochs = 2 if kind == "close" else 1000
        train(folder, epochs, batches=by_hand, sharding=OVER, evaluate=None, hooks=hooks)
    except RuntimeError:
        if who != "all":
            raise


def main(folder, scene):
    if "alone" in scene:
        fail_alone(folder / "run", *scene.split("-")[1:])
        return
    if "term" in scene:
        ways = {
            "divided": {"sharding": OVER},
            "by hand": {"sharding": OVER, "batches": by_hand},
            "whole": {},
        }
        seen = together(folder, ways, OVER) | refused(folder)
        (folder / f"seen-{INDEX}.json").write_text(json.dumps(seen))
    batches = functools.partial(until_a_signal, scene)
    train(folder / "run", 10**6, batches=batches, sharding=OVER, evaluate=None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
