"""Let a model write; the command `generate`."""

import os
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.text_generator.author import Author, Decoder, Position
from experiments.text_generator.config import Generate
from experiments.text_generator.conversation import converse
from experiments.text_generator.data import AnyVocabulary, cleaned_as, encode
from experiments.text_generator.model import CharacterModel
from experiments.text_generator.stored import Trained
from experiments.text_generator.symbols import unit_of
from rnnjax.text import Sampling, load_corpus

_INTERRUPTED = 130  # as a shell reports SIGINT
_BROKEN_PIPE = 141  # and SIGPIPE


def run_generation(config: Generate) -> int:
    """Print what a trained model writes: nothing but that goes to the standard output."""
    config.check()
    # A character that the terminal cannot show is written as its number, such as \xef.
    for output in (sys.stdout, sys.stderr):
        if hasattr(output, "reconfigure"):
            output.reconfigure(errors="backslashreplace")
    try:
        trained = Trained.load(config.run_dir, config.step)
        author = Author(
            trained.model, trained.vocabulary, trained.params, config.sampling, config.length,
            config.products,
        )  # fmt: skip
        prime = prime_of(config, trained)
        if config.interactive:
            converse(author, prime, stop=config.stop, seed=config.seed)
        else:
            print_samples(author, prime, config)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print()
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read has had enough. What is still to be flushed at the end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return 0


def prime_of(config: Generate, trained: Trained) -> str:
    """The beginning of the text, which may be empty."""
    if config.prime_file is None:
        return config.prime
    return cleaned_as(load_corpus(config.prime_file), trained.config.text.vocabulary)


def print_samples(author: Author, prime: str, config: Generate) -> None:
    """Write ``--samples`` texts in one batch: one alone as it is made, more one after the other."""
    began = time.perf_counter()
    keys = sample_keys(jax.random.key(config.seed), config.samples)
    stops = [author.stop_ids(config.stop)] if config.stop else []
    position, draws = begin(author, prime, keys)
    decoders = [Decoder(author.vocabulary) for _ in range(config.samples)]
    texts = [decoder.text(row) for decoder, row in zip(decoders, position.ids.T, strict=True)]
    alone = config.samples == 1
    if alone:
        print(texts[0], end="", flush=True)
    written = author.write(position, draws, stops)
    characters = 0
    for pieces in written:
        for row, (decoder, piece) in enumerate(zip(decoders, pieces, strict=True)):
            text = decoder.text(piece)
            characters += len(piece)
            if alone:
                print(text, end="", flush=True)
            else:
                texts[row] += text
    if alone:
        print(decoders[0].end())
    else:
        for row, (text, decoder) in enumerate(zip(texts, decoders, strict=True)):
            print(f"--- sample {row + 1} of {config.samples} ---")
            print(text + decoder.end())
    sys.stdout.flush()
    seconds = time.perf_counter() - began
    unit = unit_of(author.vocabulary)
    print(f"[{characters} {unit}s in {seconds:.2f} s, compilation included]", file=sys.stderr)


def sample_keys(key: jax.Array, samples: int) -> jax.Array:
    """A key for each sample, which does not depend on how many there are."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(samples))


def begin(author: Author, prime: str, keys: jax.Array) -> tuple[Position, jax.Array]:
    """Read ``prime`` or, if it is empty, one random character for each of the keys.

    Returns:
        where that leads, and the keys of the draws that follow.
    """
    pairs = jax.vmap(jax.random.split)(keys)
    if prime:
        ids = encode(author.vocabulary, prime, "the prime text")
        position = author.read(author.start(), ids)
        return position.repeated(len(keys)), pairs[:, 1]
    size = len(author.vocabulary)
    first = jax.vmap(lambda key: jax.random.randint(key, (), 0, size))(pairs[:, 0])
    carry = author.model.initial_carry(len(keys))
    return Position(carry, np.asarray(first, np.int32)[None]), pairs[:, 1]


def write(
    model: CharacterModel,
    vocabulary: AnyVocabulary,
    params: Any,
    *,
    prime: str,
    length: int,
    temperature: float,
    key: jax.Array,
) -> str:
    """Continue ``prime``, or one random character if it is empty, by ``length`` characters."""
    author = Author(model, vocabulary, params, Sampling(temperature), length)
    position, keys = begin(author, prime, key[None])
    pieces = [position.ids[:, 0], *(row for (row,) in author.write(position, keys, []))]
    return vocabulary.decode(np.concatenate(pieces))
