"""Decides by noisy evidence, remembers the decision over a delay, and is taken apart to see how.

The task is like neurogym's perceptual decision making with a delayed response: a cue says to hold
still, two channels carry noisy evidence for left and for right, and after a delay of unknown length
the cue goes off and the network has to say which of the two was stronger. The network is one of
rates between 0 and 1, trained with and without Dale's law: a neuron excites all others or inhibits
all others (Song et al., "Training excitatory-inhibitory recurrent neural networks for cognitive
tasks", 2016). Then its step is read: which states the delay can hold (Sussillo & Barak, "Opening
the black box", 2013), how fast others fade, and how evenly the decision weighs early and late
evidence.

    python -m experiments.cookbook.dynamics --cell GRU
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.cookbook.common import dynamics
from experiments.shared import plots, runs
from experiments.shared.report import Options, Report
from rnnjax.errors import InvalidInputError
from rnnjax.training import Silent, constrain, fit

# Steps of 20 ms: the cue alone, the evidence, the longest delay in training, and the answer.
CUE, EVIDENCE, DELAY, ANSWER = 5, 40, 40, 5
STRENGTHS = (0.032, 0.064, 0.128, 0.256, 0.512)  # the difference of the channels' means
NOISE = 0.5  # the standard deviation of the evidence in a step
HOLD = np.array([1.0, 0.0, 0.0])  # the input of the delay
RATES = "LeakyRNN"


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Train a network to decide and to remember, and take it apart."""

    cell: str = RATES
    """Its class without "Cell", such as GRU or LSTM; LeakyRNN is the network of rates."""
    units: int = 32
    """The number of units of the cell."""
    epochs: int = 20
    """The number of epochs, of a hundred updates each."""
    starts: int = 1000
    """The number of states from which Newton's method begins."""


def draw(seed: Any, *shape: int, delays: tuple[int, int] = (0, DELAY)) -> dict[str, np.ndarray]:
    """Trials: what they show, ``(..., time, rows, 3)``, what to answer, and how sure one can be.

    Args:
        seed: of the trials.
        *shape: their number, ``(..., rows)``.
        delays: the shortest and the longest delay.

    Returns:
        ``xs``: the cue, and the evidence for left and right; ``answers (..., time, rows)``: 0 while
        the cue is on, and then 1 for left and 2 for right; ``strengths (..., rows)``: the
        difference of the means of left and right.
    """
    rng = np.random.default_rng(seed)
    strengths = rng.choice(STRENGTHS, shape) * rng.choice([-1, 1], shape)
    went = CUE + EVIDENCE + rng.integers(delays[0], delays[1] + 1, shape)[..., None, :]
    time = np.arange(CUE + EVIDENCE + delays[1] + ANSWER)[:, None]
    means = np.stack([1 + strengths, 1 - strengths], axis=-1)[..., None, :, :] / 2
    noise = NOISE * rng.normal(size=(*shape[:-1], EVIDENCE, shape[-1], 2))
    xs = np.zeros((*shape[:-1], len(time), shape[-1], 3), np.float32)
    xs[..., 0] = time < went
    xs[..., CUE : CUE + EVIDENCE, :, 1:] = means + noise
    answers = np.where(time < went, 0, np.where(strengths > 0, 1, 2)[..., None, :]).astype(np.int32)
    return {"xs": xs, "answers": answers, "strengths": strengths.astype(np.float32)}


# --8<-- [start:model]
def rates(x: jax.Array) -> jax.Array:
    """The rate of a neuron by its input: none below 0, and at most 1."""
    return jnp.maximum(jnp.tanh(x), 0)


def signs(units: int) -> jax.Array:
    """What a neuron does to the others, ``(units, 1)``: four fifths excite, one fifth inhibits."""
    return jnp.where(jnp.arange(units) < 0.8 * units, 1.0, -1.0)[:, None]


