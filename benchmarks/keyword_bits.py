"""What do 8 bits cost a keyword spotter? ``python -m benchmarks.keyword_bits --data FOLDER``.

The forward GRU of ``experiments.cookbook.spoken_digits`` is trained as there, written as C in
float32 and in 8 bits, and streamed over the recordings of the test part. A table shows the right
answers, and the bytes of constants and of RAM. ``--data made`` takes tones in place of recordings.
"""

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.shared import runs

BATCH = 50


def main() -> int:
    """Train, write both files, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="the folder of the recordings; by default $RNNJAX_DATA")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model, test = trained(options.data, options.epochs, options.seed)
    print("| weights | right answers, % | flash, bytes | RAM, bytes |\n|---|---|---|---|")
    for weights in ("float32", "int8"):
        right, sizes = heard(model, test, weights)
        ram = sizes["STATE_BYTES"] + sizes["SCRATCH_BYTES"]
        print(f"| {weights} | {right:.1f} | {sizes['WEIGHT_BYTES']:,} | {ram:,} |", flush=True)
    return 0


def trained(data: str | None, epochs: int, seed: int) -> tuple[Any, Any]:
    """The model as it ships, and the test part."""
    import jax
    import optax

    from experiments.cookbook import spoken_digits as spotter
    from rnnjax.training import Silent, fit, minibatches

    test, valid, train = spotter.read(spotter.Config(data=data))[spotter.STREAM]
    updates = epochs * (train["digits"].size // BATCH)
    measure = jax.jit(lambda params, part: {"validation_loss": spotter.loss_fn(params, part)})
    params = fit(
        spotter.loss_fn,
        spotter.init(spotter.STREAM, jax.random.key(seed)),
        optax.adam(optax.linear_schedule(spotter.LEARNING_RATE, 0, updates)),
        minibatches(train, min(BATCH, train["digits"].size), seed=seed, axis=1),
        epochs,
        hooks=[Silent()],
        key=jax.random.key(seed),
        evaluate=jax.tree_util.Partial(measure, part=valid),
    ).params
    return spotter.shipped(params), test


def heard(model: Any, test: Any, weights: str) -> tuple[float, dict[str, int]]:
    """The right answers in percent, and the sizes that the header names."""
    from rnnjax.interop import c

    data = test["xs"] if weights == "int8" else None
    with tempfile.TemporaryDirectory() as folder:
        c.save(model, f"{folder}/spotter.c", weights=weights, data=data)
        header = Path(folder, "spotter.h").read_text()
    sizes = {key: int(size) for key, size in re.findall(r"#define SPOTTER_(\w+) (\d+)", header)}
    stream, right = c.stream(model, weights=weights, data=data), []
    for row, (steps, digit) in enumerate(zip(test["lengths"][0], test["digits"][0], strict=True)):
        stream.reset()
        right.append(stream(test["xs"][:steps, row]).sum(0).argmax() == digit)
    return 100 * float(np.mean(right)), sizes


if __name__ == "__main__":
    runs.exit_with(main)
