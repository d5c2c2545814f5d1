"""Learns to hear which digit is spoken, from the recording's spectrogram or its waveform.

A "seven" is some 3,400 numbers. A GRU reads their log-mel spectrogram in both directions (the
energy in 40 bands of pitch; Davis & Mermelstein, 1980), a CNN the same spectrogram, and another the
waveform, where it has to find its own bands (Dai et al., 2017). A second GRU reads forward alone,
and runs as a device would run it: exported, with weights in bfloat16, a step a call. The data:
3,000 recordings of six speakers (Jackson et al., 2018). Takes 0 to 4 of each are the official test
part; takes 5 to 9 chose the settings and the epochs.

    python -m experiments.cookbook.spoken_digits --data FOLDER
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.linear_model import LogisticRegression

import rnnjax
from experiments.shared import data, plots, runs
from experiments.shared.report import Options, Report
from rnnjax.interop import Dense, Model, Recurrent, Sequential, export
from rnnjax.training import Silent, fit, minibatches

RATE, WINDOW, HOP, BANDS = 8000, 256, 128, 40  # samples: a second, a window, between two of them
SAMPLES, UNITS, BATCH, LEARNING_RATE = 8192, 64, 50, 4e-3  # 0.6 % are longer, and cut
BLOCK, POOLED = 16, (4, 2, 1)  # samples of a step of the CNN on waveforms; steps that it pools
WAVES, SPECTRA = "CNN on waveforms", "CNN on the spectrogram"
BOTH, STREAM = "bidirectional GRU", "GRU, forward alone"
CELLS: dict[str, rnnjax.Cell] = {
    BOTH: rnnjax.Bidirectional(rnnjax.GRUCell(UNITS)), STREAM: rnnjax.GRUCell(2 * UNITS),
}  # fmt: skip
DROPOUT = rnnjax.Dropout(0.3)


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Classify spoken digits: GRUs and a CNN on spectrograms, a CNN on waveforms, mean spectra."""

    data: str | None = None
    """A folder with the recordings in one file, or "made" for synthetic data."""
    seeds: int = 3
    """The number of networks of each kind, one after the other."""
    epochs: int = 15
    """The number of passes over the training part."""


