"""Drawn faults: whether an ordinary run would notice a change that nobody thought of.

    python -m tests.mutants                                     # 30 of each room
    python -m tests.mutants engine training --draw 10 --seed 1  # others, of these rooms

Each is one operator, comparison or constant of the code that is another, as a slip of the finger
leaves it, in a copy of the tree. The examples of the file run there, and the tests of the room,
those that name it first, until one fails; then the file is put back. A survivor takes some minutes.
It is in code that no number depends on, or wants a test; or it is the same program in other words,
such as one with a block of another size. A run that ends in another way, such as by an error before
the first test, says nothing of the tests. Nothing in the tree itself is changed.
"""

import argparse
import ast
import contextlib
import dataclasses
import math
import os
import queue
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 600.0  # seconds for the tests of one mutant
MEMORY = 8 * 2**30  # bytes for them: an end of a loop that is another takes all there is
ENOUGH, CHANCE = 0.9, 0.01  # which share should be noticed, and how often few are by chance alone
PACKAGES = ("rnnjax", "experiments", "benchmarks")

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

    chosen = [p for p in files if not re.search("bench|page|docs|package|mutants|types", p.name)]
    return [str(p.relative_to(ROOT)) for p in sorted(chosen, key=spoken, reverse=True)]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A file of the tree with one change in it, and the tests that should notice."""

    name: str  # room, file, line, and what stands there
    path: str  # the file, from the root of the tree
    text: str  # what is put in the place of its text
    tests: tuple[str, ...]  # as pytest takes them


def drawn(room: str, number: int, seed: int) -> list[Mutant]:
    """So many mutants of a room; the same for the same seed."""
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
        name = f"{room}: {file}:{line + 1}: {was!r} is {now!r}"
        tests = ("-m", "not slow and not docs", str(file), *tests_of(room, file))
        made.append(Mutant(name, str(file), other, tests))
    return made


def verdict(status: int | None, output: str) -> str:
    """What pytest's exit status (None: out of time) and output say of a mutant.

    An error at the collection of a file ends with the status of a failed test as well, but names
    no test.
    """
    if status is None:
        return f"TIMEOUT after {PATIENCE:.0f} s"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+?::.+?)(?: - .*)?$", output, re.MULTILINE)
    if status == 1 and failed:
        return f"caught by {failed[1]}"
    if status == 0:
        return "MISSED"
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
    return f"BROKEN, status {status}: {last.strip()}"


class Copy:
    """A copy of the tree: the files that git knows, and those that it would be told of."""

    process: subprocess.Popen[bytes] | None = None

    def __init__(self, folder: Path):
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-coz", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():  # else it is deleted, and git was not told yet
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        code = f"import {', '.join(PACKAGES)}; print(*({', '.join(PACKAGES)}), sep='\\n')"
        _, found = self.run(["-c", code])
        if found.count(f"from '{folder}{os.sep}") != len(PACKAGES):
            raise RuntimeError(f"the packages should be imported from the copy, but are:\n{found}")

    def run(self, arguments: Sequence[str]) -> tuple[int | None, str]:
        """Exit status (None: out of time) and output of Python, in the copy."""
        # A file, as whoever is left of a killed run would keep a pipe open. No bytecode, which is
        # told from that of a mutant by the second in which its source was written.
        environment = os.environ | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        # What the tree's own tests have compiled is what a change elsewhere leaves as it was.
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder, env=environment, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            if sys.platform == "linux":
                resource.prlimit(process.pid, resource.RLIMIT_DATA, (MEMORY, MEMORY))
            status: int | None = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process = process
                status = process.wait(PATIENCE)
            if status is None:
                self.stop()
            output.seek(0)
            return status, output.read()

    def stop(self) -> None:
        """End what runs here, with whatever it has started itself."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def judge(self, mutant: Mutant) -> str:
        """The verdict of the tests, up to the first that fails; the file is then what it was."""
        path = self.folder / mutant.path
        text = path.read_text(encoding="utf-8")
        path.write_text(mutant.text, encoding="utf-8")
        try:
            command = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests]
            return verdict(*self.run(command))
        finally:
            path.write_text(text, encoding="utf-8")


def run(mutants: Sequence[Mutant], copies: Sequence[Copy]) -> int:
    """Judge the mutants in these copies, side by side; return the exit status."""
    free: queue.Queue[Copy] = queue.Queue()
    for copy in copies:
        free.put(copy)

    def judge(mutant: Mutant) -> bool:
        copy, began = free.get(), time.monotonic()
        try:
            said = copy.judge(mutant)
        finally:
            free.put(copy)
        print(f"{time.monotonic() - began:5.1f} s  {mutant.name}: {said}", flush=True)
        return said != "MISSED"

    with ThreadPoolExecutor(len(copies)) as pool:
        try:
            noticed = list(pool.map(judge, mutants))
        except BaseException:  # Ctrl-C and SIGTERM among them
            pool.shutdown(wait=False, cancel_futures=True)
            for copy in copies:
                copy.stop()
            raise
    for mutant, was_noticed in zip(mutants, noticed, strict=True):
        if not was_noticed:
            print(f"not noticed: {mutant.name}")
    print(f"{sum(noticed)} of {len(mutants)} are noticed")
    return 0 if likely(sum(noticed), len(mutants)) >= CHANCE else 1


def likely(noticed: int, number: int) -> float:
    """How often so few or fewer of a number are noticed, by chance, where `ENOUGH` of all would be.

    Of 33 a night 29 or fewer are in four of ten, so to ask for `ENOUGH` of each would cry wolf.
    """
    ways = (
        math.comb(number, k) * ENOUGH**k * (1 - ENOUGH) ** (number - k) for k in range(noticed + 1)
    )
    return sum(ways)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, and print what became of each; the exit status is 1 where too few are noticed."""
    parser = argparse.ArgumentParser("python -m tests.mutants", description="Draw faults.")
    parser.add_argument("rooms", nargs="*", help=f"of {', '.join(ROOMS)}; by default all")
    parser.add_argument("--draw", type=int, default=30, help="of each room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="how many copies work side by side")
    given = parser.parse_args(arguments)
    if unknown := set(given.rooms) - set(ROOMS):
        parser.error(f"there is no room {', '.join(unknown)}")
    rooms = given.rooms or ROOMS
    mutants = [mutant for room in rooms for mutant in drawn(room, given.draw, given.seed)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        # Resolved, for where the temporary folder is a link.
        copies = [Copy(Path(folder).resolve() / str(i)) for i in range(given.jobs)]
        return run(mutants, copies)


if __name__ == "__main__":
    sys.exit(main())
