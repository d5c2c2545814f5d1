"""Every program learns what is made for it, better than what knows less.

Those of which something must be made smaller first, or that tell more than scores, are elsewhere.
"""

import importlib

import numpy as np
import pytest

from experiments.cookbook.spoken_digits import BOTH, SPECTRA, STREAM, WAVES

# Of each program its picture and options, and between which two its scores are, or whose.
PROGRAMS = {
    "captions": (
        "scenes", {"scenes": 640, "epochs": 12},
        {"each word for itself": (10, 100), "a GRU, word by word": (10, 100),
         "the most frequent sentence": (0, 4)},
    ),
    # One bit is two memories and a saddle.
    **{
        f"flip_flop, {cell}": (
            "fixed-points", {"cell": cell, "units": 8, "bits": 1, "epochs": 6, "starts": 200},
            {f"bits, by the {cell}": (99, 100), "fixed points": (3, 3), "stable": (2, 2),
             "one way out": (1, 1)},
        )
        for cell in ("SimpleRNN", "GRU", "LSTM")
    },
    # The next of the made chords follows from the last: only what reads it can know.
    "music": (
        "written", {"seeds": 1, "units": 16, "epochs": 60},
        {"the same after it was, or not": (0, "how often a key is pressed"),
         **dict.fromkeys(("SimpleRNN", "LSTM", "GRU", "TCN"),
                         (0, "the same after it was, or not"))},
    ),
    "online": (
        "learning", {"seeds": 1, "wait": 10, "rows": 64, "steps": 2400},
        {"DiagonalLSTM, RTRL": (0.95, 1), "DiagonalLSTM, backpropagation": (0.9, 1),
         "DiagonalLSTM, one step": (0, 0.8), "chance": (0.25, 0.25)},
    ),
    "pixel_rnn": (
        "completions",
        {"channels": 8, "layers": 1, "epochs": 3, "batch_size": 10, "learning_rate": 0.03},
        {"Row LSTM, 1 x 8 channels": (0, "the masked convolution, without an LSTM"),
         "the masked convolution, without an LSTM": (0, "each pixel for itself"),
         "each pixel for itself": (150, 28**2 * np.log(2))},
    ),
    "spirals": (
        "points", {"seeds": 2, "epochs": 8},
        {"100 regular points: S5, time as its step": (95, 100),
         "16 irregular points: S5, time as its step": (90, 100)},
    ),
    "spoken_digits": (
        "spectrum", {"seeds": 1, "epochs": 8},
        {WAVES: (70, 100), SPECTRA: (90, 100), BOTH: (90, 100), STREAM: (90, 100),
         "the last of these, in bfloat16, exported, a step a call": (90, 100),
         "mean spectrum": (100, 100)},  # each digit is a tone of its own
    ),
    "translation": (
        "attention", {"size": 48, "epochs": 60, "dropout": 0.1},
        {"perplexity": (1, 2.5), "BLEU, beam of 5": (70, 101), "BLEU, greedy": (60, 101),
         "BLEU, training sentence most alike": (99.999, 101)},  # each was seen
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_learns_what_is_made_for_it(name, ran):
    program = importlib.import_module(f"experiments.cookbook.{name.partition(',')[0]}")
    picture, options, bounds = PROGRAMS[name]
    _, scores = ran(program, picture, **options)
    for who, bound in bounds.items():
        least, most = (scores[one] if isinstance(one, str) else one for one in bound)
        assert least <= np.min(scores[who]), who
        assert np.max(scores[who]) <= most, who
