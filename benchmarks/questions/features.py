"""Masks, resets and noise in an LSTM layer, against the same layer without them."""

import dataclasses
from collections.abc import Callable
from typing import Any

from benchmarks.questions import layers
from benchmarks.questions.gradients import VALUE_NAME, Call, repeated
from benchmarks.reports import Point, Report
from benchmarks.timing import Contender, Question

PLAIN, KERAS = "rnnjax, plain", "Keras, JAX, plain"
NOISE: dict[str, dict[str, float]] = {
    "recurrent dropout": {"recurrent_dropout": 0.2},
    "zoneout of both states": {"zoneout_hidden": 0.1, "zoneout_cell": 0.1},
    "weight drop": {"weight_drop": 0.3},
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every shape is a point."""

    shapes: tuple[tuple[int, int], ...] = ((128, 16), (128, 128), (512, 16), (512, 128))
    time: int = 100


QUICK = Settings(shapes=((8, 2),), time=5)


def rnnjax_layer(marked: bool = False, noise: str = "") -> Callable[[dict[str, Any]], Call]:
    """The gradient of a layer whose rows are masked (a fifth) and reset (every twentieth step)."""

    def build(settings: dict[str, Any]) -> Call:
        import jax
        import jax.numpy as jnp
        import numpy as np

        import rnnjax

        hidden_size, shape = settings["hidden_size"], (settings["time"], settings["batch_size"])
        cell: rnnjax.Cell = rnnjax.LSTMCell(hidden_size)
        key = jax.random.key(2) if noise else None
        if noise:
            cell = rnnjax.Regularized(cell, **NOISE[noise])
        rng = np.random.default_rng(0)
        marks = {}
        if marked:
            marks = {
                "mask": jnp.asarray(rng.random(shape) < 0.8),
                "resets": jnp.asarray(rng.random(shape) < 0.05),
            }
        params = cell.init(jax.random.key(0), hidden_size)
        xs = jax.random.normal(jax.random.key(1), (*shape, hidden_size))

        def loss(params: Any, xs: Any, key: Any, marks: Any) -> Any:
            return jnp.sum(rnnjax.unroll(cell, params, xs, key=key, **marks)[1] ** 2)

        return jax.jit(jax.grad(loss, argnums=(0, 1))), (params, xs, key, marks)

    return build


def keras_layer(recurrent_dropout: float) -> Callable[[dict[str, Any]], Call]:
    """Build it in Keras on JAX, in training mode."""

    def build(settings: dict[str, Any]) -> Call:
        import jax
        import jax.numpy as jnp
        import keras

        size = settings["hidden_size"]
        shape = (settings["batch_size"], settings["time"], size)
        layer = keras.layers.LSTM(
            size, return_sequences=True, recurrent_dropout=recurrent_dropout, seed=0
        )
        layer.build(shape)
        params = [variable.value for variable in layer.trainable_variables]
        rest = [variable.value for variable in layer.non_trainable_variables]
        xs = jax.random.normal(jax.random.key(1), shape)

        def loss(params: Any, xs: Any, rest: Any) -> Any:
            ys, _ = layer.stateless_call(params, rest, xs, training=True)
            return jnp.sum(ys**2)

        return jax.jit(jax.grad(loss, argnums=(0, 1))), (params, xs, rest)

    return build


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    jax_only = ["rnnjax", "jax"]
    contenders = [
        Contender(PLAIN, repeated(rnnjax_layer()), jax_only),
        Contender("rnnjax, mask and resets", repeated(rnnjax_layer(marked=True)), jax_only),
        *(
            Contender(f"rnnjax, {noise}", repeated(rnnjax_layer(noise=noise)), jax_only)
            for noise in NOISE
        ),
        *(
            Contender(name, repeated(keras_layer(rate)), ["keras", "jax"], {"KERAS_BACKEND": "jax"})
            for name, rate in ((KERAS, 0.0), ("Keras, JAX, recurrent dropout", 0.2))
        ),
    ]
    points = [
        Point(
            f"({hidden_size}, {batch_size})",
            {"hidden_size": hidden_size, "batch_size": batch_size, "time": settings.time},
        )
        for hidden_size, batch_size in settings.shapes
    ]
    return Question(
        "features",
        f"The gradients of all parameters and of the inputs of an LSTM layer over {settings.time} "
        "steps at several (H, batch); a repetition is as many calls as take 0.1 s.",
        contenders,
        baseline=PLAIN,
        value_name=VALUE_NAME,
        points=points,
    )


def tables(report: Report) -> str:
    """A row a shape: the plain layer's time, and the others' in multiples of it."""
    return layers.peer_table(report, report.points, ["(H, batch)"], lambda point: [point.name])


remarks = layers.remarks
