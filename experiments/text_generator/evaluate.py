"""The command `evaluate`: how well a model predicts a text."""

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.shared.runs import option
from experiments.text_generator.checkpoints import require_same_text
from experiments.text_generator.data import Data
from experiments.text_generator.model import bits, surprise
from experiments.text_generator.pages import About, evaluation_page, write
from experiments.text_generator.reading import AnyVocabulary, ReadText, read_text, require_there
from experiments.text_generator.trained import OfRun, Trained
from rnnjax.errors import InvalidInputError, NonFiniteError, RnnjaxError
from rnnjax.text import Vocabulary

# Of more than this no float64 holds the exponential.
_MOST_NATS = 700.0


@dataclasses.dataclass(frozen=True)
class Evaluate(OfRun):
    """Measure how well a trained model predicts a text, in bits per character."""

    file: tyro.conf.Positional[str | None] = None
    """The text, as for --corpus of train; by default the held-out part of the run's own text, or if
    there is none, all of it."""
    encoding: str | None = None
    """The encoding of FILE (utf-8), or of the run's own text (as `train` read it)."""
    corpus: str | None = None
    """Where the run's own text is, if it was moved."""
    page: Path | None = None
    """Also write an HTML page with the text coloured by surprise."""
    json: Path | None = None
    """Also write every character with its surprise in bits, as JSON."""

    def check(self) -> None:
        """Raise InvalidInputError unless the options fit."""
        one_text(self.file, self.corpus)
        for name in ("page", "json"):
            path = getattr(self, name)
            if path is not None:
                writable(option(name), path)
                not_read(option(name), path, self.file)
        if self.page is not None and self.json is not None and _same(self.page, self.json):
            raise InvalidInputError(
                f"--page and --json are both {self.page}, and one would replace the other; name two"
            )


def one_text(file: str | None, corpus: str | None) -> None:
    """Raise InvalidInputError if both FILE and --corpus name a text."""
    if file is not None and corpus is not None:
        raise InvalidInputError(
            f"one text is read, but FILE is {file!r} and --corpus, where the run's own text is, is "
            f"{corpus!r}; leave one of them out"
        )


def writable(name: str, path: Path) -> None:
    """Raise unless a file can be made at ``path``, which the option of this name gave."""
    if path.is_dir():
        raise InvalidInputError(f"{name} should name a file, but {path} is a folder; add a name")
    if not path.parent.is_dir():
        raise InvalidInputError(
            f"{name} should name a file in a folder that exists, but {path.parent} does not; make "
            "it first"
        )


def not_read(name: str, path: Path, corpus: str | None) -> None:
    """Raise if ``path``, which the option of this name gave, is the text that is read."""
    if corpus is not None and _same(path, Path(corpus)):
        raise InvalidInputError(
            f"{name} is {path}, the text itself, which it would replace; name another file"
        )


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def run_evaluation(config: Evaluate) -> int:
    """Print the loss of a trained model on a text; and show, or write down, where it comes from."""
    config.check()
    trained = Trained.load(config.run_dir, config.step)
    for name in ("page", "json"):
        if (path := getattr(config, name)) is not None:
            not_read(option(name), path, config.corpus or trained.config.text.corpus)
    text, corpus = text_to_read(trained, config.file, config.encoding, config.corpus)
    ids = text.ids
    losses = surprise(trained.model, trained.params, ids)
    loss, unit = float(losses.mean()), trained.vocabulary.unit
    if not math.isfinite(loss):
        raise NonFiniteError(
            "the predictions of the model should be finite, but some are NaN or infinite; choose "
            "another checkpoint by --step"
        )
    perplexity = math.exp(loss) if loss < _MOST_NATS else math.inf
    print(
        f"{corpus}: {loss:.4f} nats, {bits(loss):.3f} bits per {unit}, perplexity "
        f"{perplexity:.2f}, over {len(ids) - 1:,} {unit}s{text.dropped_note}"
    )
    if unit == "byte":
        characters = len(trained.vocabulary.decode(ids[1:]))
        print(f"that is {bits(float(losses.sum())) / characters:.3f} bits per character")
    if config.json is not None:
        stored = {
            "dropped": text.dropped,
            "dropped_share": text.dropped_share,
            **surprise_as_json(trained.vocabulary, ids, losses),
        }
        write(config.json, json.dumps(stored) + "\n")
    if config.page is not None:
        about = About(
            f"How {trained.run_dir.name} reads {corpus}",
            f"The surprise of each character, given those before it, to the model at step "
            f"{trained.step:,}{text.dropped_note}.",
        )
        page = evaluation_page(about, ids, losses / math.log(2), trained.vocabulary)
        write(config.page, page)
    return 0


def text_to_read(
    trained: Trained, file: str | None, encoding: str | None, corpus: str | None
) -> tuple[ReadText, str]:
    """A text, and what it is: a file, or of the run's own text what was held out.

    A file is cleaned as the model's own text was. One that has the run's own text is known by the
    digest, wherever it is.

    Args:
        trained: the model.
        file: the text; by default the run's own.
        encoding: of that, as the options of the commands say.
        corpus: where the run's own text is, if it was moved.

    Raises:
        InvalidInputError: the model does not know all of its characters, or the run's own text is
            not what it was.
        CorpusError: there is no such text, or it cannot be read.
    """
    stored = {"text_sha256": trained.text_sha256, "options": trained.config.as_json()}
    options = trained.config.text
    if file is not None:
        text = file_to_read(trained, file, encoding)
        own = text.digest == trained.text_sha256
        return text, f"all of {Path(file).name}, most of which it was trained on" if own else file
    options = dataclasses.replace(
        options, corpus=corpus or options.corpus, encoding=encoding or options.encoding
    )
    require_there(options.corpus)
    data = Data.load(options, trained.config.seed)
    require_same_text(data, stored, trained.run_dir)
    part, what = data.train, f"{Path(options.corpus).name}, on which it was trained"
    for name in ("test", "validation"):
        if len(held_out := getattr(data, name)):
            what = f"the {name} part of {Path(options.corpus).name}, which it was not trained on"
            part = held_out
    return ReadText(part, data.vocabulary, data.digest, data.characters, data.dropped), what


def file_to_read(trained: Trained, file: str, encoding: str | None) -> ReadText:
    """The text of a file, read as the run's own text was if it is that one."""
    options = dataclasses.replace(trained.config.text, corpus=file)
    if encoding is not None:
        options = dataclasses.replace(options, encoding=encoding)
    plain = dataclasses.replace(options, encoding=encoding or "utf-8", strip_licence=False)
    if options != plain:
        with contextlib.suppress(RnnjaxError):
            text = read_text(options, trained.vocabulary)
            if text.digest == trained.text_sha256:
                return text
    text = read_text(plain, trained.vocabulary)
    if text.dropped and len(text.ids) < 2:
        raise InvalidInputError(
            f"{file} must have at least 2 characters that the model knows, but of its "
            f"{text.characters:,} it knows {len(text.ids)}; take another text"
        )
    return text


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
        f"bits_per_{vocabulary.unit}": bits(float(losses.mean())),
        **text,
        "bits": [None, *(round(value, 4) for value in each.tolist())],
    }
