"""Drawn faults: whether an ordinary run would notice a change that nobody thought of.

    python -m tests.mutants                                     # 30 of each room
    python -m tests.mutants engine training --draw 10 --seed 1  # others, of these rooms

Each is one operator, comparison or constant of the code that is another, as a slip of the finger
leaves it. The tests of the room run, those that name the file first, until one fails: a survivor
takes some minutes. It is in code that no number depends on, or wants a test; or it is the same
program in other words, such as one with a block of another size.
"""

import argparse
import ast
import random
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults import ROOT, Copy, Fault, run

# Of each room the modules and folders, below `rnnjax` but for the programs.
ROOMS = {room: [f"rnnjax/{room}"] for room in ("cells", "engine", "online", "testing", "training")}
ROOMS |= {room: [f"rnnjax/{room}"] for room in ("text", "interop")} | {
    "layers": ["rnnjax/layers", "rnnjax/packing"],
    "ground": ["rnnjax/checks", "rnnjax/meshes"],
    "wrappers": ["rnnjax/linen", "rnnjax/nnx", "rnnjax/flax_cells"],
    "experiments": ["experiments"],
}
OTHER = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "//"), ast.Pow: ("**", "*"), ast.MatMult: ("@", "*"),
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"), ast.Or: ("or", "and"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"),
}  # fmt: skip


def computed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes inside, except types, messages of errors, and arguments that only check."""
    if isinstance(node, ast.keyword) and node.arg in ("strict", "stacklevel"):
        return
    yield node
    for field, child in ast.iter_fields(node):
        said = isinstance(node, ast.Raise) or (isinstance(node, ast.Assert) and field == "msg")
        if said or field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for each in child if isinstance(child, list) else [child]:
            if isinstance(each, ast.AST):
                yield from computed(each)


def changes(text: str) -> Iterator[tuple[int, int, bytes]]:
    """Every place of a program that can be another: from byte to byte, and what stands there."""
    source = text.encode()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def place(node: ast.expr) -> tuple[int, int]:
        ends = node.end_lineno or 0, node.end_col_offset or 0
        return starts[node.lineno - 1] + node.col_offset, starts[ends[0] - 1] + ends[1]

    def between(left: ast.expr, right: ast.expr, operator: ast.AST) -> Iterator:
        if type(operator) in OTHER:
            old, new = (word.encode() for word in OTHER[type(operator)])
            begin, end = place(left)[1], place(right)[0]
            pattern = rb"\s+".join(map(re.escape, old.split()))
            if found := re.search(pattern, source[begin:end]):
                yield begin + found.start(), begin + found.end(), new

    for node in computed(ast.parse(text)):
        match node:
            case ast.BinOp():
                yield from between(node.left, node.right, node.op)
            case ast.Compare():
                operands = [node.left, *node.comparators]
                for left, right, op in zip(operands, operands[1:], node.ops, strict=False):
                    yield from between(left, right, op)
            case ast.BoolOp():
                yield from between(node.values[0], node.values[1], node.op)
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                yield place(node)[0], place(node.operand)[0], b""
            case ast.Constant(value=bool()):
                yield *place(node), str(not node.value).encode()
            case ast.Constant(value=int()):
                yield *place(node), str(node.value + 1).encode()
            case ast.Constant(value=float()):
                yield *place(node), repr(1.5 * node.value or 0.5).encode()


def tests_of(room: str, place: Path) -> list[str]:
    """Return the tests of a room's folder and of the top one; first those that name the file."""
    folder = ROOT / "tests" / room
    files = folder.rglob("test_*.py") if folder.is_dir() else (ROOT / "tests").glob("test_*.py")

    def spoken(path: Path) -> int:
        text = path.read_text(encoding="utf-8").lower() + 99 * path.name
        return text.count(place.stem) + text.count(place.parent.name)

    chosen = [p for p in files if not re.search("bench|page|docs|package|faults|types", p.name)]
    return [str(p.relative_to(ROOT)) for p in sorted(chosen, key=spoken, reverse=True)]


def drawn(room: str, number: int, seed: int) -> list[Fault]:
    """So many mutants of a room, as faults; the same for the same seed."""
    found = []
    for place in ROOMS[room]:
        for file in sorted([*ROOT.glob(f"{place}.py"), *ROOT.glob(f"{place}/**/*.py")]):
            text = file.read_text(encoding="utf-8")
            found += [(file.relative_to(ROOT), text, change) for change in changes(text)]
    made = []
    for file, text, (begin, end, new) in random.Random(seed).sample(found, min(number, len(found))):
        source = text.encode()
        other = (source[:begin] + new + source[end:]).decode()
        line = source[:begin].count(b"\n")
        was, now = (each.splitlines()[line].strip() for each in (text, other))
        about = f"{file}:{line + 1}: {was!r} is {now!r}"
        tests = ("-m", "not slow and not docs", *tests_of(room, file))
        made.append(Fault(about, room, str(file), text, other, tests))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, and print what became of each; the exit status is 0 where 9 of 10 are noticed."""
    parser = argparse.ArgumentParser("python -m tests.mutants", description="Draw faults.")
    parser.add_argument("rooms", nargs="*", help=f"of {', '.join(ROOMS)}; by default all")
    parser.add_argument("--draw", type=int, default=30, help="of each room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="how many copies work side by side")
    given = parser.parse_args(arguments)
    if unknown := set(given.rooms) - set(ROOMS):
        parser.error(f"there is no room {', '.join(unknown)}")
    rooms = given.rooms or ROOMS
    faults = [fault for room in rooms for fault in drawn(room, given.draw, given.seed)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [Copy(Path(folder).resolve() / str(i)) for i in range(given.jobs)]
        for copy in copies:
            copy.patience = 600
        return run(faults, copies, skip_clean=True, missed="MISSED", enough=0.9)


if __name__ == "__main__":
    sys.exit(main())
