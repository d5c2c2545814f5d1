"""A law of options: each field of each cell leaves with the same numbers, or is refused by name.

Each field is set to each other value of its kind. What a format takes is run there, and held
against `rnnjax.unroll`; what it does not take is refused by the name of the field, or of the cell
where the format has not that cell at all. Fields of tomorrow, which no writer knows, are planted.
"""

import contextlib
import dataclasses
import functools
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import pytest
from c_helpers import Stream, library, parts_of
from cell_table import CELLS, bent, grid
from flax import nnx
from interop_helpers import distance, random_model
from onnx_helpers import session

from rnnjax import Bidirectional, GRUCell, LSTMCell, MGUCell, Regularized, SimpleRNNCell, Stack
from rnnjax.cells import Cell
from rnnjax.engine import unroll
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop import c, flax, keras, onnx, torch
from rnnjax.interop.functions import Nonlinearity
from rnnjax.interop.keras.operators import Operation, TimeDistributed
from rnnjax.interop.layers import Activation, Dense, Dropout, Embedding, Masking, Recurrent
from rnnjax.interop.model import Call, Functional, Input, Model, Sequential, Value
from rnnjax.layers import Dropout as DropoutRate

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]
MOST, STEPS, ROWS, FEATURES = 1e-5, 5, 2, 3
Cells = dict[str, Any]
"""Cells by what they are: ``"lstm"``, or ``"lstm use_bias 0"`` with another value of an option."""

TABLE: dict[str, Cell] = {
    **CELLS,
    "bidirectional": Bidirectional(LSTMCell(5)),
    "regularized": Regularized(LSTMCell(5), recurrent_dropout=0.1),
}
OTHERS: dict[str, list[Any]] = {  # where a type does not say which values there are
    "activation": ["relu", "softsign", "legacy_hard_sigmoid", Nonlinearity("Elu", 0.5), bent],
    "recurrent_activation": ["hard_sigmoid", "tanh", "legacy_hard_sigmoid", bent],
    "dtype": ["bfloat16"],
    "param_dtype": ["float16", "bfloat16"],
    "heads": [1],
    "key_size": [3],
    "cell": [GRUCell(4), LSTMCell(4, use_bias=False)],
    "cells": [(LSTMCell(4), LSTMCell(4)), (GRUCell(4), SimpleRNNCell(3))],
    "forward": [GRUCell(5)],
    "backward": [LSTMCell(5, use_recurrent_bias=True), LSTMCell(4)],
    "dropout": [DropoutRate(0.25), DropoutRate(0.25, per="sequence")],
}


def others(made: Any, field: Any) -> list[Any]:
    """Other legal values of a field."""
    value, words = getattr(made, field.name), getattr(field.type, "__args__", ())
    if field.name in OTHERS:
        values = OTHERS[field.name]
    elif field.name.endswith("_init"):
        values = [jax.nn.initializers.constant(0.25)]
    elif isinstance(value, bool):
        values = [not value]
    elif isinstance(value, int):
        values = [2 * value]
    elif isinstance(value, float):
        values = [value / 2 or 0.25]
    elif isinstance(value, tuple) and all(isinstance(n, int) for n in value):
        values = [tuple(n + 1 for n in value)]
    else:
        values = [word for word in words if isinstance(word, str)]
    values = [other for other in values if other != value]
    assert values, f"say in OTHERS which other values {field.name} of {type(made).__name__} has"
    return values


def variants(name: str, every: bool) -> Cells:
    """A cell, and with each field at other values: at each, or at the first."""
    cell: Any = TABLE[name]
    made = {name: cell}
    for field in dataclasses.fields(cell):
        values = others(cell, field)
        for i, value in enumerate(values if every else values[:1]):
            made[f"{name} {field.name} {i}"] = dataclasses.replace(cell, **{field.name: value})
    return made


