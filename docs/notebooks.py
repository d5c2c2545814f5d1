"""The first pages of Learn as notebooks beside them; ``python docs/notebooks.py`` writes them."""

import json
import re
from pathlib import Path

import jupytext

LEARN = Path(__file__).parent / "learn"
PAGES = "units", "state", "bptt", "gradients"


def notebook(page: str) -> str:
    """The notebook of a page, as JSON: its text, its equations as Jupyter writes them, its code."""
    text = (LEARN / f"{page}.md").read_text(encoding="utf-8")
    text = re.sub(r"^```math\n(.*?)^```$", _equation, text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`#!math (.*?)`", r"$\1$", text)
    text = re.sub(r"(!\[.*?\]\(.*?\))\{.*?\}", r"\1", text)  # a picture's width
    made = jupytext.reads(text, fmt="md")
    made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    for number, cell in enumerate(made.cells):
        cell["id"] = f"{page}-{number}"  # jupytext draws another each time
    return json.dumps(made, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _equation(found: re.Match[str]) -> str:
    return f"$$\n\\begin{{align*}}\n{found[1]}\\end{{align*}}\n$$"


if __name__ == "__main__":
    for name in PAGES:
        (LEARN / f"{name}.ipynb").write_text(notebook(name), encoding="utf-8")
