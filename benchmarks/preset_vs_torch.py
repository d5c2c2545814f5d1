"""A preset of the text generator against the same model and schedule in plain PyTorch.

``python -m benchmarks.preset_vs_torch --corpus TEXT [--preset fast] [--minutes 5]``

Each trains in a process of its own, one after the other, for as many minutes as given, data reading
and compilation included; the learning rate follows the preset's schedule over that time. At the end
both are measured on the same held-out text, the last tenth but one, by which nothing was chosen:
which one has learned more? ``nn.LSTM`` knows no recurrent dropout, so its contender goes without
the preset's.
"""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np

CONTENDERS = ("rnnjax", "torch")
STEPS_PER_DISPATCH = 10  # about a second


def main() -> None:
    """Run both, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1, help="of the first round; then one more")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        run = train_rnnjax if options.worker == "rnnjax" else train_torch
        loaded = load(options.preset, options.corpus, options.seed)
        print(json.dumps(run(loaded, 60 * options.minutes)))
        return
    print("| round | | steps | training loss | held out, bits per character |")
    print("|---|---|---|---|---|")
    for number in range(options.rounds):
        for name in CONTENDERS:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.preset_vs_torch", *sys.argv[1:],
                 "--seed", str(options.seed + number), "--worker", name],
                env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode:
                sys.exit(done.stderr)
            result = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {number + 1} | {name} | {result['steps']} | {result['loss']:.4f} | "
                f"{result['validation']:.3f} |",
                flush=True,
            )


def load(preset: Any, corpus: str, seed: int) -> tuple[Any, Any]:
    """The options of the preset, and the text cut as they say."""
    from experiments.text_generator.data import Data
    from experiments.text_generator.presets import load_preset

    config = load_preset(preset)
    # The options were chosen by the last tenth of a text, and by the one before it nothing.
    text = dataclasses.replace(config.text, corpus=corpus, validation=0.1, test=0.1)
    config = dataclasses.replace(config, text=text, seed=seed)
    return config, Data.load(config.text, config.seed)


def rate(options: Any, elapsed: float, steps: int, seconds: float) -> float:
    """The learning rate of the preset's schedule, over the time there is."""
    highest = float(options.learning_rate)
    if steps < options.warmup:
        return highest * (steps + 1) / options.warmup
    share = min(1.0, elapsed / seconds)
    return highest * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


def train_rnnjax(loaded: tuple[Any, Any], seconds: float) -> dict[str, float]:
    """The text generator's own model, loss, optimiser and devices, for so many seconds."""
    from rnnjax.training import use_cores

    use_cores()
    import jax
    import jax.numpy as jnp
    import optax

    from experiments.text_generator.checkpoints import sharding_of
    from experiments.text_generator.model import CharacterModel, bits, make_loss, surprise
    from experiments.text_generator.train import matrices
    from rnnjax.training import TrainState, make_train_steps

    config, data = loaded
    began = time.perf_counter()
    model = CharacterModel.build(config.model, len(data.vocabulary))
    loss_fn = make_loss(model, carry_state=True, forget=config.text.forget)

    def adamw(learning_rate: Any) -> optax.GradientTransformation:
        decay = config.optimization.weight_decay
        return optax.chain(
            optax.clip_by_global_norm(config.optimization.clip_norm),
            optax.adamw(learning_rate, b2=0.99, weight_decay=decay, mask=matrices),
        )

    optimizer = optax.inject_hyperparams(adamw)(learning_rate=0.0)
    start = model.initial_carry(config.text.batch_size)
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    params = jax.jit(model.init)(init_key)
    state = TrainState.create(params, optimizer, key=run_key, carry=jax.tree.map(jnp.copy, start))
    sharding = sharding_of(config, params)
    train_steps = make_train_steps(loss_fn, optimizer, sharding)
    batches, losses, steps = data.batches(0), [], 0
    batches = jax.device_put(batches) if sharding is None else sharding.put_batches(batches)
    while (elapsed := time.perf_counter() - began) < seconds:
        first = steps % data.steps_per_epoch
        if first == 0:
            state = dataclasses.replace(state, carry=jax.tree.map(jnp.copy, start))
            state = state if sharding is None else sharding.put_state(state)
        now = rate(config.optimization, elapsed, steps, seconds)
        state.opt_state.hyperparams["learning_rate"] = jnp.float32(now)
        last = min(first + STEPS_PER_DISPATCH, data.steps_per_epoch)
        state, metrics = train_steps(state, batches, first, last)
        losses.append(float(metrics["loss"][last - 1]))
        steps += last - first
    validation = bits(float(surprise(model, state.params, data.validation).mean()))
    return {"steps": steps, "loss": float(np.mean(losses[-20:])), "validation": validation}


def train_torch(loaded: tuple[Any, Any], seconds: float) -> dict[str, float]:
    """Build the model from PyTorch's own modules, as its documentation writes such a program."""
    import torch

    config, data = loaded
    options, size = config.model, len(data.vocabulary)
    began = time.perf_counter()
    torch.manual_seed(config.seed)

    features = options.embedding_size or size
    embedding = torch.nn.Embedding(size, features)
    if not options.embedding_size:
        embedding.weight = torch.nn.Parameter(torch.eye(size), requires_grad=False)
    lstm = torch.nn.LSTM(
        features,
        options.hidden_size,
        options.layers,
        dropout=options.dropout if options.layers > 1 else 0.0,
    )
    dropout = torch.nn.Dropout(options.dropout)
    dense = torch.nn.Linear(options.hidden_size, size)
    network = torch.nn.ModuleList([embedding, lstm, dropout, dense])

    def forward(ids: Any, states: Any) -> Any:
        ys, states = lstm(embedding(ids), states)
        return dense(dropout(ys)), states

    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1],
         "weight_decay": config.optimization.weight_decay},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99))
    cross_entropy = torch.nn.CrossEntropyLoss()
    batches = {name: torch.tensor(np.asarray(a)).long() for name, a in data.batches(0).items()}
    losses, steps, states = [], 0, None
    while (elapsed := time.perf_counter() - began) < seconds:
        at = steps % data.steps_per_epoch
        if at == 0:
            states = None
        if states is not None:
            kept = (torch.rand(config.text.batch_size) >= config.text.forget).float()[None, :, None]
            states = tuple(state.detach() * kept for state in states)
        for group in optimizer.param_groups:
            group["lr"] = rate(config.optimization, elapsed, steps, seconds)
        logits, states = forward(batches["inputs"][at].T, states)
        loss = cross_entropy(logits.reshape(-1, size), batches["targets"][at].T.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.optimization.clip_norm)
        optimizer.step()
        losses.append(float(loss))
        steps += 1
    network.eval()
    with torch.no_grad():
        ids = torch.tensor(data.validation).long()
        total, states = 0.0, None
        for piece in range(0, len(ids) - 1, 2000):
            inputs, targets = ids[:-1][piece : piece + 2000], ids[1:][piece : piece + 2000]
            logits, states = forward(inputs[:, None], states)
            total += float(cross_entropy(logits[:, 0], targets)) * len(targets)
    validation = total / (len(ids) - 1) / math.log(2)
    return {"steps": steps, "loss": float(np.mean(losses[-200:])), "validation": validation}


if __name__ == "__main__":
    main()
