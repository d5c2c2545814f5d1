"""Recommends the next item of a session among 5,000, as GRU4Rec does.

Session-based recommendation (Hidasi et al., 2016): a GRU reads the items that a visitor looked at.
Sessions of uneven length lie end to end in *lanes*, the rows of a batch; where one begins, a reset
empties its lane's state. A loss over all items would cost 5,000 scores a step, so each step samples
some as negatives, as likely as they are popular, whose scores are corrected for that.

The sessions are made: items belong to 100 topics, and a visitor goes from topic to topic by one of
four intents, which only the first item tells. So what the last item alone can know is four topics.

    python -m experiments.cookbook.recommendation

For sessions of your own, return them in `sessions`, as arrays of at least two numbers of items from
0 on, and put the number of items in the place of ``TOPICS * EACH``. `LANES` times `STEPS` may not
exceed the number of clicks. With some hundred items a loss over all of them is simpler.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.shared import plots, runs
from experiments.shared.report import Options, Report
from rnnjax.training import Silent, fit, truncated_loss, windows

TOPICS, EACH, INTENTS, BEST = 100, 50, 4, 20
POPULARITY = 1 / np.arange(1, EACH + 1) / (1 / np.arange(1, EACH + 1)).sum()  # within a topic
LANES, STEPS = 64, 20  # rows of a batch, and steps of a window


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Recommend the next item of a session, beside what knows the last item alone."""

    sessions: int = 20_000
    """The number of sessions to learn from; a fortieth as many test."""
    epochs: int = 6
    """The number of passes over the sessions."""
    units: int = 64
    """The number of units of the GRU, and of an item's embedding."""
    negatives: int = 256
    """The number of items that a step samples as negatives."""


def sessions(seed: Any, count: int) -> list[np.ndarray]:
    """The items of so many sessions, of 3 to 20 items each."""
    ways = np.random.default_rng(7).permuted(np.tile(np.arange(TOPICS), (INTENTS, 1)), axis=1)
    rng = np.random.default_rng(seed)
    found = []
    for intent in rng.integers(0, INTENTS, count):
        topics = [intent]  # the first topic tells the intent
        for _ in range(rng.integers(2, 20)):
            topics.append(ways[intent, topics[-1]])
        found.append(np.array(topics) * EACH + rng.choice(EACH, len(topics), p=POPULARITY))
    return found


def lanes(found: list[np.ndarray]) -> Any:
    """Sessions end to end in lanes, cut into windows: items, resets, and the next items."""
    items, follow = (np.concatenate([one[cut] for one in found]) for cut in (np.s_[:-1], np.s_[1:]))
    begins = np.concatenate([np.arange(len(one) - 1) == 0 for one in found])
    rows = len(items) // LANES * LANES
    items, follow, begins = (x[:rows].reshape(LANES, -1).T for x in (items, follow, begins))
    return windows({"items": items, "resets": begins, "next": follow}, follow, steps=STEPS)


# --8<-- [start:model]
def read(config: Config, params: Any, carry: Any, items: Any, **marks: Any) -> Any:
    """The carry, and for each step a query ``(time, lanes, units)`` for the table of items."""
    cell = rnnjax.GRUCell(config.units)
    return rnnjax.unroll(cell, params["gru"], params["table"][items], carry, **marks)
    # --8<-- [end:model]


