"""The command `generate`: continue a text, token by token, with the state carried on."""

import dataclasses
import functools
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.language_models import folders, texts
from experiments.language_models.folders import Model
from experiments.shared.runs import Natural, Positive, PositiveOrNone, Seed
from rnnjax import InvalidInputError
from rnnjax.text import Sampling, stream

PIECE = 512  # tokens that are read at once


@dataclasses.dataclass(frozen=True)
class Generate:
    """Continue a text with a language model, and write as it is made."""

    folder: tyro.conf.Positional[Path]
    """The folder of a model, or a .pth of RWKV-7."""
    prompt: str
    """The beginning of the text."""
    tokens: Positive = 200
    """The largest number of tokens to write; a token that ends a document ends it before."""
    temperature: float = 0.0
    """Divides the logits; 0 takes the most probable token, 1 samples as predicted."""
    top_k: Natural = 0
    """Sample from this many most probable tokens (Fan et al., 2018); 0 for all."""
    context: PositiveOrNone = None
    """The most tokens that full attention may hold; by default those of prompt and --tokens."""
    seed: Seed = 0
    """The seed of the samples."""
    tokenizer: Path | None = None
    """A tokenizer.json; by default the one in the folder."""


def run_generation(command: Generate) -> int:
    """Print the prompt and what follows; how fast goes to standard error."""
    sampling = Sampling(command.temperature, command.top_k)
    model = folders.read(command.folder)
    tokenizer = texts.read_tokenizer(model, command.tokenizer)
    ids = tokenizer.encode(command.prompt)
    if not ids.size:
        raise InvalidInputError("--prompt must have at least one token, but is empty; begin a text")
    needed = len(ids) + command.tokens
    if model.attends and command.context is not None and needed > command.context:
        raise InvalidInputError(
            f"--context {command.context} must hold the prompt of {len(ids)} tokens and --tokens "
            f"{command.tokens}, because the model has full attention; make it {needed}"
        )
    began = time.perf_counter()
    carry = model.family.begin(model.config, 1, command.context or needed, model.dtype)
    carry = read_prompt(model, carry, ids[:-1])
    written = stream(
        one_step(model), model.params, carry, jnp.array(ids[-1:]), key=jax.random.key(command.seed),
        length=command.tokens, sampling=sampling, stops=[[end] for end in model.ends], chunk=1,
    )  # fmt: skip
    text = Decoder(tokenizer, ids.tolist())
    print(command.prompt, end="", flush=True)
    count, first = 0, began
    for (piece,) in written:
        first = first if count else time.perf_counter()
        count += len(piece)
        print(text.of(piece), end="", flush=True)
    print(text.end())
    seconds = time.perf_counter() - first
    speed = f", then {(count - 1) / seconds:,.1f} tokens per second" if count > 1 else ""
    print(f"{count} tokens; the first after {first - began:.1f} s with compilation{speed}",
          file=sys.stderr)  # fmt: skip
    return 0


class Decoder:
    """Text as it becomes known: a character in several tokens, only after the last of them.

    New ids are decoded behind others whose text is known, because some tokenizers leave out a space
    at the start of a text.

    Args:
        tokenizer: what decodes.
        ids: those of the text before.
    """

    def __init__(self, tokenizer: Any, ids: list[int]) -> None:
        self.tokenizer, self.ids = tokenizer, ids
        self.known = len(ids)  # how many ids are of known text alone
        self.given = 0  # how many characters behind these were returned

    def of(self, ids: np.ndarray) -> str:
        """Return the text that these ids complete."""
        self.ids = [*self.ids, *ids.tolist()]
        text = self._unknown()
        whole = text.rstrip("\ufffd")  # the first bytes of a character, or of no text at all
        new, self.given = whole[self.given :], len(whole)
        if whole and whole == text:
            self.ids, self.given = self.ids[self.known :], 0
            self.known = len(self.ids)
        return new

    def end(self) -> str:
        """Return U+FFFD for bytes that became no character."""
        return self._unknown()[self.given :]

    def _unknown(self) -> str:
        known = self.tokenizer.decode(self.ids[: self.known])
        return str(self.tokenizer.decode(self.ids)[len(known) :])


@functools.lru_cache(8)
def one_step(model: Model) -> Any:
    """Return ``(params, carry, tokens (batch,)) -> (carry, logits)``."""

    def step(params: Any, carry: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
        carry, logits = model.family.apply(model.config, params, tokens[None], carry)
        return carry, logits[0]

    return step


def read_prompt(model: Model, carry: Any, ids: np.ndarray) -> Any:
    """Return the state after some ids, read in pieces, of which two lengths are compiled."""
    run = jax.jit(
        lambda params, ids, carry: model.family.apply(model.config, params, ids, carry)[0]
    )
    for at in range(0, len(ids), PIECE):
        carry = run(model.params, ids[at : at + PIECE, None], carry)
    return carry