class Case(NamedTuple):
    """Cells side by side, with what `rnnjax.unroll` makes of them."""

    cells: Cells
    params: dict[str, Any]
    xs: np.ndarray
    run: Any  # of such parameters

    def model(self, *labels: str) -> Model:
        """A model of some of the cells; they are layers of the names ``cell0``, ``cell1``..."""
        names = {f"cell{i}": label for i, label in enumerate(labels)}
        layers = (Recurrent(name, self.cells[label]) for name, label in names.items())
        calls = (Call(name, name, (Value("xs"),)) for name in names)
        given = Input("xs", (None, *self.xs.shape[2:]))
        network = Functional((given,), (*layers,), (*calls,), (*map(Value, names),))
        return Model(network, {name: self.params[label] for name, label in names.items()})


def drawn(cell: Cell) -> Any:
    """Parameters, in their types; those of two cells are the same where their shapes are."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda one: jax.device_put((0.6 * rng.standard_normal(one.shape)).astype(one.dtype)),
        jax.eval_shape(lambda: cell.init(jax.random.key(0), FEATURES)),
    )


def case_of(cells: Cells) -> Case:
    names = {label.split()[0] for label in cells}
    (space,) = {grid(name) if name in CELLS else () for name in names}
    xs = np.random.default_rng(2).standard_normal((STEPS, ROWS, *space, FEATURES), np.float32)

    @jax.jit
    def run(params: Any) -> Any:
        return {label: unroll(cell, params[label], xs)[1] for label, cell in cells.items()}

    return Case(cells, {label: drawn(cell) for label, cell in cells.items()}, xs, run)


# ---- the formats: how one cell is written, and what a framework makes of several


def alone(model: Model, name: str = "cell0") -> Model:
    return Model(Sequential((model.layers[name],)), {name: model.params[name]})


def is_cell(value: Any) -> bool:
    return isinstance(value, Cell)


def bare(cell: Any) -> Any:
    return cell.cell if isinstance(cell, Regularized) else cell


def by_keras(model: Model, xs: np.ndarray, folder: Path) -> list[Any]:
    theirs = pytest.importorskip("keras", reason="in the extra `parity`")
    keras.save(model, folder / "all.keras")
    run = theirs.saving.load_model(folder / "all.keras", compile=False)
    ys = jax.jit(lambda xs: run(xs, training=False))(np.swapaxes(xs, 0, 1))
    return [np.swapaxes(y, 0, 1) for y in (ys if isinstance(ys, list) else [ys])]


def by_onnx(model: Model, xs: np.ndarray, folder: Path) -> list[Any]:
    proto = onnx.to_proto(model, states=False)
    return list(session(proto).run(None, {"xs": xs}))


def by_torch(model: Model, xs: np.ndarray, folder: Path) -> list[Any]:
    of = pytest.importorskip("torch", reason="torch is in the extra `parity`")
    made, state = [], torch.to_state_dict(model)
    for name, layer in model.layers.items():
        rows = layer.cell.cells if isinstance(layer.cell, Stack) else (layer.cell,)
        both = isinstance(rows[0], Bidirectional)
        cell = bare(rows[0].forward if both else rows[0])
        told = {"bias": cell.use_bias, "bidirectional": both}
        told |= {"proj_size": cell.proj_size} if hasattr(cell, "proj_size") else {}
        told |= {"nonlinearity": cell.activation} if isinstance(cell, SimpleRNNCell) else {}
        kind = {1: of.nn.RNN, 3: of.nn.GRU, 4: of.nn.LSTM}[len(cell.gates)]
        module = kind(FEATURES, cell.hidden_size, len(rows), **told)
        own = {k.removeprefix(f"{name}."): x for k, x in state.items() if k.startswith(f"{name}.")}
        module.load_state_dict({k: of.tensor(x.astype(np.float32)) for k, x in own.items()})
        made.append(module(of.tensor(xs))[0].detach().numpy())
    return made


def by_flax(form: str) -> Any:
    of: Any = {"linen": nn, "nnx": nnx}[form]

    def module(cell: Any) -> Any:
        if isinstance(cell, Bidirectional):
            return of.Bidirectional(*map(module, cell.cells))
        kind = getattr(of, type(bare(cell)).__name__.replace("RNN", ""))
        given = () if form == "linen" else (FEATURES,)
        more = {} if form == "linen" else {"rngs": nnx.Rngs(0)}
        return of.RNN(kind(*given, bare(cell).hidden_size, **more))

    def one(cell: Any, tree: Any, xs: Any) -> Any:
        layer = module(cell)
        if form == "linen":
            return layer.apply({"params": tree}, xs)
        nnx.update(layer, tree)
        return layer(xs)

    def by(model: Model, xs: np.ndarray, folder: Path) -> list[Any]:
        trees = [flax.to_params(alone(model, name), form=form) for name in model.layers]
        cells = [layer.cell for layer in model.layers.values()]
        run = jax.jit(lambda trees, xs: [one(*two, xs) for two in zip(cells, trees, strict=True)])
        return [np.swapaxes(y, 0, 1) for y in run(trees, np.swapaxes(xs, 0, 1))]

    return by


def to_c(model: Model, xs: np.ndarray, folder: Path, name: str = "cell0") -> None:
    cell, path = model.layers[name].cell, folder / f"{name}.c"
    c.save(cell, model.params[name], path, input_size=xs.shape[2:])


def by_c(model: Model, xs: np.ndarray, folder: Path) -> list[Any]:
    """One row, its steps one by one; all cells in one program."""
    for name in model.layers:
        to_c(model, xs, folder, name)
    lib, made = library(folder), []
    for name, layer in model.layers.items():
        stream, cell = Stream(lib, folder, name), layer.cell
        made.append(np.stack([stream.step(*parts_of(cell, x)) for x in xs[:, 0]]))
    return made


FORMATS: dict[str, tuple[Any, Any]] = {
    "keras": (lambda model, xs, folder: keras.save(model, folder / "one.keras"), by_keras),
    "onnx": (lambda model, xs, folder: onnx.to_proto(model), by_onnx),
    "torch": (lambda model, xs, folder: torch.to_state_dict(model), by_torch),
    **{form: (lambda model, xs, folder, form=form: flax.to_params(alone(model), form=form),
              by_flax(form)) for form in ("linen", "nnx")},
    "c": (to_c, by_c),
}  # fmt: skip
OF_EQUATIONS = "onnx", "c"
"""The formats that a step is derived for: they take all cells."""


def refused(name: str, case: Case, folder: Path) -> dict[str, str]:
    """What a format does not take, each by the name of the option, or of all cells of its class."""
    told = dict[str, str]()
    for label, cell in case.cells.items():
        # But those that have no single step, or other types than float32.
        if name in OF_EQUATIONS and not isinstance(cell, Bidirectional) and "dtype" not in label:
            continue
        try:
            FORMATS[name][0](case.model(label), case.xs, folder)
        except (InteropError, InvalidInputError) as error:
            told[label] = str(error)
    for label, said in told.items():
        base, option, *_ = [*label.split(), ""]
        value = getattr(case.cells[label], option, "")
        names = {option, getattr(value, "__name__", ""), type(value).__name__ * is_cell(value)}
        if base in told:  # a class, or another option of the row itself
            names = {*re.findall(r"(\w+)[(=]", repr(case.cells[label]))}
        assert names & {*re.findall(r"\w+", said)}, (name, label, said)
    return told


def law(name: str, case: Case, folder: Path) -> Counter[str]:
    """Hold what a format takes against `rnnjax.unroll`; say how many are taken and refused."""
    told = refused(name, case, folder)
    left = [label for label in case.cells if label not in told]
    if name == "nnx":  # whose GRU has no second bias of the candidate
        case = case._replace(params=jax.tree_util.tree_map_with_path(without, case.params))
    expected = case.run(case.params)
    made = FORMATS[name][1](case.model(*left), case.xs, folder) if left else []
    for label, ys in zip(left, made, strict=True):
        exact, most = np.asarray(expected[label], np.float32), MOST
        if name == "c":  # which rounds no sums and states to fewer bits than 32, and says so
            exact, most = exact[:, 0].reshape(ys.shape), 2**-6 if " dtype" in label else MOST
        assert distance(np.asarray(ys, np.float32), exact) < most, (name, label, case.cells[label])
    return Counter(equal=len(left), refused=len(told))


def without(path: Any, leaf: Any) -> Any:
    return 0 * leaf if "recurrent_bias" in jax.tree_util.keystr(path) else leaf


# Those of which a format has a form that is not derived of the equation.
FORMED = "simple", "lstm", "gru", "peephole", "projection", "mgu", "bidirectional", "regularized"


@functools.cache
def of_forms(*names: str) -> Case:
    return case_of({k: cell for name in names for k, cell in variants(name, every=False).items()})


@pytest.mark.parametrize("name", FORMATS)
def test_options_leave_or_are_named(name: str, tmp_path: Path) -> None:
    """The first other value of each; what Keras and PyTorch make of a GRU alone."""
    case, few = of_forms(*FORMED), name in ("keras", "torch")
    if name == "c" and not shutil.which("gcc"):
        pytest.skip("the compiler gcc is not installed")
    counts = Counter(refused=len(refused(name, case, tmp_path))) if few else Counter[str]()
    counts += law(name, of_forms("gru") if few else case, tmp_path)
    assert counts["equal"] > 5
    assert counts["refused"] > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_every_option_leaves_or_is_named(name: str, tmp_path: Path) -> None:
    case = case_of(variants(name, every=True))
    for where in FORMATS:
        (tmp_path / where).mkdir()
        if where != "c" or shutil.which("gcc"):
            law(where, case, tmp_path / where)


# ---- what no writer knows yet


def planted(kind: Any, patch: pytest.MonkeyPatch, method: str = "") -> None:
    """Give a class the field ``tomorrow``, as if it had it; then the method gets halves."""
    field = ("tomorrow", float, dataclasses.field(default=0.0, kw_only=True))
    later = dataclasses.make_dataclass(kind.__name__, [field], bases=(kind,), frozen=True)
    for name in ("__init__", "__eq__", "__hash__", "__repr__", "__dataclass_fields__"):
        patch.setattr(kind, name, vars(later)[name])
    patch.setattr(kind, "tomorrow", 0.0, raising=False)
    if method:
        patch.setattr(kind, method, halved(getattr(kind, method), lambda made: made.tomorrow))


def halved(method: Any, when: Any = lambda made: True) -> Any:
    """A method that gets half of its second argument."""

    def changed(self: Any, first: Any, second: Any, *rest: Any) -> Any:
        second = jax.tree.map(lambda x: x / 2, second) if when(self) else second
        return method(self, first, second, *rest)

    return changed


OF_CELLS = {type(bare(TABLE[name])): TABLE[name] for name in (*FORMED[:-2], "convlstm-1d")}
AROUND = {type(TABLE[name]): TABLE[name] for name in FORMED[-2:]}
AROUND[Stack] = Stack([LSTMCell(5)] * 2)


@pytest.mark.parametrize("kind", [*OF_CELLS, *AROUND])
def test_a_field_of_tomorrow_and_a_class_derived(
    kind: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Both are refused for a cell and for what stands around cells."""
    around = kind in AROUND
    name = next((name for name, one in TABLE.items() if one is OF_CELLS.get(kind)), "one")
    method = "unroll_layers" if around else "update"
    planted(kind, monkeypatch, method)
    # A size that no other test compiles.
    cell = AROUND[kind] if around else dataclasses.replace(OF_CELLS[kind], hidden_size=7)
    derived = type("Derived", (kind,), {method: halved(getattr(kind, method))})
    own = {field.name: getattr(cell, field.name) for field in dataclasses.fields(cell)}
    case = case_of({
        name: cell, f"{name} tomorrow": dataclasses.replace(cell, tomorrow=0.5),
        f"{name} Derived": derived(**own),
    })  # fmt: skip
    if not around:
        usual, *ys = (case.run(case.params)[label] for label in case.cells)
        assert all(distance(y, usual) > 0.01 for y in ys)
    for where in ("keras", "torch", "linen", "nnx"):
        assert {*case.cells} - {name} <= refused(where, case, tmp_path).keys()
    for where in ("onnx",) if around else OF_EQUATIONS:
        if where != "c" or shutil.which("gcc"):
            assert law(where, case, tmp_path)["equal"] == 3


