"""What people get wrong in calls, each told in one sentence, or as a wrong type of an argument."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnjax import RnnjaxError
from rnnjax.training import (
    Checkpoints,
    EarlyStopping,
    Sharding,
    Silent,
    TrainState,
    constrain,
    fit,
    keras_adam,
    load_params,
    make_train_steps,
    minibatches,
    pad_rows,
    save_params,
    truncated_loss,
    windows,
)
from rnnjax.training.hooks import CSVLog

XS = np.ones((3, 4, 2), np.float32)
ROWS = minibatches(np.ones((6, 2), np.float32), 2, axis=0)


def loss(params, batch, key):
    return jnp.mean((params["w"] - batch) ** 2)


def with_carry(params, carry, batch, key):
    return loss(params, batch, key), (carry, {})


def train(**change):
    given = {
        "loss_fn": loss, "params": {"w": jnp.zeros(2)}, "optimizer": optax.sgd(0.1), "batches": XS,
        "epochs": 1, "key": jax.random.key(0), "hooks": [Silent()],
    }  # fmt: skip
    return fit(**given | change)


def state():
    return TrainState.create({"w": jnp.zeros(2)}, optax.sgd(0.1), key=jax.random.key(0))


def steps(*given):
    return make_train_steps(with_carry, optax.sgd(0.1))(state(), *given)


def random_state():
    return {"w": jnp.zeros(2), "drop": {"key": jax.random.key(0), "count": jnp.uint32(0)}}


MISUSES = {
    "a loss that is a name": lambda: train(loss_fn="mse"),
    "parameters of texts": lambda: train(params={"w": "a"}),
    "no batches": lambda: train(batches=None),
    "the name of a file": lambda: train(batches="data.npz"),
    "a function of nothing": lambda: train(batches=lambda: XS),
    "batches of None": lambda: train(batches=lambda epoch: iter([None])),
    "a carry that is an object": lambda: train(carry=object(), loss_fn=with_carry),
    "an iterator to validate on": lambda: train(evaluate=iter([XS[0]]), epochs=2),
    "a measure that is an array": lambda: train(evaluate=lambda p: {"validation_loss": p["w"]}),
    "a measure of two arguments": lambda: train(evaluate=lambda params, batch: {}),
    "data of other shapes": lambda: train(evaluate=np.ones((2, 5, 3))),
    "the class of a hook": lambda: train(hooks=[EarlyStopping]),
    "the class of a progress": lambda: train(hooks=[Silent]),
    "a hook of one argument": lambda: train(hooks=[lambda state: None]),
    "a hook that returns parameters": lambda: train(hooks=[lambda state, entry: state.params]),
    "nothing to monitor": lambda: train(hooks=[EarlyStopping(3)]),
    "no name to monitor": lambda: train(hooks=[EarlyStopping(3, monitor=3)]),
    "a folder for a table": lambda: train(hooks=[CSVLog(Path.cwd())]),
    "a table without a name": lambda: CSVLog(None),
    "a number of skipped steps": lambda: train(skip_nonfinite=True),
    "a sharding by two numbers": lambda: Sharding.over(2, 2),
    "a mesh of nothing": lambda: Sharding(None),
    "rows_axis by a name": lambda: train(sharding=Sharding.over(1, rows_axis="rows")),
    "a file for a run": lambda: train(run_dir=__file__),
    "a number for a run": lambda: train(run_dir=3),
    "a folder of checkpoints by a number": lambda: Checkpoints(3),
    "parameters of no run": lambda: load_params("none"),
    "parameters of a program": lambda: load_params(__file__),
    "a file of objects": lambda: save_params("a.safetensors", {"a": object()}),
    "minibatches of a list": lambda: minibatches([1, 2, 3], 2, axis=0),
    "minibatches of nothing": lambda: minibatches({}, 2, axis=0),
    "a batch of None": lambda: pad_rows(None, 3),
    "windows of texts": lambda: windows("a", "b", steps=2),
    "a mask of numbers": lambda: windows(XS, XS, steps=1, mask=3),
    "a window without losses": lambda: train(
        loss_fn=truncated_loss(lambda p, carry, xs, k: (carry, xs), lambda ys, targets: None),
        batches=windows(XS, XS, steps=1), carry=jnp.ones(2),
    ),
    "steps by a name": lambda: steps(XS, "first", 1),
    "steps without an end": lambda: steps(XS, 0, None),
    "a learning rate by a name": lambda: train(optimizer=keras_adam("fast")),
    "a constraint of nothing": lambda: train(optimizer=constrain(None)),
}  # fmt: skip


@pytest.mark.parametrize("name", MISUSES)
def test_a_misuse_is_told_in_a_sentence(name, tmp_path, monkeypatch):
    """By an error of rnnjax; or a `TypeError`, where an argument is plainly none of its kind."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises((RnnjaxError, TypeError)) as caught:
        MISUSES[name]()
    sentence = str(caught.value)
    told = "\n" not in sentence and ("; " in sentence or " must be " in sentence)
    assert told or caught.type is TypeError


def test_random_state_among_parameters_is_named_with_the_way():
    """As of `nnx.Dropout`, which counts its keys in uint32."""
    for params in (random_state(), {"count": jnp.uint32(0)}):
        with pytest.raises(
            RnnjaxError, match=r"leave random state out, as .*nnx.split\(module, nnx.P"
        ):
            train(params=params)


def test_a_file_of_another_framework_is_named_with_its_reader(tmp_path):
    """An archive, as `torch.save` and Keras write it, is no damaged file of parameters."""
    np.savez(tmp_path / "archive.npz", np.ones(3))
    with pytest.raises(RnnjaxError, match=r"it is an archive, .*; call rnnjax.interop.load$"):
        load_params(tmp_path / "archive.npz")
