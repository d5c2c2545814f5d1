"""The command `inspect`: a page on what happens inside a trained model while it reads."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import runs
from experiments.text_generator.config import Inspect, not_read
from experiments.text_generator.data import Data
from experiments.text_generator.evaluation import ids_of
from experiments.text_generator.pages import About, inspection_page, write
from experiments.text_generator.properties import characters_of, properties_at, score
from experiments.text_generator.recording import record
from experiments.text_generator.stored import Trained
from experiments.text_generator.symbols import unit_of
from rnnjax.errors import InvalidInputError


def run_inspection(config: Inspect) -> int:
    """Read a text with a trained model, and write the page."""
    config.check()
    trained = Trained.load(config.run_dir, config.step)
    not_read("--to", config.to, trained.config.text.corpus)
    ids, source = text_to_read(trained, config.file, config.encoding)
    ids = ids[: config.characters]
    recording = record(trained.model, trained.params, ids)
    characters = characters_of(ids, trained.vocabulary)
    values = properties_at(ids, trained.vocabulary)
    scores = score(recording.states, values)
    options, unit = trained.config.model, unit_of(trained.vocabulary)
    about = About(
        f"Inside {trained.run_dir.name}",
        f"A model of {options.layers} x {options.cell} ({options.hidden_size} units), at step "
        f"{trained.step:,}, read {len(ids):,} {unit}s of {source}. It was surprised by "
        f"{np.nanmean(recording.surprise):.3f} bits per {unit}, on average.",
    )
    page = inspection_page(about, recording, scores, values, characters, trained.vocabulary)
    write(config.to, page)
    for finding in scores.of_properties():
        print(f"{finding.reported:+.2f}  {finding.name}")
    print(f"{config.to}: {len(ids):,} {unit}s, {len(page.encode()) / 1e6:.2f} MB")
    return 0


def text_to_read(trained: Trained, file: str | None, encoding: str) -> tuple[np.ndarray, str]:
    """The ids of a text, and what it is: a file, or the run's own text, held out if possible.

    Raises:
        InvalidInputError: the run's own text is not what it was.
    """
    if file is not None:
        return ids_of(trained, file, encoding), Path(file).name
    data = Data.load(trained.config.text, trained.config.seed)
    stored: Any = runs.read_json(trained.run_dir / "run.json").get("text_sha256")
    corpus = trained.config.text.corpus
    if data.digest != stored:
        raise InvalidInputError(
            f"the text of {corpus!r} is not the one that the run in {trained.run_dir} began with, "
            "so what was held out of it is not known; name a file to read"
        )
    name_of_text = Path(corpus).name
    for part, name in ((data.validation, "validation"), (data.test, "test")):
        if len(part):
            return part, f"the {name} part of {name_of_text}, which it was not trained on"
    return data.train, f"{name_of_text}, on which it was trained"