RNN, IDS = Recurrent("rnn", LSTMCell(5)), Embedding("ids", 9, 3)
OF_LAYERS: list[tuple[str, Any, Any]] = [
    # The formats, a layer, and what is before it.
    ("keras torch linen nnx", RNN, None),
    ("keras torch", IDS, None),
    ("keras torch", Dense("dense", 2), RNN),
    ("keras", Masking("masking"), None),
    ("keras", Activation("activation", "relu"), RNN),
    ("keras", Dropout("dropout", DropoutRate(0.1)), RNN),
    ("keras", TimeDistributed("each", Activation("relu", "relu")), RNN),
    ("keras", Operation("flat", "Flatten", (("version", 3),)), RNN),
]


@pytest.mark.parametrize(("formats", "layer", "before"), OF_LAYERS, ids=lambda one: f"{one!s:.40}")
def test_a_field_of_tomorrow_of_a_layer(
    formats: str, layer: Any, before: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(type(layer), monkeypatch)
    own = {field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)}
    derived = type("Derived", (type(layer),), {})(**own)

    def write(where: str, layer: Any) -> None:
        model = random_model(*([before] if before else []), layer, inputs=3)
        if where in ("linen", "nnx"):
            flax.to_params(model, form=where)
        else:
            FORMATS[where][0](model, None, tmp_path)

    for where in formats.split():
        write(where, layer)
        for other, says in [(dataclasses.replace(layer, tomorrow=0.5), "tomorrow"),
                            (derived, "Derived")]:  # fmt: skip
            with pytest.raises(InteropError, match=says):
                write(where, other)


