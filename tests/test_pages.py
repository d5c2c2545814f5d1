"""Every page runs: its Python from top to bottom, its commands with small arguments, its links.

What is marked ``docs`` runs in ``make docs`` alone.
"""

import contextlib
import dis
import importlib
import importlib.util
import inspect
import io
import os
import re
import shlex
import shutil
import string
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import jax
import language_model_helpers
import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from cell_table import CELLS, PUBLIC
from PIL import Image

import rnnjax
from experiments.cookbook.__main__ import PROGRAMS as COOKBOOK
from experiments.language_models import states
from experiments.shared import runs
from rnnjax.interop import Model, convert
from rnnjax.interop import keras as from_keras
from rnnjax.testing import check_cell

os.environ["KERAS_BACKEND"] = "jax"
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [
        *ROOT.glob("*.md"),
        *DOCS.rglob("*.md"),
        *ROOT.glob("experiments/*/README.md"),
        *ROOT.glob(".github/**/*.md"),
    ]
)
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
# Heavy peers, without which their blocks are left out.
PEERS = {"torch", "transformers", "tokenizers", "tensorflow", "onnxruntime", "equinox"}
# Whose later blocks read the files that such a block writes.
ONE_AFTER_THE_OTHER = {"docs/do/language-models.md"}


pytestmark = pytest.mark.usefixtures("compiled_fast")


def fences(page: str, *languages: str) -> list[str]:
    """What stands in the fenced blocks of a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", TEXTS[page], re.MULTILINE | re.DOTALL)
    return [block for language, block in found if language in languages]


def script(name: str) -> Any:
    """A program of the documentation, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OUTPUTS = script("outputs")
PAGE = "docs/your-own-cell.md"
WITH_PYTHON = [page for page in PAGES if fences(page, "python")]


