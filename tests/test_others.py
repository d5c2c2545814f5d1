"""What README and the page about other libraries say of them, where these are installed."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

# Other libraries warn when they are imported, of JAX and of each other.
pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = Path(__file__).parents[1] / "docs" / "from" / "others.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text("utf-8").splitlines()
    if re.match(r"\| (?!library|---)", line)
]
# Of each row the names that it has, and those that rnnjax has for it.
NAMES = {
    name: row[0]
    for row in ROWS
    for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", " ".join(row[1:4]))
    if not name.startswith(("rnnjax.", "lax."))
}
assert (len(ROWS), len({name.split(".")[0] for name in NAMES})) == (9, 7)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_page_is_there(name):
    parts = name.split(".")
    value = pytest.importorskip(parts[0])
    for at, part in enumerate(parts[1:], 1):
        if not hasattr(value, part):
            importlib.import_module(".".join(parts[: at + 1]))
        value = getattr(value, part)


# Of a function, what it takes; and what none of its arguments is called, or one of all its names.
CLAIMS = [
    ("flax.linen", "RNN.__call__", {"seq_lengths"}, "mask|resets"),
    ("flax.nnx", "RNN.__call__", {"seq_lengths"}, "mask|resets"),
    ("flax.linen", "RNN.__call__", {"initial_carry", "return_carry"}, "mask|resets"),
    ("keras.layers", "LSTM.call", {"mask", "initial_state"}, "resets"),
    ("torch.nn", "LSTM.forward", {"input", "hx"}, "mask|lengths|resets"),
    ("torch.nn.utils.rnn", "pack_padded_sequence", {"lengths"}, "mask|resets"),
    ("memax.equinox.gras", "GRAS.__call__", {"start"}, "lengths|mask|reverse"),
    ("discretax.sequence_mixers", "S5SequenceMixer.__call__", {"x", "key"}, "state|carry|resets"),
    ("braintrace", "D_RTRL.etrace_grad", {"mask"}, "reset"),
    ("torchrl.modules", "LSTMModule.__init__", {"in_keys"}, "nothing"),
    ("torchrl.modules", "GRUModule.__init__", {"in_keys"}, "nothing"),
]


@pytest.mark.parametrize(("module", "name", "taken", "lacking"), CLAIMS)
def test_a_function_takes_what_the_page_says(module, name, taken, lacking):
    value = pytest.importorskip(module)
    for part in name.split("."):
        value = getattr(value, part)
    arguments = set(inspect.signature(value).parameters)
    # Where memax takes the starts is inside of its inputs.
    assert all(n in arguments or n in inspect.getsource(value) for n in taken)
    assert not [n for n in arguments if re.search(lacking, n)]