def by_dales_law(params: Any) -> Any:
    """Set the weights to 0 that have the wrong sign: a row of the kernel is one neuron's."""
    sign = signs(len(kernel := params["cell"]["recurrent_kernel"]))
    return {
        **params,
        "cell": {**params["cell"], "recurrent_kernel": sign * jnp.maximum(sign * kernel, 0)},
    }


def begin(cell: Any, dale: bool, key: jax.Array) -> Any:
    """Draw the parameters; by Dale's law inhibition is as strong as excitation, being rarer."""
    params = {"cell": cell.init(key, 3), "bias": jnp.zeros(3)}
    params["kernel"] = jax.random.normal(key, (cell.output_size, 3)) / cell.output_size**0.5
    if dale:
        sign = signs(cell.output_size)
        kernel = jnp.abs(jax.random.normal(key, (len(sign), len(sign))))
        kernel *= jnp.where(sign > 0, 1, -4)
        params["cell"]["recurrent_kernel"] = kernel * 1.5 / jnp.abs(np.linalg.eigvals(kernel)).max()
    return params


def logits(cell: Any, params: Any, xs: Any) -> jax.Array:
    """The logits of hold, left and right, ``(time, rows, 3)``."""
    return rnnjax.unroll(cell, params["cell"], xs)[1] @ params["kernel"] + params["bias"]
    # --8<-- [end:model]


def learn(config: Config, cell: Any, params: Any, dale: bool) -> Any:
    """Train a network: its parameters."""

    # --8<-- [start:loss]
    def loss_fn(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        said = logits(cell, params, batch["xs"])
        return optax.softmax_cross_entropy_with_integer_labels(said, batch["answers"]).mean()
        # --8<-- [end:loss]

    rate = optax.cosine_decay_schedule(1e-2, 100 * config.epochs)
    law = [constrain(by_dales_law)] if dale else []
    return fit(
        loss_fn, params, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate), *law),
        lambda epoch: draw((config.seed, epoch), 100, 64), config.epochs,
        key=jax.random.key(config.seed), hooks=[Silent()],
    ).params  # fmt: skip


def right(cell: Any, params: Any, trials: dict[str, np.ndarray]) -> np.ndarray:
    """Whether the last answer of each trial is right, ``(rows,)``."""
    said = logits(cell, params, trials["xs"])[-1].argmax(axis=-1)
    return np.asarray(said == trials["answers"][-1])


def take_apart(config: Config, cell: Any, params: Any) -> dict[str, Any]:
    """Find what the delay holds, and how fast states that differ a little meet along a trial.

    Returns:
        ``points``: the fixed points with the input of the delay; ``states (time, rows, size)`` of
        trials that go the right way, until their answers, and their ``strengths``; ``exponents``:
        the two largest, along a trial.
    """
    trials = draw((config.seed, 1, 1), 200, delays=(DELAY, DELAY))
    states = dynamics.visited(cell, params["cell"], trials["xs"])[:-ANSWER]
    starts = dynamics.mixtures(states[CUE + EVIDENCE :], config.starts, config.seed)
    said = np.asarray(logits(cell, params, trials["xs"])[-1])
    right_way = (said[:, 1] > said[:, 2]) == (trials["strengths"] > 0)
    xs = trials["xs"][:-ANSWER, 0]
    return {
        "points": dynamics.fixed_points(cell, params["cell"], starts, HOLD),
        "states": states[:, right_way], "strengths": trials["strengths"][right_way],
        "exponents": dynamics.lyapunov_spectrum(cell, params["cell"], xs, count=2),
    }  # fmt: skip


def show(path: Path, found: dict[str, Any]) -> None:
    """Draw the delay's fixed points, and mean trials, along two principal components."""
    states, points = found["states"], found["points"]
    centre = states.mean(axis=(0, 1))
    flat = (states - centre).reshape(-1, states.shape[-1])
    axes = np.linalg.eigh(flat.T @ flat)[1][:, :-3:-1]
    kinds = {"stable": points.ways_out == 0, "unstable": points.ways_out > 0}
    marks = {kind: (points.states[of] - centre) @ axes for kind, of in kinds.items()}
    strengths = np.unique(found["strengths"])
    means = [states[:, found["strengths"] == one].mean(axis=1) for one in strengths]
    lines = (np.stack(means, axis=1) - centre) @ axes
    title = "means of right trials, left red, right blue"
    plots.space(path, marks, lines, strengths / max(STRENGTHS), title)


