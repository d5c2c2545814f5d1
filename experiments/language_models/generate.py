"""The command `generate`: continue a text, token by token, with the state carried on."""

import dataclasses
import functools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.language_models import folders, states, texts
from experiments.language_models.folders import Model
from experiments.language_models.states import State
from experiments.shared.runs import Natural, PositiveOrNone, Seed
from rnnjax import InvalidInputError
from rnnjax.text import Sampling
from rnnjax.text.sampling import check_drawn

PIECE = 512  # tokens that are read at once
CHUNK = 8  # tokens that are written in one call, which costs as much as a step of a small model


@dataclasses.dataclass(frozen=True)
class Generate:
    """Continue a text with a language model, and write as it is made."""

    folder: tyro.conf.Positional[Path]
    """The folder of a model, or a .pth of RWKV-7."""
    prompt: str = ""
    """The beginning of the text, or what comes behind --state."""
    tokens: Natural = 200
    """The largest number of tokens to write; a token that ends a document ends it before."""
    state: Path | None = None
    """A file of --save-state, or of finetune --train state, where this begins."""
    save_state: Path | None = None
    """A .safetensors for the state behind the last token, from which --state goes on."""
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
    state = states.read(command.state, model, command.context or len(ids) + command.tokens)
    ids = states.after(state, ids, tokenizer)
    if not ids.size:
        raise InvalidInputError("--prompt must have at least one token, but is empty; begin a text")
    needed = len(ids) + command.tokens
    if model.attends and command.context is not None and needed > command.context:
        raise InvalidInputError(
            f"--context {command.context} must hold the prompt of {len(ids)} tokens and --tokens "
            f"{command.tokens}, because the model has full attention; make it {needed}"
        )
    began = time.perf_counter()
    state = State(read_prompt(model, state.carry, ids[:-1]), ids[-1:], state.count)
    if command.save_state is not None:  # what cannot be written is refused before it is made
        states.save(command.save_state, model, state)
    text = Decoder(tokenizer, ids.tolist())
    print(command.prompt, end="", flush=True)
    count, first = 0, began
    for piece, after in write(model, state, command.tokens, sampling, command.seed):
        state = after
        first = first if count else time.perf_counter()
        count += len(piece)
        print(text.of(piece), end="", flush=True)
    print(text.end())
    seconds = time.perf_counter() - first
    if command.save_state is not None:
        states.save(command.save_state, model, state)
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


def write(
    model: Model, state: State, length: int, sampling: Sampling, seed: int
) -> Iterator[tuple[np.ndarray, State]]:
    """Yield the tokens of `rnnjax.text.stream`, each time with the state after them.

    The first one comes alone, so that it comes at once, and the others by `CHUNK`.
    """
    key, made = jax.random.fold_in(jax.random.key(seed), 0), 0
    while made < length:
        size = min(CHUNK, length - made) if made else 1
        after, drawn = draw(model, sampling, model.params, state, key, size)
        ids = np.asarray(drawn)[:size]
        count = int(np.append(np.isin(ids, model.ends), True).argmax())  # before one that ends
        check_drawn(ids[:count], made)
        if count < size:
            after, length = draw(model, sampling, model.params, state, key, count)[0], 0
        state, made = after, made + count
        yield ids[:count], state


@functools.partial(jax.jit, static_argnums=(0, 1))
def draw(
    model: Model, sampling: Sampling, params: Any, state: State, key: jax.Array, size: Any
) -> tuple[State, jax.Array]:
    """Write ``size`` tokens, no constant of the program: one serves the first one, and `CHUNK`."""

    def one(n: Any, at: Any) -> Any:
        state, drawn = at
        carry, logits = model.family.apply(model.config, params, state.last[None], state.carry)
        scores = logits[0]
        if sampling.numbers["temperature"] is not None:  # noise is a tenth of a small step
            noise = jax.random.gumbel(jax.random.fold_in(key, state.count), scores.shape[1:])
            scores = sampling.filter(scores) + noise
        best = jnp.where(jnp.isfinite(logits.max()), jnp.argmax(scores, -1), -1).astype(jnp.int32)
        return State(carry, best, state.count + 1), drawn.at[n].set(best[0])

    return jax.lax.fori_loop(0, size, one, (state, jnp.zeros(CHUNK, jnp.int32)))


def read_prompt(model: Model, carry: Any, ids: np.ndarray) -> Any:
    """Return the state after some ids, read in pieces, of which two lengths are compiled."""
    run = jax.jit(
        lambda params, ids, carry: model.family.apply(model.config, params, ids, carry)[0]
    )
    for at in range(0, len(ids), PIECE):
        carry = run(model.params, ids[at : at + PIECE, None], carry)
    return carry