def log_mel(wave: np.ndarray) -> np.ndarray:
    """The logarithm of the energy in bands of pitch, ``(time, BANDS)``, a step every `HOP`."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(wave, (0, WINDOW - HOP)), WINDOW)
    energy = np.abs(np.fft.rfft(windows[::HOP] * np.hanning(WINDOW))) ** 2
    # Triangles over the frequencies, evenly spaced in mel, as pitch is heard.
    edges = (np.geomspace(1, 1 + RATE / 2 / 700, BANDS + 2) - 1) * 700 / RATE
    bands = [np.interp(np.fft.rfftfreq(WINDOW), edges[i : i + 3], [0, 1, 0]) for i in range(BANDS)]
    return np.log(energy @ np.transpose(bands) + 1e-2)  # the constant: a silence is a silence


def read(config: Config) -> dict[str, list[dict[str, np.ndarray]]]:
    """What each network reads of the test, validation and training part; recordings on axis 1."""
    waves, digits, takes = data.recordings(config.data)
    # One speaker is twenty times as loud as another, which says nothing of the digit.
    waves = [(wave / np.sqrt(np.mean(wave**2)))[:SAMPLES] for wave in waves]
    xs, lengths = map(np.asarray, rnnjax.pad(waves, sizes=[SAMPLES]))
    lengths, part = -(-lengths // HOP), np.minimum(10 * takes // (takes.max() + 1), 2)
    spectra = np.stack([log_mel(x) for x in xs.T], axis=1).astype(np.float32)
    valid = np.asarray(rnnjax.valid_steps(jnp.asarray(lengths), len(spectra)))
    heard = spectra[valid & (part == 2)]
    spectra = (spectra - heard.mean(axis=0)) / heard.std(axis=0) * valid[..., None]
    blocks = xs.reshape(-1, BLOCK, len(waves)).swapaxes(1, 2)
    return {name: [{"xs": xs[:, part == k], "lengths": lengths[None, part == k],
                    "digits": digits[None, part == k]} for k in range(3)]
            for name, xs in ((WAVES, blocks), (SPECTRA, spectra), (BOTH, spectra),
                             (STREAM, spectra))}  # fmt: skip


def init(name: str, key: jax.Array) -> dict[str, Any]:
    """The parameters of a network; all kernels Glorot uniform."""
    draw, keys = jax.nn.initializers.glorot_uniform(), jax.random.split(key, 4)
    if name in CELLS:
        return {name: CELLS[name].init(keys[0], BANDS), "head": draw(keys[3], (2 * UNITS, 10))}
    first = (5 * BLOCK, UNITS // 2) if name == WAVES else (5 * BANDS, UNITS)
    sizes = first, (3 * first[1], UNITS), (3 * UNITS, UNITS), (UNITS, 10)
    *kernels, head = (draw(k, size) for k, size in zip(keys, sizes, strict=True))
    return {"convolutions": kernels, "head": head}


# --8<-- [start:model]
def apply(params: Any, batch: Any, key: jax.Array | None = None) -> jax.Array:
    """Logits ``(batch, 10)``: a product with the mean over the steps of each recording."""
    ys, lengths = batch["xs"], batch["lengths"][0]
    for name in CELLS.keys() & params.keys():
        _, ys = rnnjax.unroll(CELLS[name], params[name], ys, lengths=lengths)
    steps = POOLED if ys.shape[-1] == BLOCK else (1, 1, 1)
    for kernel, pooled in zip(params.get("convolutions", ()), steps, strict=False):
        # A convolution as one product of shifted copies, its fastest form on a CPU.
        wide = len(kernel) // ys.shape[-1]
        padded = jnp.pad(ys, ((wide // 2, wide // 2), (0, 0), (0, 0)))
        near = jnp.concatenate([padded[i : i + len(ys)] for i in range(wide)], axis=-1)
        ys = jax.nn.relu(near @ kernel)
        ys = ys.reshape(-1, pooled, *ys.shape[1:]).max(axis=1)
    mean = rnnjax.pool(ys, "mean", rnnjax.valid_steps(lengths, len(ys)))
    return DROPOUT.apply(key, mean) @ params["head"]
    # --8<-- [end:model]


# --8<-- [start:loss]
def loss_fn(params: Any, batch: Any, key: jax.Array | None = None) -> jax.Array:
    """The mean cross entropy."""
    logits, digits = apply(params, batch, key), batch["digits"][0]
    return optax.softmax_cross_entropy_with_integer_labels(logits, digits).mean()
    # --8<-- [end:loss]


def shipped(params: Any) -> Model:
    """What a device runs: the GRU that reads forward and its head, with weights in bfloat16."""
    layers = Recurrent("gru", CELLS[STREAM]), Dense("head", 10, use_bias=False)
    named = {"gru": params[STREAM], "head": {"kernel": params["head"]}}
    return Model(Sequential(layers), jax.tree.map(lambda a: a.astype(jnp.bfloat16), named))


def streamed(model: Model, batch: Any) -> np.ndarray:
    """Logits ``(batch, 10)``, of the exported program: the mean of what it says at every step.

    As the head is linear, it is what the head makes of the mean.
    """
    program, lengths = export(model, steps=1), batch["lengths"][0]
    state = jax.tree.leaves(model.initial_carry(lengths.shape))
    total = np.zeros((len(lengths), 10))
    for step, x in enumerate(batch["xs"]):
        state, ys = program.call(state, x[None])
        total += np.where(step < lengths[:, None], ys[0], 0)
    return total / lengths[:, None]


def run(config: Config) -> int:
    """Train, choose, and score the test part."""
    report = Report.begin("spoken_digits", "test digits named correctly, %", config, 1)
    inputs, logits = read(config), jax.jit(apply)
    measure = jax.jit(lambda params, part: {"validation_loss": loss_fn(params, part)})
    for name, (test, valid, train) in inputs.items():
        scores, updates = [], config.epochs * (train["digits"].size // BATCH)
        optimizer = optax.adam(optax.linear_schedule(LEARNING_RATE, 0, updates))
        for seed in range(config.seed, config.seed + config.seeds):
            params = fit(
                loss_fn, init(name, jax.random.key(seed)), optimizer,
                minibatches(train, BATCH, seed=seed, axis=1), config.epochs, hooks=[Silent()],
                key=jax.random.key(seed), evaluate=jax.tree_util.Partial(measure, part=valid),
            ).params  # fmt: skip
            found = logits(params, test).argmax(axis=-1)
            scores.append(100 * float((found == test["digits"][0]).mean()))
        report.add(name, scores)
        if name in CELLS:
            report.accept(f"{name}, mean", float(np.mean(scores)), 96, "least")
    said = streamed(shipped(params), test).argmax(axis=-1)
    right = 100 * float((said == test["digits"][0]).mean())
    report.add("the last of these, in bfloat16, exported, a step a call", right)
    report.accept("what bfloat16 and steps change", abs(right - scores[-1]), 0.4)
    means = [part["xs"].sum(axis=0) / part["lengths"].T for part in (train, test)]
    linear = LogisticRegression(max_iter=1000).fit(means[0], train["digits"][0])
    report.add("mean spectrum", 100 * linear.score(means[1], test["digits"][0]))
    report.add("CNN on MFCCs, three speakers, a random tenth", 97, "Thite, sound-mnist")
    row = int(np.argmax(test["digits"][0] == 7))
    steps = int(test["lengths"][0, row])
    # The recording broken off after 1, 2, 3, ... steps: rows that differ in their lengths alone.
    xs, lengths = np.repeat(test["xs"][:steps, [row]], steps, axis=1), np.arange(steps)[None] + 1
    chances = np.asarray(jax.nn.softmax(logits(params, {"xs": xs, "lengths": lengths})))
    wave = inputs[WAVES][0]["xs"][:, row].ravel()[: steps * HOP]
    lines = {"waveform": wave / np.abs(wave).max()}
    lines |= {str(d): np.repeat(chances[:, d], HOP) for d in np.argsort(-chances.max(axis=0))[:4]}
    plots.curves(report.run_dir / "seven.png", lines, x="sample (8 kHz)", y="probability so far")
    plots.matrix(report.run_dir / "spectrum.png", xs[:, 0].T[::-1], x="step", y="band, from high")
    return report.end()


main = runs.command(run, Config, "cookbook.spoken_digits", "--data FOLDER")
if __name__ == "__main__":
    runs.exit_with(main)
