"""What pages tell their readers to try next: each sentence is done here, and its numbers are seen.

A sentence that is new, or another, needs a case below. ``make docs`` does what the pages of Learn
say, and ``make test-slow`` what those of the programs say, on what is made for them.
"""

import contextlib
import importlib
import io
import json
import re
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
NEXT = re.compile(r"\*\*Try next\.\*\* (.+?)(?:\n\n|\Z)", re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OF_NO_NUMBER = re.compile(r"\b(nan|inf)\b", re.IGNORECASE)

COMMANDS = "the commands of a page, which tests/test_pages.py runs"
OWN = "asks for data, a picture or a model of the reader's own"


class Try(NamedTuple):
    """What a sentence says: changes of the code, options of a program, lines behind a page's.

    In `CASES` a dict of changes alone, or a tuple; a text says why it is not done here.
    """

    changes: dict[str, str] = {}
    options: str = ""
    more: str = ""


MEASURE = """
for cell in (rnnjax.GRUCell(32), rnnjax.LRUCell(32)):
    left(type(cell).__name__, cell.init(jax.random.key(0), input_size=8))
    assert 0 < plt.gca().lines[-1].get_ydata()[99] < 1
"""
IN_FOUR = """
carry, parts = None, []
for part in jnp.split(xs, 4):
    carry, ys = rnnjax.unroll(cell, params, part, carry)
    parts.append(ys)
assert jnp.allclose(jnp.concatenate(parts), whole, atol=1e-5)
"""
GIVEN_AWAY = """
moved = jax.tree.map(lambda leaf: leaf.at[0].set(leaf[1]), carry)
_, ys = rnnjax.unroll(cell, params, xs[:5].at[:, 0].set(xs[:5, 1]), moved)
assert jnp.allclose(ys[:, 0], ys[:, 1], atol=1e-6)
"""
EACH_RESET = """
_, ys = rnnjax.unroll(cell, params, xs, resets=jnp.ones((100, 8), bool))
fresh = cell.step(params, cell.initial_carry((8,)), xs[70])[1]
assert jnp.allclose(ys[70], fresh, atol=1e-6)
"""
FIT = "result = fit(\n    loss_fn, params, optax.adam(1e-2), batches, 60, "
TWICE = """for epochs in (60, 62):
    result = fit(
        loss_fn, params, optax.adam(1e-2), batches, epochs, run_dir="run", """
AGENT = "--tasks t_maze --seeds 1 --units 8 --rows 4 "
PPO, R2D2 = (
    AGENT + "--rollout 12 --updates 3 --epochs 2 --parts 2",
    AGENT + "--piece 6 --pieces 3 --updates 5 --turns 2 --batch 3",
)
DYNAMICS = "--epochs 1 --starts 50 "
FLIP = "--units 8 --epochs 2 --starts 100 "
SPIRALS = "--seeds 1 --epochs 1 "
SWEEP = "--rates 0.01 --seeds 1 --updates 20 --numbers 5 "
CODES, SIZES = "STEPS, LEADS, CODE, MORE = 60, 3, {}, 40", "--windows 200 --epochs 1 --units 8"
ROWS = "--seeds 1 --epochs 1 1 1"
MGU = {"nn.GRUCell(self.units)": "nn.MGUCell(self.units)", "flax.GRUCell(": "flax.MGUCell("}

CASES: dict[str, dict[str, Any]] = {
    "learn/units": {
        "Remove the output gate from `lstm_step` and compare with the library.":
            {"jax.nn.sigmoid(o) * jnp.tanh(cell)": "jnp.tanh(cell)"},
        "Draw the first picture again with `rnnjax.cells.Chrono(40)` as the LSTM's `bias_init`.":
            {"LSTMCell(32)}": "LSTMCell(32, bias_init=rnnjax.cells.Chrono(40))}"},
        "Count the parameters of each unit from the shapes above.": "is counted on paper",
    },
    "learn/quickstart": {
        "Replace `GRUCell` by `LSTMCell` or `LRUCell`.":
            [{"GRUCell": "LSTMCell"}, {"GRUCell": "LRUCell"}],
        "Train on windows of 20 values, and see when the forecast goes astray.":
            {"series[i : i + 61] for i in range(339)": "series[i : i + 21] for i in range(379)"},
        'Add `run_dir="run"` to `fit` and call it again with more epochs.':
            ({FIT: TWICE}, "", "assert len(result.history) == 62"),
    },
    "learn/state": {
        "Cut `xs` into four parts instead of two.": ({}, "", IN_FOUR),
        "Give a row of `carry` to another sequence.": ({}, "", GIVEN_AWAY),
        "Put a reset at every step and compare with steps from a fresh state.":
            ({}, "", EACH_RESET),
    },
    "learn/bptt": {
        "Print the norm of `by_step` for a loss of the last step alone.":
            ({"total += jnp.sum(y**2)": "total = jnp.sum(y**2)"},
             "", "print(jnp.linalg.norm(by_step, axis=(1, 2)))"),
        "Use four windows instead of two and compare gradients.":
            ({"jnp.split(xs, 2)": "jnp.split(xs, 4)"}, "", "assert len(sizes) == 4"),
        "Put `jax.lax.stop_gradient` around the carry in `loss_of_copies`.":
            {"cell.step(own, carry, xs[t])": "cell.step(own, jax.lax.stop_gradient(carry), xs[t])"},
    },
    "learn/gradients": {
        "Measure a GRU and an LRU in the same way.": ({}, "", MEASURE),
        "Scale `xs` by ten and look again.": {"(100, 16, 8))": "(100, 16, 8)) * 10"},
        "Try `Chrono` in place of the open gates.":
            {'{**params, "bias": params["bias"].at[32:64].set(5.0)}':
              "rnnjax.LSTMCell(32, bias_init=rnnjax.cells.Chrono(100)).init(jax.random.key(0), 8)"},
    },
    "learn/alphabet": {
        "Reset the carry at every letter.":
            {"carry, letter[None,": "cell.initial_carry((1,)), letter[None,"},
        "Replace the LSTM by a GRU.": {"LSTMCell": "GRUCell"},
        "Train on the alphabet backwards.":
            {"letter + 1)": "letter - 1)", "jnp.arange(25),": "jnp.arange(25, 0, -1),"},
    },
    "learn/text-generator": {
        "Train on a text of your own.": COMMANDS,
        "Write at three temperatures.": COMMANDS,
        "Look for a unit that follows quotes with `inspect`.": COMMANDS,
    },
    "programs/anomalies": {
        "Halve `CODE`; then double it, until anomalies are written again too.":
            [({CODES.format(6): CODES.format(size)}, SIZES) for size in (3, 12)],
    },
    "programs/autoencoder": {
        "Halve the code.":
            ({"SIZE, CODE = 28, 32": "SIZE, CODE = 28, 16"},
             "--seeds 1 --hidden-size 8 --epochs 1"),
        "Sort codes by their digit.": OWN,
    },
    "programs/captions": {
        "Say each scene in two ways.": OWN,
        "Draw three digits.": OWN,
    },
    "programs/classification": {
        "Take the last output instead of the maximum.":
            ({'"last" if "last" in name else "max"': '"last"'}, "--seeds 1"),
        "Look at the wrong names.": OWN,
    },
    "programs/dynamics": {
        "Take `--cell LSTM`.": ({}, DYNAMICS + "--cell LSTM --units 8"),
        "Halve `--units`.": ({}, DYNAMICS + "--units 16"),
        "Take another `--seed` and count the memories.": ({}, DYNAMICS + "--seed 1 --units 8"),
    },
    "programs/flip_flop": {
        "Take `--cell GRU`.": ({}, FLIP + "--cell GRU --bits 1"),
        "Take `--bits 2` and count.": ({}, FLIP + "--bits 2"),
    },
    "programs/forecast": {
        "Forecast a file of your own.": COMMANDS,
        "Forecast twelve steps ahead with `--horizon 12`.": COMMANDS,
    },
    "programs/gradients": {
        "Train an LSTM with a forget bias of five for longer.":
            ({'("SimpleRNN", "GRU")': '("LSTM, forget bias 5",)'},
             "--seeds 1 --numbers 10 --epochs 2"),
        "Add an LRU to the cells.":
            ({'"GRU": (rnnjax.GRUCell, None),': '"LRU": (rnnjax.LRUCell, None),',
              '("SimpleRNN", "GRU")': '("LRU",)'}, "--seeds 1 --numbers 10 --epochs 1"),
    },
    "programs/language_models": {
        "`show` a folder that you have.": COMMANDS,
        "Train one of random weights on a text of your own by `finetune`, and sample.": COMMANDS,
    },
    "programs/many_models": {
        "Sweep `units` instead: that needs a program for each size, because shapes differ.":
            [({}, f"{SWEEP} --units {size}") for size in (4, 8)],
    },
    "programs/music": {
        "Train on folk tunes with `--pieces Nottingham --epochs 6`.":
            ({}, "--pieces Nottingham --epochs 1 --seeds 1 --units 8"),
        "Transpose pieces in training.": OWN,
    },
    "programs/online": {
        "Double `--wait`.": ({}, "--wait 30 --seeds 1 --rows 4 --steps 300"),
        "Take an LRU.":
            ({"rnnjax.DiagonalLSTMCell": "rnnjax.LRUCell"}, "--seeds 1 --rows 4 --steps 300"),
    },
    "programs/pixel_rnn": {
        "Double `--channels`.": ({}, "--channels 8 --layers 1 --epochs 1"),
        "Complete right halves instead of lower ones.":
            ({"astype(np.uint8).swapaxes(0, 1)": "astype(np.uint8).transpose(2, 0, 1)"},
             "--channels 4 --layers 1 --epochs 1"),
    },
    "programs/ppo": {
        "Reset at each step.":
            ({"carry, seen, resets)\n": "carry, seen, jnp.ones_like(resets))\n"}, PPO),
        "Replace the GRU by an MGU.": (MGU, PPO),
    },
    "programs/r2d2": {
        "Leave the burn-in out.":
            ({"carry, _ = agent.run(fixed, burn_in.carry, burn_in.seen, burn_in.resets)":
               "carry = piece.carry"}, R2D2),
        "Begin from zeros instead of the stored state.":
            ({"agent.run(fixed, burn_in.carry,": "agent.run(fixed, 0 * burn_in.carry,"}, R2D2),
    },
    "programs/recommendation": {
        "Take `--negatives 16`, and leave out the correction `- logs[drawn]`.":
            ({" - logs[drawn]": ""}, "--negatives 16 --sessions 200 --epochs 1 --units 8"),
    },
    "programs/remaining_life": {
        "Leave the cap of 125 out, and see which part of the error grows.":
            ({"LOADS = 125, 320,": "LOADS = 320, 320,"},
             "--engines 24 --seeds 1 --epochs 1 --units 8"),
    },
    "programs/rows_of_digits": {
        "Read pixels with an LRU.":
            ({'"GRU by pixels": (2, rnnjax.GRUCell': '"LRU by pixels": (2, rnnjax.LRUCell'}, ROWS),
        "Shuffle the pixels by one fixed order.":
            ({"(196, -1, 1)": "(196, -1, 1)[np.random.default_rng(0).permutation(196)]"}, ROWS),
    },
    "programs/seq2seq": {
        "Take `--dates 1000`, where the beam has something to do.":
            ({}, "--dates 1000 --epochs 1 --units 8"),
    },
    "programs/spirals": {
        "Take `--points 8`.": ({}, SPIRALS + "--points 8"),
        "Double `--noise`.": ({}, SPIRALS + "--noise 0.2"),
        "Add GRU-D from [the gallery](../gallery/time.md).": OWN,
    },
    "programs/spoken_digits": {
        "Take fewer bands.": ({"256, 128, 40 ": "256, 128, 20 "}, "--seeds 1 --epochs 1"),
        "Leave one speaker out of training.": OWN,
    },
    "programs/tagging": {
        "Take `--sentences 500`: the CRF gains more where there is less to learn from.":
            ({}, "--sentences 500 --epochs 1 --units 8"),
    },
    "programs/translation": {
        "Take the attention away.":
            ({"memory[0], *memory)": "memory[0], *memory)\n        contexts *= 0"},
             "--size 16 --epochs 1"),
        "Plot the attention weights of one sentence.": OWN,
    },
    "programs/video": {
        "Add a third digit.": OWN,
        "Give the ConvLSTM a second layer.":
            ({"(True, rnnjax.ConvLSTMCell(32), 4, 4)":
               "(True, rnnjax.Stack([rnnjax.ConvLSTMCell(4)] * 2), 1, 4)",
              "isinstance(cell, rnnjax.ConvLSTMCell)": "isinstance(cell, rnnjax.Stack)"},
             "--films 40"),
    },
    "programs/word_model": {
        "Take the dropout away.":
            ({"(3, 7, 16, 0.2)": "(3, 1, 16, 0.0)", "(2, 15, 8, 0.3)": "(2, 1, 8, 0.0)"},
             "--seeds 1"),
        "Use two tables of words.":
            ({'ys) @ params["words"].T': 'ys) @ params["head"].T',
              '"bias": jnp.zeros(size),':
               '"bias": jnp.zeros(size), "head": 0.1 * jax.random.normal(keys[2], (size, UNITS)),',
              "(3, 7, 16, 0.2)": "(3, 1, 16, 0.2)",
              "(2, 15, 8, 0.3)": "(2, 1, 8, 0.3)"}, "--seeds 1"),
    },
}  # fmt: skip


def test_each_sentence_has_a_case() -> None:
    said = {}
    for path in sorted((ROOT / "docs").rglob("*.md")):
        for text in NEXT.findall(path.read_text("utf-8")):
            sentences = re.split(r"(?<=\.) (?=[A-Z`])", text.replace("\n", " ").strip())
            said[str(path.relative_to(ROOT / "docs").with_suffix(""))] = sentences
    assert said == {page: list(cases) for page, cases in CASES.items()}


# A program takes up to a minute.
DONE = [
    pytest.param(
        page,
        Try(*case) if isinstance(case, tuple) else Try(case),
        id=f"{page}: {sentence[:40]}{' again' * number}",
        marks=pytest.mark.docs if page.startswith("learn") else pytest.mark.slow,
    )
    for page, cases in CASES.items()
    for sentence, said in cases.items()
    if not isinstance(said, str)
    for number, case in enumerate(said if isinstance(said, list) else [said])
]


@pytest.mark.usefixtures("compiled_fast")
@pytest.mark.parametrize(("page", "case"), DONE)
def test_what_a_page_says_to_try_runs(
    page: str, case: Try, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kind, _, name = page.partition("/")
    with mpl.rc_context({"backend": "agg"}), contextlib.redirect_stdout(io.StringIO()) as printed:
        if kind == "learn":
            try_page(page, case)
        else:
            try_program(name, case, monkeypatch)
    assert not OF_NO_NUMBER.search(printed.getvalue()), printed.getvalue()


def changed(code: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in code, old
        code = code.replace(old, new)
    return code


def try_page(page: str, case: Try) -> None:
    """Run the code of a page, and see that all that it draws is there."""
    text = changed((ROOT / f"docs/{page}.md").read_text("utf-8"), case.changes)
    names: dict[str, Any] = {"__name__": "page"}
    for code in [*BLOCK.findall(text), case.more]:
        exec(compile(code, page, "exec"), names)
        for axes in (axes for number in plt.get_fignums() for axes in plt.figure(number).axes):
            for line in axes.lines:
                heights = np.asarray(line.get_ydata(), float)
                assert np.isfinite(heights).all(), line
                assert axes.get_yscale() != "log" or (heights > 0).all(), line
        plt.close("all")


def try_program(name: str, case: Try, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a program on what is made for it; a change is one of its file, or of the agents'."""
    package = importlib.import_module("experiments.cookbook.common")
    files = ["experiments/cookbook/common/agents.py", f"experiments/cookbook/{name}.py"]
    codes = {file: (ROOT / file).read_text("utf-8") for file in files}
    places = {old: next(f for f, code in codes.items() if old in code) for old in case.changes}
    for file, code in codes.items():
        own = {old: new for old, new in case.changes.items() if places[old] == file}
        module = types.ModuleType(file.removesuffix(".py").replace("/", "."))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        if "common" in file:
            monkeypatch.setattr(package, "agents", module, raising=False)
        exec(compile(changed(code, own), file, "exec"), vars(module))
    monkeypatch.setattr(
        sys, "argv", [name, "--run-dir", "run", *case.options.split(), "--data", "made"]
    )
    assert module.main() == 0
    result = json.loads(Path("run/result.json").read_text("utf-8"))
    assert not OF_NO_NUMBER.search(json.dumps(result["rows"]))
