"""The command `evaluate`: how many bits a model needs for each byte of a text."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.language_models import folders, states, texts
from experiments.language_models.folders import Model
from experiments.language_models.generate import PIECE
from experiments.shared.runs import Positive
from rnnjax import InvalidInputError, NonFiniteError


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure how well a language model predicts a text, in bits per byte."""

    folder: tyro.conf.Positional[Path]
    """The folder of a model, or a .pth of RWKV-7."""
    corpus: Path
    """A text file (UTF-8), or a folder of .txt files."""
    context: Positive = 1024
    """The number of tokens of a window, in which a model with full attention reads the text."""
    state: Path | None = None
    """A file of generate --save-state or finetune --train state, from which the text goes on."""
    tokenizer: Path | None = None
    """A tokenizer.json; by default the one in the folder."""


def run_evaluation(command: Evaluate) -> int:
    """Print the bits per byte of a text."""
    model = folders.read(command.folder)
    tokenizer = texts.read_tokenizer(model, command.tokenizer)
    text = "".join(texts.read_texts(command.corpus))
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise InvalidInputError(
            f"{command.corpus} must have at least two tokens, but has {len(ids)}; take a longer one"
        )
    # The first id is given, not predicted: it begins every text, or stands for some bytes.
    given = tokenizer.restore(ids[:1])
    given = given if text.startswith(given) else tokenizer.decode(ids[:1])
    counted = len(text.encode()) - (1 if "\ufffd" in given else len(given.encode()))
    if not tokenizer.restore(ids).strip().endswith(text.strip()):
        print("the tokens do not give the whole text back, as the tokenizer drops or replaces a "
              "part of it: they are easier to predict than the text", file=sys.stderr)  # fmt: skip
    state = states.read(command.state, model, command.context)
    if len(state.last):  # by which the first id is predicted
        ids, counted = states.after(state, ids, tokenizer), len(text.encode())
    bits = bits_of(model, ids, command.context if model.attends else None, state.carry)
    if not math.isfinite(bits):
        raise NonFiniteError(
            f"{command.folder} must give finite probabilities, but gives NaN; check its tensors"
        )
    how = "carried over the whole text"
    if model.attends:
        how = f"in windows of {command.context} tokens, because the model has full attention"
    print(f"{bits / counted:.4f} bits per byte, {bits / (len(ids) - 1):.4f} bits per token: "
          f"{counted:,} bytes in {len(ids) - 1:,} tokens, {how}")  # fmt: skip
    return 0


def bits_of(model: Model, ids: np.ndarray, window: int | None, begin: Any) -> float:
    """Return the bits of all ids after the first; a window of ids begins anew."""
    length = min(PIECE if window is None else window, len(ids) - 1)

    @jax.jit
    def piece(params: Any, carry: Any, ids: Any, targets: Any) -> Any:
        carry, logits = model.family.apply(model.config, params, ids, carry)
        logs = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        return carry, logs

    total, carry = 0.0, begin
    for at in range(0, len(ids) - 1, length):
        part = ids[at : at + length + 1]
        count = len(part) - 1
        part = np.pad(part, (0, length - count))[:, None]  # the last one, to one length
        carry, logs = piece(model.params, begin if window else carry, part[:-1], part[1:])
        total -= float(np.asarray(logs, np.float64)[:count].sum())
    return total / math.log(2)
