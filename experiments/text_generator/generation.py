"""Let a model write; the command `generate`."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.text_generator.config import Generate
from experiments.text_generator.data import AnyVocabulary
from experiments.text_generator.model import CharacterModel
from experiments.text_generator.stored import Trained
from rnnjax.text import sample


def run_generation(config: Generate) -> int:
    """Print what a trained model writes."""
    trained = Trained.load(config.run_dir, config.step)
    began = time.perf_counter()
    text = write(
        trained.model, trained.vocabulary, trained.params,
        prime=config.prime, length=config.length, temperature=config.temperature,
        key=jax.random.key(config.seed),
    )  # fmt: skip
    print(text)
    seconds = time.perf_counter() - began
    print(f"[{config.length} characters in {seconds:.2f} s, compilation included]")
    return 0


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
    first_key, key = jax.random.split(key)
    if not prime:
        prime = vocabulary.decode([int(jax.random.randint(first_key, (), 0, len(vocabulary)))])
    ids = jnp.asarray(vocabulary.encode(prime))[:, None]
    carry = model.initial_carry(1)
    if len(ids) > 1:
        carry, _ = model.unroll(params, ids[:-1], carry)
    _, drawn = sample(
        model.step, params, carry, ids[-1], key=key, length=length, temperature=temperature
    )
    return prime + vocabulary.decode(np.asarray(drawn[:, 0]))
