"""What the page about other libraries says of them, looked up where they are installed."""

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def test_there_is_a_row_for_each() -> None:
    assert len(ROWS) == 9
    assert len({name.split(".")[0] for name in NAMES}) == 7


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_page_is_there(name: str) -> None:
    parts = name.split(".")
    value = pytest.importorskip(parts[0])
    for at, part in enumerate(parts[1:], 1):
        if not hasattr(value, part):
            importlib.import_module(".".join(parts[: at + 1]))
        value = getattr(value, part)


def arguments(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_flax_has_six_cells_and_lengths_alone() -> None:
    linen, nnx = pytest.importorskip("flax.linen"), pytest.importorskip("flax.nnx")
    for room, base in ((linen, linen.RNNCellBase), (nnx, nnx.RNNCellBase)):
        taken = arguments(room.RNN.__call__)
        assert "seq_lengths" in taken
        assert not taken & {"mask", "resets"}
        cells = [kind for kind in vars(room).values() if inspect.isclass(kind)]
        assert sum(issubclass(kind, base) and kind is not base for kind in cells) <= 6


def test_equinox_has_two_steps() -> None:
    nn = pytest.importorskip("equinox").nn
    assert [name for name in dir(nn) if re.search("RNN|GRU|LSTM", name)] == ["GRUCell", "LSTMCell"]


def test_keras_resets_between_calls_alone() -> None:
    layers = pytest.importorskip("keras").layers
    assert "mask" in arguments(layers.LSTM.call)
    assert "resets" not in arguments(layers.LSTM.call)
    cells = {name for name in dir(layers) if name.endswith("Cell")}
    assert cells == {"GRUCell", "LSTMCell", "SimpleRNNCell"}


def test_memax_returns_all_states_and_takes_the_starts_alone() -> None:
    gras = pytest.importorskip("memax.equinox.gras").GRAS
    assert arguments(gras.__call__) == {"self", "h", "x", "key"}
    assert "start" in inspect.getsource(gras.__call__)
    assert hasattr(gras, "latest_recurrent_state")


def test_discretax_has_no_state_to_go_on_from() -> None:
    mixers = pytest.importorskip("discretax.sequence_mixers")
    assert arguments(mixers.S5SequenceMixer.__call__) == {"self", "x", "key"}
    assert not [name for name in dir(mixers) if re.search("RNN|GRU|LSTM", name)]


def test_braintrace_masks_the_loss_alone() -> None:
    learner = pytest.importorskip("braintrace").D_RTRL
    assert "mask" in arguments(learner.etrace_grad)
    assert not any("reset" in name for name in arguments(learner.etrace_grad))


def test_torchrl_has_two_modules() -> None:
    modules = pytest.importorskip("torchrl.modules")
    for kind in (modules.LSTMModule, modules.GRUModule):
        assert "in_keys" in arguments(kind.__init__)
