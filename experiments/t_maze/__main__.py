"""``python -m experiments.t_maze``: see the README beside this."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import runs
from experiments.t_maze.config import Config
from experiments.t_maze.training import Trainer

PROGRAM = "t_maze"
CURVE_POINTS = 10


def main() -> int:
    """Train an agent with memory and one without, and show how often each finds the goal."""
    config = tyro.cli(Config, prog="python -m experiments.t_maze")
    run_dir = runs.create(PROGRAM, config.run_dir)
    keys = jax.vmap(jax.random.key)(config.seed + jnp.arange(config.seeds))
    steps = config.updates * config.rollout * config.environments

    began = time.perf_counter()
    compiled = run.lower(Trainer(config), keys, True).compile()
    print(f"compiled in {time.perf_counter() - began:.1f} s, once for both agents")
    results = []
    for name, memory in (("with memory", True), ("without memory", False)):
        began = time.perf_counter()
        success, curve = jax.block_until_ready(compiled(keys, memory))
        seconds = time.perf_counter() - began
        each = f"{steps:,} environment steps" + (" for each seed" if config.seeds > 1 else "")
        print(f"{name}: {each}, training and test in {seconds:.1f} s")
        for i in range(config.seeds):
            learned = success_while_learning(curve, i)
            results.append(
                {
                    "memory": memory,
                    "seed": config.seed + i,
                    "success": float(success[i]),
                    "while_learning": learned,
                    "environment_steps": steps,
                    "seconds_of_all_seeds": seconds,
                }
            )
            shown = " ".join("-" if part is None else f"{part:.0%}" for part in learned)
            print(
                f"  seed {config.seed + i}: success {success[i]:.1%} of {config.episodes:,} fresh "
                f"episodes; while learning {shown}"
            )
    runs.write_json(run_dir / "result.json", {"config": vars(config), "results": results})
    print(f"results in {run_dir}")
    return 0


@functools.partial(jax.jit, static_argnums=0)
def run(trainer: Trainer, keys: jax.Array, memory: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Train and test one agent for each key, all at once."""

    def one(key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        train_key, test_key = jax.random.split(key)
        params, curve = trainer.train(train_key, memory)
        return trainer.success(params, test_key, memory), curve

    return jax.vmap(one)(keys)


def success_while_learning(curve: dict[str, jax.Array], seed: int) -> list[float | None]:
    """The share of successes in each tenth of the training; None where no episode ended."""
    successes, episodes = (
        [int(part.sum()) for part in np.array_split(np.asarray(curve[name][seed]), CURVE_POINTS)]
        for name in ("successes", "episodes")
    )
    return [s / e if e else None for s, e in zip(successes, episodes, strict=True)]


if __name__ == "__main__":
    runs.exit_with(main)
