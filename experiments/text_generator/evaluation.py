"""How well a model predicts a text; the command `evaluate`."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.text_generator.config import Evaluate, not_read
from experiments.text_generator.data import AnyVocabulary, cleaned_as, encode
from experiments.text_generator.model import CharacterModel
from experiments.text_generator.pages import About, evaluation_page, write
from experiments.text_generator.stored import Trained
from experiments.text_generator.symbols import unit_of
from rnnjax.errors import InvalidInputError, NonFiniteError
from rnnjax.text import Vocabulary, load_corpus

# A row begins so many characters before its own part of the text, to have read what comes before.
_WARM_UP = 256
_PIECE = 128
# Of more than this no float64 holds the exponential.
_MOST_NATS = 700.0


def run_evaluation(config: Evaluate) -> int:
    """Print the loss of a trained model on a text; and show, or write down, where it comes from."""
    config.check()
    trained = Trained.load(config.run_dir, config.step)
    corpus = config.file or trained.config.text.corpus
    for option in ("page", "json"):
        if (path := getattr(config, option)) is not None:
            not_read(f"--{option}", path, corpus)
    ids = ids_of(trained, config.file, config.encoding)
    losses = surprise(trained.model, trained.params, ids)
    loss, unit = float(losses.mean()), unit_of(trained.vocabulary)
    if not math.isfinite(loss):
        raise NonFiniteError(
            "the predictions of the model should be finite, but some are NaN or infinite; choose "
            "another checkpoint by --step"
        )
    perplexity = math.exp(loss) if loss < _MOST_NATS else math.inf
    print(
        f"{corpus}: {loss:.4f} nats, {bits(loss):.3f} bits per {unit}, perplexity "
        f"{perplexity:.2f}, over {len(ids) - 1:,} {unit}s"
    )
    if unit == "byte":
        characters = len(trained.vocabulary.decode(ids[1:]))
        print(f"that is {bits(float(losses.sum())) / characters:.3f} bits per character")
    if config.json is not None:
        write(config.json, json.dumps(surprise_as_json(trained.vocabulary, ids, losses)) + "\n")
    if config.page is not None:
        about = About(
            f"How {trained.run_dir.name} reads {Path(corpus).name}",
            f"The surprise of each character, given those before it, to the model at step "
            f"{trained.step:,}.",
        )
        page = evaluation_page(about, ids, losses / math.log(2), trained.vocabulary)
        write(config.page, page)
    return 0


def ids_of(trained: Trained, file: str | None, encoding: str) -> np.ndarray:
    """The ids of a file, cleaned as the model's own text was; without one, of that text.

    The model's own text is read with the options of the run, another one in the encoding given.

    Raises:
        InvalidInputError: the model does not know all of its characters.
    """
    options = trained.config.text
    if file in (None, options.corpus):
        corpus, encoding, strip = options.corpus, options.encoding, options.strip_licence
    else:
        corpus, strip = str(file), False
    text = load_corpus(corpus, strip_licence=strip, encoding=encoding)
    return encode(trained.vocabulary, cleaned_as(text, options.vocabulary), corpus)


def surprise_as_json(
    vocabulary: AnyVocabulary, ids: np.ndarray, losses: np.ndarray
) -> dict[str, Any]:
    """Every character (for bytes, every byte as a number) with its bits; the first has none.

    >>> surprise_as_json(Vocabulary("ab"), np.array([1, 0]), np.array([math.log(2)]))
    {'bits_per_character': 1.0, 'characters': ['b', 'a'], 'bits': [None, 1.0]}
    """
    each = losses.astype(float) / math.log(2)
    known = isinstance(vocabulary, Vocabulary)
    text = {"characters": list(vocabulary.decode(ids))} if known else {"bytes": ids.tolist()}
    return {
        f"bits_per_{unit_of(vocabulary)}": bits(float(losses.mean())),
        **text,
        "bits": [None, *(round(value, 4) for value in each.tolist())],
    }


def surprise(model: CharacterModel, params: Any, ids: np.ndarray, *, rows: int = 32) -> np.ndarray:
    """The cross-entropy in nats of every character of a text but the first, given those before it.

    The text is read side by side in rows, each of which begins some characters early, so that its
    state is that of a reader of the whole text but for what lies further back than these.

    Args:
        model: predicts the next character.
        params: its parameters.
        ids: of the text, at least two.
        rows: at most so many; short texts are read in fewer.

    Returns:
        float32 ``(len(ids) - 1,)``.

    Raises:
        InvalidInputError: the text is too short.
    """
    count = len(ids) - 1
    if count < 1:
        raise InvalidInputError(
            f"a text to be predicted needs at least 2 characters, but has {len(ids)}"
        )
    rows = max(1, min(rows, count // (4 * _WARM_UP)))
    length = -(-count // rows)
    pieces = -(-length // _PIECE)
    begins = np.arange(rows) * length
    early = begins + np.arange(-_WARM_UP, 0)[:, None]
    own = begins + np.arange(pieces * _PIECE)[:, None]
    inputs = ids[np.clip(own, 0, count - 1)].reshape(pieces, _PIECE, rows)
    targets = ids[np.clip(own, 0, count - 1) + 1].reshape(pieces, _PIECE, rows)
    losses = _losses(model, params, ids[np.clip(early, 0, count - 1)], inputs, targets)
    return np.asarray(losses).reshape(-1, rows)[:length].T.ravel()[:count]


@functools.partial(jax.jit, static_argnums=0)
def _losses(
    model: CharacterModel, params: Any, early: jax.Array, inputs: jax.Array, targets: jax.Array
) -> jax.Array:
    def piece(carry: Any, batch: Any) -> tuple[Any, jax.Array]:
        inputs, targets = batch
        carry, losses = model.losses(params, carry, inputs.T, targets.T)
        return carry, losses.T

    start = model.initial_carry(early.shape[1])
    carry, _ = model.unroll(params, early, start)
    # The first row begins where the text does.
    carry = jax.tree.map(lambda new, old: new.at[0].set(old[0]), carry, start)
    return jax.lax.scan(piece, carry, (inputs, targets))[1]


def bits(nats: float) -> float:
    """Bits of so many nats.

    >>> bits(math.log(2))
    1.0
    """
    return nats / math.log(2)


def held_out(model: CharacterModel, ids: np.ndarray, name: str) -> Any:
    """``params -> metrics``: loss and bits per character or byte of a part of the text, by name."""

    def measure(params: Any) -> dict[str, float]:
        loss = float(surprise(model, params, ids).mean())
        return {f"{name}_loss": loss, f"{name}_bits": bits(loss)}

    return measure
