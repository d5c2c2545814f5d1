"""The first pages of Learn as notebooks beside them, in the site alone: ``make docs`` writes them.

What a page shows below a block, as ``docs/outputs.py`` has written it, is the output of the cell.
Pictures are inside of the file, so that they show wherever a notebook is opened.
"""

import base64
import io
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import draw
import jupytext
import matplotlib.pyplot as plt
from outputs import BLOCK

LEARN = Path(__file__).parent / "learn"
PAGES = "quickstart", "units", "state", "bptt", "gradients"
PROJECT = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text("utf-8"))
SITE = PROJECT["project"]["urls"]["Documentation"]
PICTURE = re.compile(r"!\[(.*?)\]\(\.\./pictures/(\S+)\.svg\)")
INSTALL = """try:
    import rnnjax
except ModuleNotFoundError:
    %pip install --quiet rnnjax matplotlib"""


def notebook(page: str) -> str:
    """The notebook of a page, as JSON: its text, its equations as Jupyter writes them, its code."""
    text = (LEARN / f"{page}.md").read_text(encoding="utf-8")
    outputs = [[], *(_outputs(block) for block in BLOCK.finditer(text))]  # of the install cell none
    text = BLOCK.sub(r"```python\n\g<code>```", text)
    text = text.replace("\n```python\n", f"\n```python\n{INSTALL}\n```\n\n```python\n", 1)
    text = re.sub(r"^```math\n(.*?)^```$", _equation, text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`#!math (.*?)`", r"$\1$", text)
    text = re.sub(r"(!\[.*?\]\(.*?\))\{.*?\}", r"\1", text)  # a picture's width
    text = re.sub(r"\]\((?!https?:)([^)#]+)\.md", rf"]({SITE}learn/\1.html", text)
    made = jupytext.reads(text, fmt="md")
    made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    for number, cell in enumerate(made.cells):
        cell["id"] = f"{page}-{number}"  # jupytext draws another each time
        if cell["cell_type"] == "code":
            cell["outputs"] = outputs.pop(0)
        elif found := PICTURE.findall(cell["source"]):
            cell["attachments"] = {f"{name}.png": {"image/png": _drawn(name)} for _, name in found}
            cell["source"] = PICTURE.sub(r"![\1](attachment:\2.png)", cell["source"])
    return json.dumps(made, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _outputs(block: re.Match[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if block["printed"]:
        found += [{"output_type": "stream", "name": "stdout", "text": block["printed"]}]
    if block["picture"]:
        data = {"image/png": _encoded((LEARN / block["picture"]).read_bytes())}
        found += [{"output_type": "display_data", "data": data, "metadata": {}}]
    return found


def _drawn(name: str) -> str:
    """A picture of ``draw.py``, which no reader of notebooks shows as SVG everywhere, as PNG."""
    drawn = io.BytesIO()
    figure = draw.PICTURES[name]().figure
    figure.savefig(drawn, dpi=60, metadata={"Software": None})
    plt.close(figure)
    return _encoded(drawn.getvalue())


def _encoded(picture: bytes) -> str:
    return base64.b64encode(picture).decode() + "\n"


def _equation(found: re.Match[str]) -> str:
    return f"$$\n\\begin{{align*}}\n{found[1]}\\end{{align*}}\n$$"


if __name__ == "__main__":
    plt.switch_backend("agg")
    for name in PAGES:
        (LEARN / f"{name}.ipynb").write_text(notebook(name), encoding="utf-8")
