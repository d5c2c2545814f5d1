"""``python -m experiments.alphabet``: see the README beside this."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.alphabet.config import Config
from experiments.alphabet.framings import compare
from experiments.alphabet.model import COMPILER_OPTIONS, LETTERS, Model, pairs
from experiments.shared import runs
from rnnjax.training.files import write_json

COLD_START, COLD_LENGTH = "K", 5


def main() -> int:
    """Train, and show what was learned."""
    config = runs.options(Config, "alphabet", "--seeds 20")
    run_dir = runs.new_folder("alphabet", config.run_dir)
    if config.all:
        return compare(config.seed, run_dir)
    model = Model(config)
    keys = jax.vmap(jax.random.key)(config.seed + jnp.arange(config.seeds))

    inputs, targets = pairs(config)
    shown_pairs = [f"{spell(x)} -> {LETTERS[y]}" for x, y in zip(inputs, targets, strict=True)]
    more = f", ... {len(targets):,} in all" if len(targets) > len(LETTERS) else ""
    print("training pairs:", ", ".join(shown_pairs[: len(LETTERS)]) + more)
    began = time.perf_counter()
    _, losses, shown = jax.block_until_ready(run(model, keys))
    seconds = time.perf_counter() - began
    updates = config.epochs * len(targets) // config.batch_size * config.seeds
    print(f"{updates:,} updates in {seconds:.2f} s, compilation included")

    results = [
        {"seed": config.seed + i, "loss": float(losses[i, -1])}
        | {name: np.asarray(value)[i].tolist() for name, value in shown.items()}
        for i in range(config.seeds)
    ]
    write_json(
        run_dir / "result.json",
        {"config": vars(config), "results": results, "losses": losses.tolist()},
    )
    if config.seeds == 1:
        describe(config, results[0])
    else:
        summarise(config, results)
    print(f"results in {run_dir}")
    return 0


@functools.partial(jax.jit, static_argnums=0, compiler_options=COMPILER_OPTIONS)
def run(model: Model, keys: jax.Array) -> tuple[Any, jax.Array, dict[str, jax.Array]]:
    """Train one model for each key, all at once, and let each show what it learned."""

    def one(key: jax.Array) -> tuple[Any, jax.Array, dict[str, jax.Array]]:
        params, losses = model.train(key)
        length = model.config.seq_length
        cold = min(LETTERS.index(COLD_START), len(LETTERS) - length)
        shown = {
            "accuracy": model.accuracy(params),
            "chain": model.chain(params, jnp.arange(length), len(LETTERS) - length),
            "cold": model.chain(params, cold + jnp.arange(length), COLD_LENGTH),
        }
        return params, losses, shown

    return jax.vmap(one)(keys)


def spell(letters: Any) -> str:
    """Numbers 0 to 25 as letters."""
    return "".join(LETTERS[int(letter)] for letter in letters)


def describe(config: Config, result: dict[str, Any]) -> None:
    """Print what one model learned."""
    length = config.seq_length
    print(f"accuracy: {result['accuracy']:.0%}, loss {result['loss']:.4f}")
    print("fed on its own predictions:", " -> ".join([LETTERS[:length], *spell(result["chain"])]))
    first = min(LETTERS.index(COLD_START), len(LETTERS) - 1 - length)  # so that a letter follows
    start, got = LETTERS[first : first + length], spell(result["cold"])
    print(f"a new start at {start}:", " -> ".join([start, *got]))
    right = LETTERS[first + length : first + length + 1]
    if not config.stateful:
        print("No state is carried: each prediction rests on its input alone.")
    elif got[0] == right:
        print(f"Without the letters before, {start} alone is enough for {right}.")
    else:
        print(
            f"Without the letters before, {start} gives {got[0]} and not {right}: what the model "
            "knows of its place in the alphabet is in the carried state, not in the letter."
        )


def summarise(config: Config, results: list[dict[str, Any]]) -> None:
    """Print one line for each seed, and the counts."""
    for result in results:
        chain = spell(result["chain"])
        print(
            f"seed {result['seed']}: accuracy {result['accuracy']:.0%}, loss "
            f"{result['loss']:.4f}, chain {LETTERS[: config.seq_length]}{chain}"
        )
    perfect = sum(result["accuracy"] == 1 for result in results)
    chains = sum(spell(one["chain"]) == LETTERS[config.seq_length :] for one in results)
    print(f"{perfect} of {len(results)} seeds reach 100 %; {chains} chains are the whole alphabet")


if __name__ == "__main__":
    runs.exit_with(main)
