"""Trains sixteen models at once, over learning rates and seeds, on all cores: a sweep.

A small network leaves most of a machine idle. A function that trains one model, with its own seed
and rate, becomes a program of many: by `jax.vmap` on an accelerator, and on a CPU by
`jax.shard_map` over the cores, each of which trains its models in turn. The numbers are those of a
model alone. What is learned is to add two numbers that are marked among many (Hochreiter &
Schmidhuber, 1997), where the rate matters. The baseline answers 1, the mean, whatever comes.

    python -m experiments.cookbook.many_models

For a model of your own, replace `draw`, `error` and `init`. Whatever differs between the models is
an argument of `train`, such as a rate; what changes shapes, such as `units`, cannot be. Call
`use_cores` before any other line that uses JAX, else it finds one core.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

import rnnjax
from experiments.shared import plots, runs
from experiments.shared.report import Options, Report
from rnnjax.training import use_cores


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Train a model for each rate and seed at once, and one of them alone."""

    rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1.0)
    """The learning rates of Adam."""
    seeds: int = 4
    """The number of models of each rate."""
    updates: int = 1000
    """The number of updates of each model."""
    units: int = 32
    """The number of units of the GRU."""
    numbers: int = 30
    """The number of numbers of a sequence, two of which are marked."""


def draw(key: jax.Array, numbers: int, rows: int) -> tuple[jax.Array, jax.Array]:
    """Sequences ``(numbers, rows, 2)`` of a number and its mark, and the sums ``(rows,)``."""
    of_values, of_marks = jax.random.split(key)
    values = jax.random.uniform(of_values, (numbers, rows))
    order = jax.random.uniform(of_marks, (numbers, rows)).argsort(axis=0)
    marks = (order < 2).astype(jnp.float32)
    return jnp.stack([values, marks], axis=-1), (values * marks).sum(axis=0)


# --8<-- [start:loss]
def error(config: Config, params: Any, xs: jax.Array, sums: jax.Array) -> jax.Array:
    """The mean squared error of the sum."""
    _, last = rnnjax.unroll(rnnjax.GRUCell(config.units), params["gru"], xs, outputs="last")
    return jnp.mean((last @ params["kernel"] + params["bias"] - sums) ** 2)
    # --8<-- [end:loss]


def init(config: Config, seed: int) -> dict[str, Any]:
    """Draw the parameters of one model."""
    gru = rnnjax.GRUCell(config.units).init(jax.random.key(seed), 2)
    return {"gru": gru, "kernel": jnp.zeros(config.units), "bias": jnp.ones(())}


# --8<-- [start:train]
def train(config: Config, params: Any, rate: Any, seed: Any) -> tuple[jax.Array, ...]:
    """Train one model: the loss of each update, and the errors by which it is chosen and told."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    def update(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        params, opt_state = state
        xs, sums = draw(key, config.numbers, 50)
        loss, grads = jax.value_and_grad(lambda params: error(config, params, xs, sums))(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), config.updates)
    (params, _), losses = jax.lax.scan(update, (params, optimizer.init(params)), keys)
    new = (draw(jax.random.key(n + config.seed), config.numbers, 2000) for n in (20_000, 10_000))
    validation, test = (error(config, params, *sequences) for sequences in new)
    return losses, validation, test
    # --8<-- [end:train]


def run(config: Config) -> int:
    """Train all models at once, and the best one alone; draw the error by rate and seed."""
    cores = use_cores()
    report = Report.begin("many_models", "mean squared error of the sum", config, 5)
    rates = np.repeat(np.array(config.rates, np.float32), config.seeds)
    seeds = np.tile(config.seed + np.arange(config.seeds), len(config.rates))
    count = len(rates)
    devices = max(n for n in range(1, cores + 1) if count % n == 0)  # as many models on each
    mesh, each = Mesh(jax.devices()[:devices], "models"), PartitionSpec("models")
    # Drawn one by one and outside: the orthogonal kernels of several models are a batched QR, which
    # waits for ever where two cores run it at once (jaxlib 0.10.2).
    drawn = [init(config, int(seed)) for seed in seeds]
    given = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn), rates, seeds
    turns = jax.default_backend() == "cpu"  # where products of many small matrices are slow

    # --8<-- [start:all]
    def some(given: Any) -> Any:
        def one(each: Any) -> Any:
            return train(config, *each)

        return jax.lax.map(one, given) if turns else jax.vmap(one)(given)

    # shard_map gives each core its models as a program of its own, in which no core waits for
    # another. Left to itself, XLA divides some operations otherwise, and sends messages each step.
    every = jax.jit(jax.shard_map(some, mesh=mesh, in_specs=each, out_specs=each, check_vma=False))
    # --8<-- [end:all]
    losses, validation, scores = map(np.asarray, every(given))  # which compiles, too
    sums = draw(jax.random.key(1), config.numbers, 2000)[1]
    report.add("the mean, whatever comes", float(jnp.mean((sums - 1) ** 2)))
    table = scores.reshape(len(config.rates), config.seeds)
    for rate, row in zip(config.rates, table, strict=True):
        report.add(f"rate {rate:g}, {config.seeds} seeds", row.tolist())
    best = int(np.nanargmin(validation))
    report.add(f"best: rate {rates[best]:g}, seed {seeds[best]}", float(scores[best]))
    own = drawn[best], rates[best], seeds[best]
    alone = jax.jit(functools.partial(train, config))
    apart = float(np.abs(np.asarray(alone(*own)[0]) - losses[best])[:10].max())
    print(f"{count} models on {devices} cores at once; the best one, alone, has the same losses "
          f"(the first ten to {apart:.0e})")  # fmt: skip
    began = time.perf_counter()
    jax.block_until_ready(every(given))
    between = time.perf_counter()
    jax.block_until_ready(alone(*own))
    at_once, one = between - began, time.perf_counter() - between
    print(f"{count} models take {at_once / one:.1f} times as long as one of them alone")
    plots.matrix(
        report.run_dir / "sweep.png", table, rows=[f"{rate:g}" for rate in config.rates],
        columns=[f"seed {config.seed + k}" for k in range(config.seeds)], y="rate",
        bar="mean squared error", log=True,
    )  # fmt: skip
    report.accept("the best error", float(scores[best]), 0.002)
    return report.end(apart=apart, at_once=at_once, one=one)


main = runs.command(run, Config, "cookbook.many_models", "--updates 500")
if __name__ == "__main__":
    runs.exit_with(main)