# Keras 3.15 converts its variables in a way that NumPy 2 warns of.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
@pytest.mark.docs
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "keras" in sys.modules:  # whose layers are numbered over all pages
        sys.modules["keras"].utils.clear_session()
    names: dict[str, Any] = {"__name__": "page"}
    missing, lost = [], set[str]()  # peers, and the names that blocks without them would define
    for block in OUTPUTS.BLOCK.finditer(TEXTS[page]):
        printed, code = io.StringIO(), compile(block["code"], page, "exec")
        try:
            with contextlib.redirect_stdout(printed), mpl.rc_context({"backend": "agg"}):
                exec(code, names)
        except ModuleNotFoundError as error:
            if error.name not in PEERS:
                raise
            missing.append(error.name)
        except NameError as error:
            if error.name not in lost:
                raise
        else:
            # `python docs/outputs.py PAGE` writes what is expected here.
            out = printed.getvalue()
            assert not block["printed"] or OUTPUTS.same(out, block["printed"]), out
            assert bool(plt.get_fignums()) == bool(block["picture"])
            plt.close("all")
            continue
        lost |= {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_NAME"}
        if page in ONE_AFTER_THE_OTHER:
            break
    if missing:
        pytest.skip(f"{missing} not installed; the other blocks ran")


def test_what_is_shown_may_differ_by_rounding_alone() -> None:
    assert OUTPUTS.same("loss 0.123 after 20 steps\n", "loss 0.124  after 20 steps\n")
    assert not OUTPUTS.same("loss 0.123 after 20 steps", "loss 0.125 after 20 steps")
    assert not OUTPUTS.same("loss 0.123 after 20 steps", "loss 0.123 after 21 steps")
    assert not OUTPUTS.same("loss 0.123 after 20 steps", "error 0.123 after 20 steps")
    assert OUTPUTS.same("1.2e-05", "1.3e-05")
    assert not OUTPUTS.same("1.2e-05", "1.2e-04")
    assert not OUTPUTS.same("nan", "0.1")
    assert OUTPUTS.same("epoch 1: 0.2\nepoch 2: 0.1\nend", "epoch 1: 0.2\n...\nend")
    assert not OUTPUTS.same("epoch 1: 0.2\nepoch 2: 0.1\nend", "epoch 1: 0.5\n...\nend")


@pytest.mark.parametrize("folder", ["learn", "do", "gallery"])
def test_the_blocks_of_a_page_show_what_comes_out(folder: str) -> None:
    blocks = [
        block
        for page in PAGES
        if page.startswith(f"docs/{folder}/")
        for block in OUTPUTS.BLOCK.finditer(TEXTS[page])
    ]
    shown = [block for block in blocks if block["printed"] or block["picture"]]
    assert len(shown) >= 0.8 * len(blocks), "python docs/outputs.py PAGE writes what is printed"


def test_python_is_marked_as_python() -> None:
    assert not [p for p in PAGES if any("import rnnjax" in b for b in fences(p, "", "sh", "text"))]


COMMAND = re.compile(r"(python -m|make|pip|rnnjax|pre-commit|[A-Z_]+=)[ \S]")


def commands() -> list[str]:
    """Every command of the pages, once, without comments, continuation lines joined."""
    lines = [
        line
        for page in PAGES
        for block in fences(page, "", "sh")
        for line in block.replace("\\\n", " ").splitlines()
        if COMMAND.match(line)
    ]
    return sorted({" ".join(shlex.split(line, comments=True, posix=False)) for line in lines})


# Several processes, or devices that are there before JAX begins: see tests/experiments/test_scale
# and tests/training/test_many_hosts.
ELSEWHERE = re.compile(r"\.\.\.|^XLA_FLAGS|train\.py")
COMMANDS = [command for command in commands() if not ELSEWHERE.search(command)]
PROGRAMS = [c for c in COMMANDS if c.startswith(("python -m experiments", "rnnjax "))]
SMALL = {
    "alphabet": "--epochs 1 --seeds 2",
    "language_models generate": "--tokens 3",
    "language_models finetune": "--context 16 --batch-size 2 --epochs 1 --run-dir run-of-page",
    "text_generator train": "--corpus my-text.txt --layers 1 --hidden-size 4 --batch-size 2 "
    "--seq-length 8 --steps 2 --sample-length 3 --run-dir run",
    "text_generator generate": "--length 3 --run-dir run",
    "text_generator evaluate": "--run-dir run",
    "text_generator inspect": "--run-dir run",
    "text_generator export": "--run-dir run",
}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in PROGRAMS])
def test_a_command_names_what_there_is(command: str) -> None:
    """Commands that build, install and measure: their targets, extras and modules."""
    name, *words = [word.strip("'\"") for word in shlex.split(command)]
    if name == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        wanted = [word for word in words if "=" not in word]
        assert wanted
        assert set(wanted) <= set(targets)
    elif name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        asked = re.findall(r"(?:\.|rnnjax)\[([\w,-]+)\]", command)
        assert set(",".join(asked).split(",")) - {""} <= set(extras["optional-dependencies"])
    elif name == "pre-commit":
        assert (ROOT / ".pre-commit-config.yaml").exists()
    else:
        assert name == "python"
        assert words[0] == "-m"
        assert importlib.util.find_spec(words[1]) or words[1] in {"build", "http.server", "venv"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: the files that they name, and a trained run."""
    path = tmp_path_factory.mktemp("commands")
    with contextlib.chdir(path):
        for name in ("my-text.txt", "another-text.txt", "both.txt", "songs.txt", "song.txt"):
            Path(name).write_text(f"Alice {string.ascii_letters} My The\n" * 40)
        Path("begin.txt").write_text("Alice ")
        model = language_model_helpers.drawn(Path("tiny"))
        for name in ("finetuned", "two"):
            shutil.copytree("tiny", f"{name}/model")
        Path("songs").mkdir()
        state = states.State(model.family.begin(model.config, 1), np.array([5], np.int32))
        for name in ("whale.safetensors", "songs/state.safetensors"):
            states.save(Path(name), model, state)
        stack = rnnjax.Stack([rnnjax.LSTMCell(4)])
        model = Model.of(stack, stack.init(jax.random.key(0), 3))
        from_keras.save(model, "model.keras")
        assert run("python -m experiments.text_generator train")[0] == 0
    return path


def run(command: str) -> tuple[int, str]:
    """The status of a program, in here: a process for each would spend its time on imports."""
    words = shlex.split(command.partition(" > ")[0])
    if words[0] == "rnnjax":
        for name in ("model.onnx", "gru.onnx"):
            if not Path(name).exists():
                convert.main(["convert", "model.keras", name])
        return convert.main([*words[1:], *(["--force"] if words[1] == "convert" else [])]), ""
    module, arguments = words[2].removeprefix("experiments").removeprefix("."), words[3:]
    if module.startswith(("cookbook", "forecast", "tasks")):
        return options_are_known(words[2], arguments), ""
    small = SMALL.get(" ".join([module, *arguments[:1]]), SMALL.get(module, ""))
    if "--run-dir run" in small and {"train", "finetune"} & {*arguments} and Path("run").exists():
        small = small.replace("--run-dir run", f"--run-dir run-{abs(hash(command))}")
    if "--embedding-size" in arguments:  # a block's embedding is as wide as the block
        small += " --hidden-size 32 --embedding-size 32"
    if "--to" in arguments:
        Path(arguments[arguments.index("--to") + 1]).unlink(missing_ok=True)
    if "inspect" in arguments and "--characters" not in arguments:
        small += " --characters 600"
    target = importlib.import_module(f"experiments.{module}.__main__".replace("..", "."))
    out, before = io.StringIO(), (sys.argv, sys.stdin)
    sys.argv, sys.stdin = ["program", *arguments, *small.split()], io.StringIO("Alice\n/quit\n")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            target.main() if not module else runs.exit_with(target.main)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    finally:
        sys.argv, sys.stdin = before
    return 0, out.getvalue()


def options_are_known(module: str, arguments: list[str]) -> int:
    """The cookbook, the forecasts and the tasks read their options; their own tests run them."""
    target = importlib.import_module(module if module.count(".") == 2 else f"{module}.__main__")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *arguments])
        if module == "experiments.cookbook":
            patch.setattr(target, "run", lambda command: 0)
        else:
            given = runs.options
            patch.setattr(runs, "options", lambda *of: given(*of) and sys.exit(0))
        with pytest.raises(SystemExit) as end:
            sys.exit(target.main())
    return end.value.code


@pytest.mark.docs
@pytest.mark.parametrize("command", PROGRAMS)
def test_a_command_runs(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with warnings.catch_warnings():
        # A run of two steps has a validation part of one row, and says so.
        warnings.filterwarnings("ignore", category=UserWarning)
        status, out = run(command)
    assert status == 0, out


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        target = target.replace(".ipynb", ".md")  # from which `make docs` makes it
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert path.exists(), f"{page}: {link}"
        if anchor and not anchor.startswith("rnnjax."):
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{page}: {link}"


def slug(heading: str) -> str:
    """A heading as the anchor that it becomes."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-")


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2].partition("\ntheme:")[0]
    listed = re.findall(r"[\w/-]+\.md", navigation)
    there = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    there |= {"index.md"}  # which `make docs` writes from README.md
    assert sorted(listed) == sorted(there), "each page is once in nav of mkdocs.yml"


