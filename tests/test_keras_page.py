"""The page about Keras: every word of Keras stands on it, and what stands beside it is real."""

import ast
import builtins
import dataclasses
import inspect
import operator
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

import rnnjax
from rnnjax import training

os.environ["KERAS_BACKEND"] = "jax"
keras = pytest.importorskip("keras", reason="Keras is in the group `test`")

PAGE = (Path(__file__).parents[1] / "docs/from/keras.md").read_text(encoding="utf-8")
CALLBACKS = sorted(name for name, value in vars(keras.callbacks).items() if inspect.isclass(value))
LAYERS = re.findall(
    r"\w+",
    "SimpleRNN LSTM GRU RNN Bidirectional TimeDistributed StackedRNNCells Masking Embedding Layer",
)
# Words of Keras 2, and of all optimisers.
ELSEWHERE = re.findall(
    r"\w+", "input_shape batch_input_shape constants implementation learning_rate lr"
)
METHODS = ["compile", "fit", "evaluate", "predict"]
STATE = training.TrainState(
    **dict.fromkeys(field.name for field in dataclasses.fields(training.TrainState))
)
# What a line on the page takes from its program: values with their attributes, arrays, functions.
FREE: dict[str, Any] = {
    "cell": rnnjax.LSTMCell(50),
    "carry": rnnjax.LSTMCell(50).initial_carry(),
    "result": training.Fit({}, STATE, [], None, None, True),
    "state": STATE,
    **dict.fromkeys(["xs", "ys", "x", "y", "ids", "mask", "labels", "logits"], jnp.zeros(())),
    **dict.fromkeys(["loss", "apply", "layer", "constraint", "draw"], lambda *_: None),
    **dict.fromkeys(
        re.findall(
            r"\w+",
            "params key kernel bias lengths resets where batch batches optimizer epochs valid axis "
            "weight batch_size sequences targets losses class_weight first second accuracy "
            "rows raw mask_value input_dim output_dim summary",
        )
    ),
}


class Row(NamedTuple):
    """A row of a table: whose words, which of them, and what does the same here."""

    owners: tuple[str, ...]
    words: tuple[str, ...]
    here: str


def rows() -> list[Row]:
    """The rows of all tables; one in bold begins the words of another owner."""
    found, owners = [], ()
    for line in PAGE.splitlines():
        if not line.startswith("|") or line.startswith(("| Keras |", "|---")):
            continue
        _, theirs, here, _ = (cell.strip() for cell in re.split(r"(?<!\\)\|", line))
        told = tuple(re.findall(r"`(.+?)`", theirs))
        if theirs.startswith("**"):
            owners, told = told, ()
        found.append(Row(owners, told, here))
    return found


ROWS = rows()


def has(owner: str, name: str) -> bool:
    """Whether an owner, or a layer that is made, has an attribute, perhaps one with dots."""
    try:
        operator.attrgetter(name)(named(owner))
    except AttributeError:
        return owner in LAYERS[:3] and hasattr(named(owner)(1), name)
    return True


def named(owner: str) -> Any:
    """The class or method of Keras of that name."""
    if owner == "keras":
        return keras
    if owner.startswith("Model."):
        return getattr(keras.Model, owner.removeprefix("Model."))
    return getattr(keras.layers if owner in LAYERS else keras.callbacks, owner)


def words(owner: str) -> set[str]:
    """The arguments of a method, or of a class where it is made and called."""
    thing = named(owner)
    if owner == "keras":
        return set()
    functions = [thing]
    if inspect.isclass(thing):
        functions = [thing.__init__]
        functions += [thing.call] if owner in LAYERS and owner != "Layer" else []
    parameters = [p for f in functions for p in inspect.signature(f).parameters.values()]
    return {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)} - {
        "self"
    }


@pytest.mark.parametrize("owner", [*LAYERS, *(f"Model.{name}" for name in METHODS), *CALLBACKS])
def test_every_word_of_keras_is_on_the_page(owner: str) -> None:
    there = {word for row in ROWS if owner in row.owners for word in row.words}
    assert any(owner in row.owners for row in ROWS)
    assert not words(owner) - there


def test_a_row_names_words_of_keras_and_answers_by_code_or_by_a_reason() -> None:
    for row in ROWS:
        known = set[str]().union(*map(words, row.owners))
        for word in row.words:
            name = word.strip(".()").removeprefix("keras.")
            there = word in {*known, *ELSEWHERE} or any(has(owner, name) for owner in row.owners)
            assert there, (row.owners, word)
        assert row.here
        reasons = "no, because ", "not needed, because ", "nothing"
        assert not row.here.startswith("no") or row.here.startswith(reasons)


def resolve(node: ast.expr) -> Any:
    """What a name, or a name with dots, stands for."""
    if isinstance(node, ast.Attribute):
        return getattr(resolve(node.value), node.attr)
    assert isinstance(node, ast.Name)
    modules: dict[str, Any] = {"jax": jax, "jnp": jnp, "optax": optax, "rnnjax": rnnjax}
    for names in (FREE, modules, vars(rnnjax), vars(training), vars(builtins)):
        if node.id in names:
            return names[node.id]
    raise NameError(f"{node.id} is nothing that the page may use")


def check(code: str) -> None:
    """Raise unless each name is one, and each call can be made; an ellipsis are other words."""
    tree = ast.parse(code)
    nodes = list(ast.walk(tree))
    local = {node.arg for node in nodes if isinstance(node, ast.arg)}
    local |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for node in nodes:
        if is_known(node, local):
            resolve(node)
        if isinstance(node, ast.Call) and is_known(node.func, local):
            callee = resolve(node.func)
            if callee in (print, range):  # which say nothing of their arguments
                continue
            takes = inspect.signature(callee)
            given = {word.arg: None for word in node.keywords if word.arg}
            others = any(isinstance(a, ast.Constant) and a.value is ... for a in node.args)
            (takes.bind_partial if others else takes.bind)(*node.args[others:], **given)


def is_known(node: ast.AST, local: set[str]) -> bool:
    """Whether a node is a name, or one with dots, that the line itself does not make."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id not in local


def test_what_stands_beside_a_word_is_real() -> None:
    codes = {code for row in ROWS for code in re.findall(r"`(.+?)`", row.here)}
    assert len(codes) > 100
    false = []
    for code in sorted(codes):
        try:
            check(code)
        except Exception as error:
            false.append(f"{code}: {error!r}")
    assert not false
    for code in ("unrol(cell)", "unroll(cell, params, xs, masks=mask)", "result.state.parms"):
        with pytest.raises((NameError, AttributeError, TypeError)):
            check(code)