def test_a_field_of_tomorrow_of_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(DropoutRate, monkeypatch)
    rate: Any = DropoutRate(0.1, tomorrow=0.5)  # type: ignore[call-arg]  # which is planted
    stacked = Recurrent("rnn", Stack([LSTMCell(5)] * 2, rate))
    for layers in ([RNN, Dropout("dropout", rate)], [stacked]):
        with pytest.raises(InteropError, match="tomorrow"):
            keras.save(random_model(*layers, inputs=3), tmp_path / "one.keras")


@pytest.mark.parametrize("kind", [GRUCell, MGUCell])
def test_an_option_of_a_model_that_came_from_flax(kind: Any) -> None:
    model = Model.of(kind(5), drawn(kind(5)))
    model = flax.from_params(flax.to_params(model))
    layer: Any = model.layers["rnn"]
    layer = dataclasses.replace(layer, cell=kind(5, reset_after=False))
    with pytest.raises(InteropError, match="reset_after"):
        flax.to_params(dataclasses.replace(model, network=Sequential((layer,))))


def test_gates_are_read_of_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a property may have them, which has none where it is asked of the class."""
    case = of_forms("simple", "lstm", "gru", "projection", "mgu")
    case = case._replace(params=jax.tree_util.tree_map_with_path(without, case.params))
    for kind in OF_CELLS:
        monkeypatch.setattr(kind, "gates", property(lambda self, own=kind.gates: own))
    read = {
        "keras": lambda model: keras.load(tmp_path / "one.keras"),
        "torch": lambda model: torch.from_state_dict(torch.to_state_dict(model)),
        "linen": lambda model: flax.from_params(flax.to_params(alone(model), form="linen")),
        "nnx": lambda model: flax.from_params(flax.to_params(alone(model), form="nnx")),
    }
    for where, again in read.items():
        for label in ("simple", "lstm", "gru", "projection", "mgu"):
            model = case.model(label)
            with contextlib.suppress(InteropError):
                FORMATS[where][0](model, case.xs, tmp_path)
                came = again(model)
                ((_, layer),) = came.layers.items()
                assert type(layer.cell) is type(case.cells[label])
                params = {key: np.asarray(x) for key, x in came.params[layer.name].items()}
                assert all(not params.pop(key).any() for key in {*params} - {*case.params[label]})
                for key, array in params.items():
                    np.testing.assert_array_equal(array, case.params[label][key])
    for label in ("lstm", "gru"):
        onnx.save(case.model(label), tmp_path / "one.onnx")
        onnx.load(tmp_path / "one.onnx")
