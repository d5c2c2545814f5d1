"""One cell of ``flax.linen`` or ``flax.nnx``: its tree of parameters and a cell of rnnjax."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rnnjax.cells import Cell
from rnnjax.cells.base import Params
from rnnjax.errors import InteropError
from rnnjax.interop.arrays import as_jax, cell_arrays, check_one_type, float_array, with_one_bias
from rnnjax.layout import LAYOUTS, Form, Layout, Tree, params_of


def find_layout(where: str, tree: Tree) -> Layout | None:
    """The layout of a cell's tree, from its names and, where nnx's are alike, its shapes."""
    named = [each for each in LAYOUTS if set(tree) == {*each.inputs, *each.hiddens}]
    if not named:
        return None
    for name in tree:
        kernel = tree[name].get("kernel") if isinstance(tree[name], Mapping) else None
        if kernel is None or np.ndim(kernel) != 2 or 0 in np.shape(kernel):
            raise InteropError(
                f"{where}.{name} should have a kernel of two axes, but has "
                f"{None if kernel is None else np.shape(kernel)}; check the parameters"
            )
    if len(named) == 1:
        return named[0]
    hidden, width = np.shape(tree["dense_h"]["kernel"])
    return next((each for each in named if each.gates * hidden == width), None)


def read_cell(
    where: str, layout: Layout, tree: Tree, options: Mapping[str, Any]
) -> tuple[Cell, dict[str, jax.Array]]:
    """The cell of ours that computes the same, and its parameters."""
    blocks = {
        name: {key: float_array(f"{where}.{name}.{key}", leaf) for key, leaf in block.items()}
        for name, block in tree.items()
    }
    _check_blocks(where, layout, blocks)
    params = params_of(layout, blocks, residual=False)
    kernel = params["kernel"]
    size = len(params["recurrent_kernel"])
    return layout.cell(size, param_dtype=kernel.dtype, **options), params


def _check_blocks(
    where: str, layout: Layout, blocks: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    inputs = blocks[layout.inputs[0]]["kernel"].shape[0]
    hidden = blocks[layout.hiddens[0]]["kernel"].shape[0]
    biased = _biased(layout)
    for name, block in blocks.items():
        width = hidden * layout.gates // len(layout.inputs)
        rows = inputs if name in layout.inputs else hidden
        expected = {"kernel": (rows, width)} | ({"bias": (width,)} if biased[name] else {})
        came = {key: array.shape for key, array in block.items()}
        if came != expected:
            why = ""
            if name == "hn" and "MGUCell" in layout.names and "bias" not in came:
                why = " (without a bias it is one of reset_gate=False, which rnnjax does not have)"
            raise InteropError(
                f"{where}.{name} of a {layout.form} {layout.names[0]} of {hidden} units should "
                f"have {expected}, but has {came}{why}; check the parameters"
            )
    check_one_type(where, (array for block in blocks.values() for array in block.values()))


def _biased(layout: Layout) -> dict[str, bool]:
    """By the name of the block, whether it has a bias."""
    hidden_bias = layout.hidden_bias if len(layout.hiddens) > 1 else layout.hidden_bias[:1]
    return dict.fromkeys(layout.inputs, layout.input_bias) | dict(
        zip(layout.hiddens, hidden_bias, strict=True)
    )


def write_cell(
    where: str, layout: Layout, cell: Cell, params: Params
) -> dict[str, dict[str, jax.Array]]:
    """The way back of `read_cell`."""
    arrays = cell_arrays(cell, params)
    arrays = with_one_bias(arrays) if cell.additive else arrays
    recurrent = arrays["recurrent_kernel"]
    width = recurrent.shape[1]
    first = arrays.get("bias", np.zeros(width, recurrent.dtype))
    second = arrays.get("recurrent_bias", np.zeros(width, recurrent.dtype))
    if not layout.input_bias:
        first, second = second, first
    elif "recurrent_bias" in arrays:
        first, second = _fold(where, layout, first, second)
    blocks: dict[str, dict[str, np.ndarray]] = {}
    for names, kernel, bias in (
        (layout.inputs, arrays["kernel"], first),
        (layout.hiddens, recurrent, second),
    ):
        kernels = np.split(kernel, len(names), axis=-1)
        for name, part, bias_part in zip(names, kernels, np.split(bias, len(names)), strict=True):
            blocks[name] = {"kernel": part}
            if _biased(layout)[name]:
                blocks[name]["bias"] = bias_part
    return jax.tree.map(as_jax, blocks)


def _fold(
    where: str, layout: Layout, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Move second biases that the layout has no place for into the first, where they add up."""
    kept = np.repeat(layout.hidden_bias, len(first) // layout.gates)
    none = np.zeros_like(second)
    lost = np.where(kept, none, second)
    candidate = np.arange(len(first)) >= len(first) - len(first) // layout.gates
    if np.any(candidate & (lost != 0)):
        raise InteropError(
            f"{where} has a recurrent_bias of its candidate that is not zero, for which a "
            f"{layout.form} {layout.names[0]} has no place; hold it at zero in training, or write "
            "it with form='linen'"
        )
    # Where there is nothing to move, not even the sign of a zero changes.
    return np.where(lost != 0, first + lost, first), np.where(kept, second, none)


def layout_of(where: str, cell: Cell, form: Form) -> Layout:
    """The layout of the class of Flax that computes what ``cell`` does: the first of its form."""
    for layout in LAYOUTS:
        if layout.form == form and layout.cell is type(cell):
            if not getattr(cell, "reset_after", True):
                raise InteropError(
                    f"{form}'s {layout.names[0]} is that of reset_after=True, but {where} has "
                    "reset_after=False, which is another function of the same parameters"
                )
            return layout
    known = dict.fromkeys(each.cell.__name__ for each in LAYOUTS if each.form == form)
    raise InteropError(
        f"flax.{form} has cells for {', '.join(known)}, but {where} is {cell!r}; there are no "
        "parameters for it"
    )
