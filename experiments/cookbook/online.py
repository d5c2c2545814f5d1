"""Learns to recall a marked letter, with an update at every step and no sequence ever stored.

A letter is marked, letters that do not matter follow, and then it is asked for. Networks read many
such streams, each row at another place, and are updated after every step, of which nothing is left.
RTRL carries forward what the parameters did to the state (Williams & Zipser, 1989): exact, and no
larger than the parameters where units do not see each other (Zucchet et al., 2023). SnAp-1 (Menick
et al., 2021) does so for an LSTM, not exactly. The baselines: the gradient of one step alone, and
of stored sequences.

    python -m experiments.cookbook.online
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.shared import data, plots, runs
from experiments.shared.report import Options, Report
from rnnjax.online import RTRL, SnAp1

LETTERS, UNITS = 4, 32
ONE_STEP, BACKWARDS = "DiagonalLSTM, one step", "DiagonalLSTM, backpropagation"
DIAGONAL = RTRL, rnnjax.DiagonalLSTMCell
KINDS: dict[str, tuple[Any, Any]] = {
    "DiagonalLSTM, RTRL": DIAGONAL, ONE_STEP: DIAGONAL, BACKWARDS: DIAGONAL,
    "LSTM, SnAp-1": (SnAp1, rnnjax.LSTMCell),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Learn to recall, with one update per step."""

    data: str | None = None
    """All data are made here; with "made" there are only DiagonalLSTMs, without bounds."""
    seeds: int = 3
    """The number of networks of each kind."""
    wait: int = 15
    """The number of letters between the marked one and the question."""
    rows: int = 32
    """The number of streams in a batch."""
    steps: int = 15_000
    """The number of steps that every network reads."""
    learning_rate: float = 3e-3
    """The learning rate of Adam."""


def read(config: Config, seed: int, time: Any, places: Any, answers: Any) -> tuple[Any, ...]:
    """The inputs of a step of all streams, which begin anew, which ask, and the answers."""
    place = (time + places) % (config.wait + 2)
    key = jax.random.fold_in(jax.random.key(seed + 1), time)
    letters = jax.random.randint(key, place.shape, 0, LETTERS)
    marked, asked = place == 0, place == config.wait + 1
    shown = jax.nn.one_hot(jnp.where(asked, -1, letters), LETTERS)
    x = jnp.concatenate([shown, marked[:, None], asked[:, None]], axis=-1)
    return x, marked, asked, jnp.where(marked, letters, answers)


# --8<-- [start:loss]
def loss(head: Any, ys: Any, asked: Any, answers: Any) -> tuple[Any, Any]:
    """The mean cross-entropy of what is asked for, and how many answers are right, of how many."""
    logits = ys @ head["kernel"] + head["bias"]
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, answers)
    right = asked & (logits.argmax(axis=-1) == answers)
    return (errors * asked).sum() / jnp.maximum(asked.sum(), 1), (right.sum(), asked.sum())
    # --8<-- [end:loss]


def learn(config: Config, kind: str, seed: int) -> list[float]:
    """Train a network: the share of right answers in each twentieth of all steps."""
    new, new_cell = KINDS[kind]
    learner, adam = new(new_cell(UNITS)), optax.adam(config.learning_rate)
    params = {"cell": learner.cell.init(jax.random.key(seed), LETTERS + 2)}
    params["head"] = {"kernel": jnp.zeros((UNITS, LETTERS)), "bias": jnp.zeros(LETTERS)}
    places = jnp.arange(config.rows)  # each row at another one, so that some ask at each step

    # --8<-- [start:model]
    def step(params: Any, memory: Any, time: Any) -> tuple[Any, ...]:
        state, answers = memory
        x, marked, asked, answers = read(config, seed, time, places, answers)
        state, y, pull = learner.step(params["cell"], state, x, marked)
        signal = jax.grad(loss, (0, 1), has_aux=True)
        (d_head, dy), counts = signal(params["head"], y, asked, answers)
        if kind == ONE_STEP:  # what came before counts for nothing
            state = state._replace(influence=jax.tree.map(jnp.zeros_like, state.influence))
        return {"cell": pull(dy), "head": d_head}, (state, answers), counts
        # --8<-- [end:model]

    def sequence(params: Any, memory: Any, first: Any) -> tuple[Any, ...]:
        def look(answers: Any, time: Any) -> tuple[Any, Any]:
            x, _, *asked = read(config, seed, time, 0 * places, answers)
            return asked[1], (x, *asked)

        # All steps of as many streams, stored; their rows begin together.
        xs, asked, answers = jax.lax.scan(look, memory[1], first + jnp.arange(stride))[1]

        def whole(params: Any) -> Any:
            ys = rnnjax.unroll(learner.cell, params["cell"], xs)[1]
            return loss(params["head"], ys, asked, answers)

        gradients, counts = jax.grad(whole, has_aux=True)(params)
        return gradients, memory, counts

    turn, stride = (sequence, config.wait + 2) if kind == BACKWARDS else (step, 1)

    def update(state: Any, time: Any) -> tuple[Any, Any]:
        params, moments, memory = state
        gradients, memory, counts = turn(params, memory, time)
        changes, moments = adam.update(gradients, moments)
        return (optax.apply_updates(params, changes), moments, memory), counts

    state = learner.init(params["cell"], (config.rows,))
    begin = params, adam.init(params), (state, jnp.zeros(config.rows, int))
    _, counts = jax.lax.scan(update, begin, jnp.arange(0, config.steps, stride))
    right, asked = (np.array_split(np.asarray(count), 20) for count in counts)
    return [float(r.sum() / np.maximum(1, a.sum())) for r, a in zip(right, asked, strict=True)]


def run(config: Config) -> int:
    """Train all kinds, and compare."""
    report = Report.begin("online", "right answers at the end of training", config, 3)
    curves = {"chance": [1 / LETTERS] * 20}
    report.add("chance", 1 / LETTERS)
    for kind in KINDS if config.data != data.MADE else list(KINDS)[:3]:
        shares = [learn(config, kind, config.seed + 10 * k) for k in range(config.seeds)]
        curves[kind] = np.mean(shares, axis=0).tolist()
        report.add(kind, [one[-1] for one in shares])
    plots.curves(report.run_dir / "learning.png", curves, x="thousand steps", y="right answers",
                 xs=[config.steps * k / 20_000 for k in range(1, 21)])  # fmt: skip
    report.accept("RTRL", curves["DiagonalLSTM, RTRL"][-1], 0.95, "least")
    report.accept("one step", curves[ONE_STEP][-1], 0.6)
    return report.end(curves=curves)


main = runs.command(run, Config, "cookbook.online", "--data made")
if __name__ == "__main__":
    runs.exit_with(main)