@pytest.mark.parametrize(
    "module",
    ["", ".training", ".testing", ".online", ".text", ".linen", ".nnx", ".interop"]
    + [f".interop.{name}" for name in ("keras", "torch", "flax", "onnx", "c")],
)
def test_the_reference_has_every_public_name(module: str) -> None:
    shown = {
        path.rpartition(".")[2]: path
        for page in PAGES
        if page.startswith("docs/reference")
        for path in re.findall(rf"^::: (rnnjax{module}\.\S+)", TEXTS[page], re.MULTILINE)
    }
    public = importlib.import_module(f"rnnjax{module}")
    # Aliases of types have no docstring; Flax's own classes are documented there.
    aliases = {"Pooling", "Metrics", "TrainSteps"}
    for name in set(public.__all__) - aliases:
        value = getattr(public, name)
        if getattr(value, "__module__", "rnnjax").startswith(("rnnjax", "typing", "collections")):
            assert name in shown, f"rnnjax{module}.{name} is on no page of docs/reference"


def test_every_member_that_the_reference_names_exists_and_has_a_docstring() -> None:
    """The site leaves out a member that is not there, and says nothing."""
    pattern = r"^::: (\S+)\n    options: \{members: \[(.*?)\]\}"
    pages = (page for page in PAGES if page.startswith("docs/reference"))
    named = [found for p in pages for found in re.findall(pattern, TEXTS[p], re.MULTILINE)]
    assert len(named) > 5
    for path, members in named:
        module, _, name = path.rpartition(".")
        value = getattr(importlib.import_module(module), name)
        for one in (value, *(getattr(value, member, None) for member in members.split(", "))):
            assert inspect.getdoc(one), f"{path}: {members}"


