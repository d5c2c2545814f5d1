"""``python -m experiments.t_maze``: see the README beside this."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared import plots, runs
from experiments.t_maze.config import Config
from experiments.t_maze.training import Trainer
from rnnjax.training import Progress
from rnnjax.training.files import write_json

PROGRAM = "t_maze"
CURVE_POINTS = 10


def main() -> int:
    """Train agents with memory and without, and show how often each finds the goal."""
    config = runs.options(Config, "t_maze", "--seeds 5")
    run_dir = runs.new_folder(PROGRAM, config.run_dir)
    trainer = Trainer(config)
    seeds = config.seed + jnp.tile(jnp.arange(config.seeds), 2)
    memory = jnp.arange(2 * config.seeds) < config.seeds
    # The curve has a point for each epoch, and every epoch as many updates.
    epochs = max(n for n in range(1, CURVE_POINTS + 1) if config.updates % n == 0)

    began = time.perf_counter()
    result = trainer.train(seeds, memory, epochs, MazeProgress())
    test_keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), seeds)
    success = jax.jit(jax.vmap(trainer.success))(result.params, test_keys, memory)
    success = np.asarray(success).tolist()
    seconds = time.perf_counter() - began

    steps = config.updates * config.rollout * config.environments
    print(
        f"{len(success)} agents, {steps:,} environment steps each, trained and tested in "
        f"{seconds:.1f} s, compilation included"
    )
    learned = np.transpose([shares(entry) for entry in result.history]).tolist()
    results = [
        {
            "memory": bool(memory[i]),
            "seed": int(seeds[i]),
            "success": success[i],
            "while_learning": learned[i],
            "environment_steps": steps,
        }
        for i in range(len(success))
    ]
    for r in results:
        curve = " ".join("-" if part is None else f"{part:.0%}" for part in r["while_learning"])
        print(
            f"{'with' if r['memory'] else 'without'} memory, seed {r['seed']}: success "
            f"{r['success']:.1%} of {config.episodes:,} fresh episodes; while learning {curve}"
        )
    with_memory, without = np.array(learned, float).reshape(2, config.seeds, epochs).mean(axis=1)
    plots.curves(
        run_dir / "learning.png",
        {"with memory": 100 * with_memory, "with a reset at every step": 100 * without},
        x="% of the training", y="goals found, %",
        xs=[100 * (k + 1) / epochs for k in range(epochs)],
    )  # fmt: skip
    write_json(
        run_dir / "result.json", {"config": vars(config), "seconds": seconds, "results": results}
    )
    print(f"results in {run_dir}")
    return 0


def shares(entry: Mapping[str, Any]) -> list[float | None]:
    """The share of successes of each agent in an epoch; None where no episode ended."""
    return [
        s / e if e else None for s, e in zip(entry["successes"], entry["episodes"], strict=True)
    ]


class MazeProgress(Progress):
    """In successes."""

    def of_epoch(self, summary: Mapping[str, Any]) -> str:
        """The mean success with memory, and without."""
        found = np.array(shares(summary), float)
        with_memory, without = np.split(found, 2)
        return f"success {np.mean(with_memory):.0%} with memory, {np.mean(without):.0%} without"


if __name__ == "__main__":
    runs.exit_with(main)
