"""From a corpus to the batches of each epoch."""

import dataclasses
import functools
from typing import Any

import numpy as np

from experiments.text_generator.config import Text
from experiments.text_generator.reading import AnyVocabulary, read_text
from rnnjax.errors import InvalidInputError
from rnnjax.text.batches import shuffled_batches, stream_starts, window_starts


@dataclasses.dataclass(frozen=True)
class Data:
    """A text as ids, in the parts to train on, to validate and to test, cut for training."""

    options: Text
    vocabulary: AnyVocabulary
    digest: str  # of the text, to notice that a file changed before a run resumes
    train: np.ndarray
    validation: np.ndarray  # after those, perhaps none
    test: np.ndarray  # at the end, perhaps none
    seed: int  # of the order of the windows
    rows: np.ndarray | None = None  # of every batch, those that this process reads; None is all
    characters: int = 0  # of the text before it was cleaned
    dropped: int = 0  # those of them, except white space, that the vocabulary has not

    @classmethod
    def load(cls, options: Text, seed: int) -> "Data":
        """Read, clean and cut the corpus of these options."""
        text = read_text(options)
        ids = text.ids
        test = len(ids) - round(len(ids) * options.test)
        validation = test - round(len(ids) * options.validation)
        train, held_out, last = ids[:validation], ids[validation:test], ids[test:]
        for name, part in (("validation", held_out), ("test", last)):
            if getattr(options, name) and len(part) < 2:
                raise InvalidInputError(
                    f"--{name} {getattr(options, name)} of {len(ids)} characters is {len(part)}, "
                    "but at least 2 are needed; take a longer text or a larger share"
                )
        data = cls(
            options, text.vocabulary, text.digest, train, held_out, last, seed,
            characters=text.characters, dropped=text.dropped,
        )  # fmt: skip
        _ = data.steps_per_epoch  # too short a text is refused here
        return data

    @property
    def length(self) -> int:
        """Characters of the whole text."""
        return len(self.train) + len(self.validation) + len(self.test)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch; the last one of windows may be smaller than the others."""
        rows = 1 if self.options.carry_state else self.options.batch_size
        return -(-len(self._starts) // rows)

    @property
    def characters_per_step(self) -> float:
        """Characters read in one step, on average over an epoch."""
        return self._starts.size * self.options.seq_length / self.steps_per_epoch

    def batches(self, epoch: int) -> dict[str, Any]:
        """The batches of an epoch, with a first axis of steps; their ids are as narrow as the text.

        Streams are the same in every epoch; windows come in an order of its own.
        """
        starts, weights = self._starts, np.ones(self._starts.shape, np.float32)
        if not self.options.carry_state:
            indices, weights = shuffled_batches(
                len(starts), self.options.batch_size, seed=self.seed, epoch=epoch
            )
            starts = starts[indices]
        mine = slice(None) if self.rows is None else self.rows
        # A view of all windows there are, of which these alone are copied.
        view = np.lib.stride_tricks.sliding_window_view(self.train, self.options.seq_length + 1)
        windows, weights = view[starts[:, mine]], weights[:, mine]
        return {"inputs": windows[..., :-1], "targets": windows[..., 1:], "weights": weights}

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """Where each window begins; of streams each piece, ``(steps, rows)``."""
        length, options = len(self.train), self.options
        if options.carry_state:
            return stream_starts(length, options.batch_size, options.seq_length)
        return window_starts(length, options.seq_length, options.stride)