def test_every_member_that_a_page_names_exists() -> None:
    """Members of public classes, as `Checkpoints.latest`, wherever they stand in a line."""
    owners: dict[str, Any] = {}
    for module in ("", ".training", ".online", ".text"):
        public = importlib.import_module(f"rnnjax{module}")
        owners |= {name: getattr(public, name) for name in public.__all__}
    owners = {name: value for name, value in owners.items() if inspect.isclass(value)}
    named = {
        (page, name, member)
        for page in PAGES
        if page != "CHANGELOG.md"  # which names what is gone
        for code in re.findall(r"`([^`\n]+)`", TEXTS[page])
        for name, member in re.findall(r"(?<![\w./])(?:rnnjax\.(?:\w+\.)?)?([A-Z]\w+)\.(\w+)", code)
        if name in owners
    }
    assert {"Coupling", "Role", "Hook", "Sharding"} <= {name for _, name, _ in named}
    for page, name, member in sorted(named):
        fields = getattr(owners[name], "__dataclass_fields__", {})
        assert hasattr(owners[name], member) or member in fields, f"{page}: {name}.{member}"


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_a_cell_runs_where_the_reference_says(kind: type[rnnjax.Cell]) -> None:
    page, name = TEXTS["docs/reference/cells.md"], f"`{kind.__name__}`"
    rows = re.findall(r"^\| (.*`\w+Cell`.*?) \|.*\| (`.*) \|$", page, re.MULTILINE)
    where = next((where for names, where in rows if name in names), None)
    assert where, f"add {name} to the table of docs/reference/cells.md"
    for cell in [cell for cell in CELLS.values() if type(cell) is kind]:
        chosen = rnnjax.Parallel() if where.startswith("`Parallel`") else rnnjax.Fused()
        assert rnnjax.Auto().choose(cell) == chosen
        if ";" not in where:  # else something stands in its place
            assert (rnnjax.Parallel().refusal(cell) is None) == ("`Parallel`" in where)


# What has a page in Do; its card is a picture and a table.
IN_DO = {"forecast"}


def test_every_program_has_its_page() -> None:
    """When you need it, a picture, code, a command, what came out, what to try next."""
    named = {Path(page).stem for page in PAGES if page.startswith("docs/programs/")} - {"index"}
    assert named == {*COOKBOOK, *IN_DO, "language_models"}, "a page of docs/programs each"
    for name in named:
        text = TEXTS[f"docs/programs/{name}.md"]
        assert re.match(r"# .+\n\nYou need this when ", text), name
        assert re.search(r"^!\[.+\]\(\S+\.(png|svg)\)", text, re.MULTILINE), name
        rows = r"^(?:\|.*\||.*  here)$"  # of a table, its own or the program's
        assert len(re.findall(rows, text, re.MULTILINE)) > 1, name
        assert "**Try next.** " in text, name
        if name not in IN_DO:
            assert f"experiments{'.cookbook' * (name in COOKBOOK)}.{name}" in text, name
            assert any(name in file for file, _ in sections(text)), "code from its own file"


def sections(text: str) -> list[tuple[str, str]]:
    """The files, and the parts of them, that a page shows."""
    return re.findall(r'^--8<-- "(\S+?):(\w+)"$', text, re.MULTILINE)


def test_a_page_shows_a_part_of_a_file_that_is_marked_and_each_that_is() -> None:
    shown = {section for page in PAGES for section in sections(TEXTS[page])}
    assert len(shown) > 50
    mark = re.compile(r"^ *# --8<-- \[(start|end):(\w+)\]$", re.MULTILINE)
    marked = {
        (str(path.relative_to(ROOT)), name): [way for way, other in found if other == name]
        for path in (ROOT / "experiments").rglob("*.py")
        if (found := mark.findall(path.read_text(encoding="utf-8")))
        for _, name in found
    }
    assert all(ways == ["start", "end"] for ways in marked.values()), marked
    assert set(marked) == {section for section in shown if section[0].endswith(".py")}


