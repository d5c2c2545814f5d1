"""The command `inspect`: a page on what happens inside a trained model while it reads."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from experiments.shared.runs import check_ranges
from experiments.text_generator.evaluate import not_read, one_text, text_to_read, writable
from experiments.text_generator.pages import About, inspection_page, write
from experiments.text_generator.pages.properties import characters_of, properties_at, score
from experiments.text_generator.pages.recording import record
from experiments.text_generator.trained import OfRun, Trained


@dataclasses.dataclass(frozen=True)
class Inspect(OfRun):
    """Write an HTML page of the states and gates of a trained model while it reads."""

    to: Path
    """The HTML page to write."""
    file: tyro.conf.Positional[str | None] = None
    """The text, as for --corpus of train; by default the held-out part, else the beginning."""
    encoding: str | None = None
    """The encoding of FILE (utf-8), or of the run's own text (as `train` read it)."""
    corpus: str | None = None
    """Where the run's own text is, if it was moved."""
    characters: Annotated[int, (2, math.inf)] = 20_000
    """The maximum number of characters to read."""

    def check(self) -> None:
        """Raise InvalidInputError unless the options fit."""
        check_ranges(self)
        one_text(self.file, self.corpus)
        writable("--to", self.to)
        not_read("--to", self.to, self.file)


def run_inspection(config: Inspect) -> int:
    """Read a text with a trained model, and write the page."""
    config.check()
    trained = Trained.load(config.run_dir, config.step)
    not_read("--to", config.to, config.corpus or trained.config.text.corpus)
    text, source = text_to_read(trained, config.file, config.encoding, config.corpus)
    ids = text.ids[: config.characters]
    recording = record(trained.model, trained.params, ids)
    characters = characters_of(ids, trained.vocabulary)
    values = properties_at(ids, trained.vocabulary)
    scores = score(recording.states, values)
    options, unit = trained.config.model, trained.vocabulary.unit
    about = About(
        f"Inside {trained.run_dir.name}",
        f"A model of {options.layers} x {options.cell} ({options.hidden_size} units), at step "
        f"{trained.step:,}, read {len(ids):,} {unit}s of {source}. It was surprised by "
        f"{np.nanmean(recording.surprise):.3f} bits per {unit}, on average{text.dropped_note}.",
    )
    page = inspection_page(about, recording, scores, values, characters, trained.vocabulary)
    write(config.to, page)
    print("correlation  what the unit that follows it best is compared with")
    for finding in scores.of_properties():
        print(f"{finding.reported:+11.2f}  {finding.name}")
    size = f"{len(ids):,} {unit}s, {len(page.encode()) / 1e6:.2f} MB"
    print(f"{config.to}: {size}{text.dropped_note}")
    return 0