def learn(config: Config, batches: Any, share: np.ndarray) -> Any:
    """Train with sampled negatives; ``share`` is how popular each item is."""
    cell, key, logs = rnnjax.GRUCell(config.units), jax.random.key(config.seed), jnp.log(share)

    # --8<-- [start:loss]
    def run(params: Any, carry: Any, inputs: Any, key: jax.Array) -> Any:
        carry, ys = read(config, params, carry, inputs["items"], resets=inputs["resets"])
        drawn = jax.random.choice(key, len(share), (config.negatives,), p=jnp.array(share))
        # log q(item) is taken off each score, else the popular, drawn most often, are held down.
        right = (ys * params["table"][inputs["next"]]).sum(axis=-1) - logs[inputs["next"]]
        wrong = ys @ params["table"][drawn].T - logs[drawn]
        wrong = jnp.where(drawn == inputs["next"][..., None], -jnp.inf, wrong)
        both = jnp.concatenate([right[..., None], wrong], axis=-1)
        return carry, jax.nn.logsumexp(both, axis=-1) - right
        # --8<-- [end:loss]

    table = 0.1 * jax.random.normal(key, (TOPICS * EACH, config.units))
    params = {"gru": cell.init(key, config.units), "table": table}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-3))
    return fit(
        truncated_loss(run, lambda losses, _: losses), params, optimizer, batches, config.epochs,
        key=key, carry=cell.initial_carry((LANES,)), hooks=[Silent()],
    ).params  # fmt: skip


def places(scores: Any, right: np.ndarray) -> np.ndarray:
    """The place of the right item among all, from 1 on, by ``scores (cases, items)``."""
    scores = np.asarray(scores)
    return 1 + (scores > np.take_along_axis(scores, right[:, None], axis=1)).sum(axis=1)


def measures(at: np.ndarray) -> dict[str, float]:
    """Recall, and the mean of 1 / place, which is 0 where the item is not among the best 20."""
    hit = at <= BEST
    return {"recall": 100 * float(hit.mean()), "MRR": 100 * float((hit / at).mean())}


def run(config: Config) -> int:
    """Train, rank all items at each step of new sessions, and draw by how long a session is."""
    report = Report.begin("recommendation", f"recall and mean reciprocal rank at {BEST}, %", config)
    train = sessions((config.seed, 0), config.sessions)
    test = sessions((config.seed, 1), max(20, config.sessions // 40))
    popular = np.bincount(np.concatenate(train), minlength=TOPICS * EACH) + 1.0
    together = np.zeros((TOPICS * EACH, TOPICS * EACH), np.float32)
    for one in train:
        np.add.at(together, (one[:-1], one[1:]), 1)
    params = learn(config, lanes(train), popular / popular.sum())
    items, lengths = rnnjax.pad([one[:-1] for one in test])
    right = np.asarray(rnnjax.pad([one[1:] for one in test]).xs)
    carry = rnnjax.GRUCell(config.units).initial_carry((len(test),))
    queries = read(config, params, carry, items, lengths=lengths)[1]
    valid = np.asarray(rnnjax.valid_steps(jnp.array(lengths), len(items)))
    last, wanted = np.asarray(items)[valid], right[valid]
    tie = 1e-6 * popular / popular.max()  # by popularity, where an item was never behind another
    found = {
        "the most popular items": places(np.tile(popular, (len(last), 1)), wanted),
        "what was behind the last item": places(together[last] + tie, wanted),
        "GRU4Rec": places(np.asarray(queries)[valid] @ np.asarray(params["table"]).T, wanted),
    }
    for name, at in found.items():
        for measure, score in measures(at).items():
            report.add(f"{name}: {measure}", score)
    most = {"recall": POPULARITY[:BEST], "MRR": POPULARITY[:BEST] / np.arange(1, BEST + 1)}
    for measure, parts in most.items():
        report.add(f"who knows the topic: {measure}", 100 * float(parts.sum()))
    step = np.broadcast_to(np.arange(1, len(items) + 1)[:, None], valid.shape)[valid]
    lines = {name: [100 * float((at[step == k] <= BEST).mean()) for k in range(1, 20)]
             for name, at in found.items()}  # fmt: skip
    plots.curves(report.run_dir / "recall.png", lines, x="items seen", y=f"recall at {BEST}, %",
                 xs=range(1, 20))  # fmt: skip
    report.accept("recall of GRU4Rec", measures(found["GRU4Rec"])["recall"], 70, "least")
    return report.end()


main = runs.command(run, Config, "cookbook.recommendation", "--epochs 3")
if __name__ == "__main__":
    runs.exit_with(main)
