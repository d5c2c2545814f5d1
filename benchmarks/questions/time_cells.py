"""Cells that read the time, of the gallery, beside the same written in other libraries.

The equations stand here once more, as a step in plain JAX that the other libraries' loops run.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.questions import layers
from benchmarks.questions.gradients import VALUE_NAME, Call, repeated
from benchmarks.reports import Point, Report
from benchmarks.timing import Contender, Question

__all__ = ["QUICK", "Settings", "question", "remarks", "tables"]

PAGE = Path(__file__).parents[2] / "docs" / "gallery" / "time.md"
CELLS = "GRU-D", "CfC", "phased LSTM"
Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every cell, number of units and rows, and pass is a point."""

    shapes: tuple[tuple[int, int], ...] = ((64, 16), (128, 32), (256, 32))
    features: int = 16
    time: int = 100


QUICK = Settings(shapes=((8, 2),), features=3, time=5)


@functools.cache
def gallery() -> dict[str, Any]:
    """The names of the page; its last block checks them, and is left out."""
    found = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "docs.gallery.time"}
    for block in found[:-1]:
        block = re.sub(r"^left\(.*$", "", block, flags=re.MULTILINE)  # which only prints
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def drawn(settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A cell, its parameters, of which none is zero, and the inputs ``(time, batch, features)``."""
    import jax
    import jax.numpy as jnp

    import rnnjax

    (units, rows), features = settings["shape"], settings["features"]
    keys, shape = jax.random.split(jax.random.key(0), 4), (settings["time"], rows, features)
    xs, gaps = jax.random.normal(keys[0], shape), jax.random.exponential(keys[1], shape)
    if settings["cell"] == "GRU-D":
        impute = gallery()["ImputeCell"](features)
        decay = gallery()["DecayGRUCell"](units, features=features)
        cell: Any = rnnjax.Stack([impute, decay])
        seen = jax.random.bernoulli(keys[2], shape=shape).astype(xs.dtype)
        xs = jnp.concatenate([xs, seen, gaps], axis=-1)
    elif settings["cell"] == "CfC":
        cell = gallery()["CfCCell"](units)
        xs = jnp.concatenate([xs, gaps[..., :1]], axis=-1)
    else:
        cell = gallery()["PhasedLSTMCell"](units)
        xs = jnp.concatenate([xs, gaps[..., :1].cumsum(axis=0)], axis=-1)
    leaves, structure = jax.tree.flatten(cell.init(keys[3], xs.shape[-1]))
    noise = [0.1 * jax.random.normal(jax.random.key(i), v.shape) for i, v in enumerate(leaves)]
    params = jax.tree.unflatten(structure, [v + n for v, n in zip(leaves, noise, strict=True)])
    return cell, params, xs


# ---- the equations, for the others


def steps(cell: str, p: Arrays, x: Any, carry: Any) -> Any:
    """The new carry, whose first leaf is the output."""
    import jax
    import jax.numpy as jnp

    sigmoid, tanh, split = jax.nn.sigmoid, jnp.tanh, functools.partial(jnp.split, axis=-1)
    if cell == "GRU-D":
        (h, last), (x, seen, gap) = carry, split(x, 3)
        fade = jnp.exp(-jax.nn.relu(p["fade"][0] * gap + p["fade"][1]))
        inputs = jnp.concatenate([jnp.where(seen > 0, x, fade * last), seen], axis=-1)
        gates, new = split(inputs @ p["kernel"] + p["bias"], [2 * h.shape[-1]])
        h = jnp.exp(-jax.nn.relu(gap @ p["gap"])) * h
        r, z = split(sigmoid(gates + h @ p["gates"]), 2)
        h = (1 - z) * h + z * tanh(new + (r * h) @ p["new"])
        return h, jnp.where(seen > 0, x, last)
    x, time = x[..., :-1], x[..., -1:]
    sums = x @ p["kernel"] + carry[0] @ p["recurrent_kernel"] + p["bias"]
    if cell == "CfC":
        f, g, k = split(sums, 3)
        early = sigmoid(-f * time)
        return (early * tanh(g) + (1 - early) * tanh(k),)
    (h, c), (i, f, g, o), ratio = carry, split(sums, 4), 0.05
    new_c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    phase = (time - p["clock"][1]) / jnp.exp(p["clock"][0]) % 1.0
    rising = jnp.minimum(2 * phase, 2 * ratio - 2 * phase) / ratio
    k = jnp.where(phase < ratio, rising, 0.001 * phase)
    return k * sigmoid(o) * tanh(new_c) + (1 - k) * h, k * new_c + (1 - k) * c


def sizes(settings: dict[str, Any]) -> list[int]:
    """Return the sizes of the leaves that `steps` carries."""
    units = settings["shape"][0]
    return {"GRU-D": [units, settings["features"]], "CfC": [units]}.get(
        settings["cell"], [units, units]
    )


# ---- the contenders: (settings) -> (outputs of (params, xs), params, xs)


def rnnjax_layer(settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The cell of the page."""
    import rnnjax

    cell, params, xs = drawn(settings)
    return lambda params, xs: rnnjax.unroll(cell, params, xs)[1], params, xs


def flat(settings: dict[str, Any]) -> tuple[Arrays, Any]:
    """The parameters of all parts in one dict, without those that are empty; and the inputs."""
    _, params, xs = drawn(settings)
    parts = params if isinstance(params, tuple) else (params,)
    return {name: v for part in parts for name, v in part.items() if v.size}, xs


def nnx_layer(settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A cell of Flax's, in its ``nnx.RNN``."""
    import jax.numpy as jnp
    from flax import nnx

    arrays, xs = flat(settings)

    class Cell(nnx.RNNCellBase):
        num_feature_axes = 1

        def __init__(self) -> None:
            for name, array in arrays.items():
                setattr(self, name, nnx.Param(array))

        def initialize_carry(
            self, input_shape: Any, rngs: Any = None, carry_init: Any = None
        ) -> Any:
            return tuple(jnp.zeros((*input_shape[:-1], size)) for size in sizes(settings))

        def __call__(self, carry: Any, x: Any) -> Any:
            own = {name: getattr(self, name)[...] for name in arrays}
            new = steps(settings["cell"], own, x, carry)
            return new, new[0]

    static, params, *rest = nnx.split(nnx.RNN(Cell(), time_major=True), nnx.Param, ...)
    return lambda params, xs: nnx.merge(static, params, *rest, copy=True)(xs), params, xs


def equinox_layer(settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A module of Equinox's, of one sequence, mapped over the rows."""
    import equinox
    import jax
    import jax.numpy as jnp

    class Layer(equinox.Module):  # type: ignore[misc]  # equinox is skipped by mypy
        arrays: Arrays

        def __call__(self, xs: Any) -> Any:
            def step(carry: Any, x: Any) -> Any:
                new = steps(settings["cell"], self.arrays, x, carry)
                return new, new[0]

            return jax.lax.scan(step, tuple(map(jnp.zeros, sizes(settings))), xs)[1]

    arrays, xs = flat(settings)
    return lambda layer, xs: jax.vmap(layer, 1, 1)(xs), Layer(arrays), xs


def keras_layer(settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A cell of Keras's, in its ``RNN``; batch first."""
    import keras

    arrays, xs = flat(settings)

    class Cell(keras.layers.Layer):  # type: ignore[misc]  # keras is skipped by mypy
        state_size, output_size = sizes(settings), settings["shape"][0]

        def build(self, _: Any) -> None:
            self.arrays = {n: self.add_weight(shape=v.shape, name=n) for n, v in arrays.items()}

        def call(self, x: Any, states: Any) -> Any:
            own = {name: weight.value for name, weight in self.arrays.items()}
            new = steps(settings["cell"], own, x, states)
            return new[0], list(new)

    xs = xs.swapaxes(0, 1)
    given = keras.Input(xs.shape[1:], batch_size=len(xs))
    model = keras.Sequential([given, keras.layers.RNN(Cell(), return_sequences=True)])
    model.set_weights(list(arrays.values()))
    params = [variable.value for variable in model.trainable_variables]
    rest = [variable.value for variable in model.non_trainable_variables]
    return lambda params, xs: model.stateless_call(params, rest, xs)[0], params, xs


def called(layer: Callable[..., Any], settings: dict[str, Any]) -> Call:
    """The outputs, or the gradients of half their squares' sum, of all parameters and inputs."""
    import jax
    import jax.numpy as jnp

    run, params, xs = layer(settings)
    if not settings["backward"]:
        return jax.jit(lambda params, xs: (run(params, xs),)), (params, xs)
    loss = jax.grad(lambda params, xs: 0.5 * jnp.sum(run(params, xs) ** 2), (0, 1))
    return jax.jit(loss), (params, xs)


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    shared = {"features": settings.features, "time": settings.time}
    points = [
        Point(
            f"{cell}, ({units}, {rows}), {name}",
            {"cell": cell, "shape": (units, rows), "backward": backward, **shared},
        )
        for cell in CELLS
        for units, rows in settings.shapes
        for name, backward in (("forward", False), ("gradient", True))
    ]

    def contender(name: str, layer: Any, packages: list[str], **environment: str) -> Contender:
        build = functools.partial(called, layer)
        return Contender(name, repeated(build), [*packages, "jax"], environment)

    return Question(
        "time",
        f"Cells of the gallery that read the time, over {settings.time} steps of "
        f"{settings.features} features, at several (H, batch): the outputs, or the gradients of "
        "all parameters and of the inputs, beside the same cell written in other libraries; a "
        "repetition is as many calls as take 0.1 s.",
        [
            contender("rnnjax", rnnjax_layer, ["rnnjax"]),
            contender("Flax nnx", nnx_layer, ["flax"]),
            contender("Equinox", equinox_layer, ["equinox"]),
            contender("Keras, JAX", keras_layer, ["keras"], KERAS_BACKEND="jax"),
        ],
        baseline="rnnjax",
        value_name=VALUE_NAME,
        tolerance=1e-3,
        relative=True,
        points=points,
    )


def tables(report: Report) -> str:
    """A row a cell, shape and pass."""
    header = ["cell, (H, batch)"]
    return layers.peer_table(report, report.points, header, lambda point: [point.name])


remarks = layers.remarks
