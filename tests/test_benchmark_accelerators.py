"""What is compiled for accelerators: the table is complete, and what got worse is said."""

import inspect
import sys
from unittest.mock import Mock

import pytest

import rnnjax
from benchmarks import accelerators
from benchmarks.accelerators import CELLS, SMALL, read, regressions
from benchmarks.compiled import Compiled, Target
from rnnjax import Kernel


def test_every_cell_that_a_kernel_serves_is_compiled() -> None:
    named = [getattr(rnnjax, name) for name in rnnjax.__all__]
    cells = {kind for kind in named if inspect.isclass(kind) and issubclass(kind, rnnjax.Cell)}
    declared = {kind for kind in cells if kind.carry is not None}
    # The kernel of a convolution is none.
    assert declared - {rnnjax.ConvLSTMCell} == {type(cell) for cell in CELLS.values()}
    assert not any(Kernel().refusal(cell) for cell in CELLS.values())
    rows = {row[1]: row for row in read() if row[0] == "v5e"}
    for name in CELLS:
        for kernels, which in (("1", "forward"), ("2", "gradient")):
            assert rows[f"{name}, {which}, Kernel()"][2] == kernels
    rows = {row[1]: row for row in read() if row[0] == "h100"}
    for name in SMALL:  # and all of it is in registers
        for kernels, which in (("1", "forward"), ("2", "gradient")):
            assert rows[f"{name}, {which}, Kernel()"][2:6] == [kernels, "0", "0", "0"]


def test_what_devices_of_a_cpu_send_is_read(tmp_path) -> None:
    target = object.__new__(Target)
    target._folder = Mock()
    target._folder.name = str(tmp_path)
    text = """  %a = (f32[64,512]{1,0}, f32[], bf16[3]{0}) all-reduce(%x, %y), channel_id=1
  %b = f32[8]{0} add(%a, %a)
  ROOT %c = s32[2,3]{1,0} all-gather-start(%b)"""
    name = "module_0001.jit_train_steps.cpu_after_optimizations.txt"
    (tmp_path / name).write_text(text)
    assert target.sent("train_steps") == Compiled(0, 4 * 64 * 512 + 4 + 6 + 24, 2)


@pytest.mark.parametrize("options", [["--only", "LSTM"], ["--only", "LSTM", "--keep"]])
def test_what_cannot_be_compiled_fails(options: list[str], monkeypatch, tmp_path) -> None:
    """Though it was not asked for all of the table."""
    monkeypatch.setattr(accelerators, "Target", Mock())
    monkeypatch.setattr(accelerators, "TABLE", tmp_path / "table.csv")
    monkeypatch.setattr(accelerators, "compiler", lambda target: "jax 1")
    fails = Mock(side_effect=RuntimeError("no"))
    monkeypatch.setattr(accelerators, "programs", lambda target: iter([("LSTM", fails)]))
    monkeypatch.setattr(sys, "argv", ["accelerators", "--target", "v5e", *options])
    with pytest.raises(SystemExit) as ended:
        accelerators.main()
    assert ended.value.code


def test_what_got_worse_fails(monkeypatch) -> None:
    monkeypatch.setattr(accelerators, "compiler", lambda target: "jax 1")
    kept = [["v5e", name, "2", "100", "1", "0", "jax 1"] for name in "abcdei"]
    kept += [["v4", "f", "2", "100", "1", "0", "jax 1"]]
    kept += [["v5e", "g", "2", "100", "1", "0", "jax 0"]]
    found = {
        "a": Compiled(2, 100, 1),
        "b": Compiled(1, 100, 1),
        "c": Compiled(2, 102, 1),
        "d": Compiled(3, 50, 2),
        "i": Compiled(2, 100, 1, 8),
        "g": Compiled(2, 102, 1, 8),  # another compiler schedules otherwise
        "h": Compiled(2, 100, 1),
    }
    worse = list(regressions("v5e", found, kept, complete=True))
    assert [line[0] for line in worse] == ["b", "c", "d", "e", "i", "h"]
    assert worse[1] == "c: 100 a step before, now 102"
    some = list(regressions("v5e", {"c": found["c"]}, kept, complete=False))
    assert some == worse[1:2]