def test_the_grid_has_every_program_and_each_picture_is_shown() -> None:
    grid = TEXTS["docs/programs/index.md"]
    linked = re.findall(r"^-   \[!\[.+\]\(\S+\)\]\((\w+)\.md\)$", grid, re.MULTILINE)
    there = sorted(path.stem for path in (DOCS / "programs").glob("*.md"))
    assert sorted([*linked, "index"]) == there
    shown = " ".join(TEXTS.values())
    assert all(f"({path.name})" in shown for path in (DOCS / "programs").glob("*.png"))


def test_what_a_picture_names_stands_on_the_page_that_shows_it() -> None:
    """A picture that was not drawn anew keeps what its program no longer compares."""
    named = 0
    for path in DOCS.rglob("*.png"):
        with Image.open(path) as picture:
            legend = picture.info.get("Legend", "").splitlines()
        shown = "".join(text for text in TEXTS.values() if path.name in text)
        assert [name for name in legend if name not in shown] == [], path.name
        named += len(legend)
    assert named


NOTEBOOKS = re.findall(r"\((\w+)\.ipynb\)", TEXTS["docs/learn/index.md"])


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_a_notebook_has_the_outputs_of_its_page(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``make docs`` makes it, of a page whose blocks run and whose outputs are compared."""
    monkeypatch.syspath_prepend(DOCS)
    notebooks = script("notebooks")
    assert sorted(notebooks.PAGES) == sorted(NOTEBOOKS)
    notebook = nbformat.reads(notebooks.notebook(page), as_version=4)
    nbformat.validate(notebook)
    install, *cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "%pip install" in install.source
    assert all(cell.outputs for cell in cells), "each cell shows something"
    linked = [c.source for c in notebook.cells if re.search(r"!\[.*?\]\((?!attachment:)", c.source)]
    assert not linked, "a picture beside the notebook is not there elsewhere"


@pytest.mark.docs
def test_a_picture_alone_has_a_caption_and_the_sections_of_a_page_may_fold() -> None:
    markdown = pytest.importorskip("markdown", reason="the site's group `docs` brings it")
    figures = script("figures")
    text = "![one](a.png)\n\nbeside ![two](b.png)\n\n## First\n\nit\n\n## Second\n\nis"
    html = markdown.markdown(f"{figures.FOLD}\n\n{text}", extensions=[figures.Figures()])
    assert html.count("<figure>") == 1
    assert '<figcaption aria-hidden="true">one</figcaption>' in html
    assert re.findall(r"<h2>(\w+)</h2>\n?<details>.*?<p>(\w+)</p>", html, re.DOTALL) == [
        ("First", "it"),
        ("Second", "is"),
    ]
    assert "<details>" not in markdown.markdown(text, extensions=[figures.Figures()])


@pytest.mark.docs
def test_the_pictures_are_drawn_by_their_script(tmp_path: Path) -> None:
    draw = script("draw")
    with mpl.rc_context({"backend": "svg"}):
        draw.main(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (DOCS / "pictures").iterdir()}
    shown = " ".join(TEXTS.values())
    assert all(f"pictures/{name}" in shown for name in drawn)


@pytest.mark.docs
def test_the_cell_of_the_tutorial_is_its_equation(random_like):
    """The class is also no longer than the title of the page says."""
    block, names = fences(PAGE, "python")[0], {"__name__": "tutorial"}
    written = block.partition("@dataclasses")[2].partition("\n\n\n")[0]
    assert sum(bool(line.strip()) for line in written.splitlines()) <= 15
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(block, PAGE, "exec"), names)
    cell = names["JANETCell"](4)
    params, carry = random_like(lambda: (cell.init(jax.random.key(0), 2), cell.initial_carry()), 1)
    x = np.array([0.3, -0.7], np.float32)
    gates = x @ params["kernel"] + carry.hidden @ params["recurrent_kernel"] + params["bias"]
    f, g = 1 / (1 + np.exp(-gates[:4])), np.tanh(gates[4:])
    new, y = cell.step(params, carry, x)
    np.testing.assert_allclose(y, f * carry.hidden + (1 - f) * g, rtol=1e-5)
    np.testing.assert_array_equal(y, new.hidden)
    check_cell(cell)