def run(config: Config) -> int:
    """Train, compare with the best possible, and take apart."""
    if config.units < 2:
        raise InvalidInputError(f"--units must be at least 2 for a plane, but is {config.units}")
    options = {"leak": 0.2, "activation": rates} if config.cell == RATES else {}
    cell = dynamics.named_cell(config.cell, config.units, **options)
    kinds = {"rates": False, "rates, Dale's law": True} if options else {config.cell: False}
    report = Report.begin("dynamics", "right choices in %", config, 1)
    test = draw((config.seed, 2, 2), 4000)
    long = draw((config.seed, 3, 3), 1000, delays=(10 * DELAY, 10 * DELAY))
    evidence, left = test["xs"][CUE : CUE + EVIDENCE], test["strengths"] > 0
    votes = evidence[..., 1] - evidence[..., 2]
    best = 100 * float(((votes.sum(axis=0) > 0) == left).mean())
    report.add("all evidence, summed", best)
    report.add("the last step of the evidence alone", 100 * float(((votes[-1] > 0) == left).mean()))
    memories: dict[str, list[float]] = {}
    told: dict[str, dict[str, float]] = {}
    for name, dale in kinds.items():
        first = begin(cell, dale, jax.random.key(config.seed))
        params = learn(config, cell, first, dale)
        sure, held = (100 * float(right(cell, params, trials).mean()) for trials in (test, long))
        report.add(name, sure)
        report.add(f"{name}, a delay of {10 * DELAY} steps", held)
        found = take_apart(config, cell, params)
        points = found["points"]
        memory, before = (
            dynamics.memory_by_lag(cell, each["cell"], test["xs"][: CUE + EVIDENCE, :200])
            for each in (params, first)
        )
        stable = points.ways_out == 0
        told[name] = {
            "stable": int(stable.sum()), "unstable": int((~stable).sum()),
            "slowest": float(points.time_constants[stable, 0].max(initial=0)),
            "exponent": float(found["exponents"][0]),
            "early": float(memory[EVIDENCE - 1] / memory[0]),
            "early_before": float(before[EVIDENCE - 1] / before[0]),
        }  # fmt: skip
        print(
            "{}: the delay has {stable} stable and {unstable} unstable points; the slowest stable "
            "one draws in to 1/e in {slowest:.0f} steps; the largest exponent of a trial is "
            "{exponent:.3f} per step; the first evidence counts {early:.2f} of the last, and "
            "{early_before:.4f} before training".format(name, **told[name])
        )
        memories |= {name: memory.tolist(), f"{name}, before training": before.tolist()}
        show(report.run_dir / ("dale.png" if dale else "decisions.png"), found)
        report.accept(name, sure, best - 2, "least")
        report.accept(f"{name}, stable points", told[name]["stable"], 2, "least")
        report.accept(f"{name}, residual", points.residuals.max(initial=0), dynamics.RESIDUAL)
        if dale:
            kernel = np.asarray(params["cell"]["recurrent_kernel"])
            wrong = int((kernel * signs(config.units) < 0).sum())
            report.accept("weights of the wrong sign", wrong, 0)
            report.accept("weights that are not 0, in %", 100 * (kernel != 0).mean(), 10, "least")
    plots.curves(
        report.run_dir / "memory.png", memories, x="steps back", y="gradient of the state", log=True
    )
    return report.end(taken_apart=told, memory=memories)


main = runs.command(run, Config, "cookbook.dynamics", "--cell GRU")
if __name__ == "__main__":
    runs.exit_with(main)
