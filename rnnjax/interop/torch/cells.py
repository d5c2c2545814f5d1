"""One direction of one layer of ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU``: its arrays and a cell."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rnnjax.cells import Cell, GRUCell, LSTMCell, ProjectionLSTMCell, SimpleRNNCell
from rnnjax.cells.activations import Activation, get_activation
from rnnjax.cells.base import Params
from rnnjax.errors import InteropError
from rnnjax.interop.arrays import as_jax, cell_arrays, check_one_type, in_prediction
from rnnjax.interop.registry import FORMS, names_of
from rnnjax.layers import Regularized

Arrays = Mapping[str, np.ndarray]
"""By PyTorch's names without the place in the module: ``weight_ih``, ``bias_hh`` ..."""


def read_cell(where: str, arrays: Arrays, nonlinearity: str) -> Cell:
    """The cell that computes what one layer of a module does, from the shapes of its arrays."""
    for name in ("weight_ih", "weight_hh"):
        if name not in arrays:
            raise InteropError(f"{where} has no {name}; check that the state dict is complete")
    if ("bias_ih" in arrays) != ("bias_hh" in arrays):
        raise InteropError(
            f"{where} should have both biases or none, but has one; check that the state dict is "
            "complete"
        )
    weight, projection = arrays["weight_hh"], arrays.get("weight_hr")
    hidden, proj_size = weight.shape[-1] if weight.ndim == 2 else 0, 0
    if projection is not None:
        proj_size, hidden = hidden, projection.shape[-1] if projection.ndim == 2 else 0
    gates, rest = divmod(weight.shape[0], hidden) if hidden else (0, 0)
    if rest or gates not in (4, 3, 1) or (projection is not None and gates != 4):
        raise InteropError(
            f"weight_hh of {where} should be (gates * {hidden or 'hidden_size'}, hidden_size) with "
            f"4, 3 or 1 gates for an LSTM, a GRU or an RNN, and 4 where there is a weight_hr, but "
            f"is {weight.shape}; check the state dict"
        )
    bias = "bias_ih" in arrays
    options: dict[str, Any] = {"use_bias": bias, "param_dtype": weight.dtype}
    if gates != 3:
        options["use_recurrent_bias"] = bias
    cell: Cell
    if gates == 3:
        cell = GRUCell(hidden, **options)
    elif gates == 1:
        cell = SimpleRNNCell(hidden, activation=nonlinearity, **options)
    elif proj_size:
        cell = ProjectionLSTMCell(hidden, proj_size=proj_size, **options)
    else:
        cell = LSTMCell(hidden, **options)
    _check_shapes(where, arrays, gates * hidden, cell)
    return cell


def _check_shapes(where: str, arrays: Arrays, width: int, cell: Any) -> None:
    inputs = arrays["weight_ih"].shape[-1] if arrays["weight_ih"].ndim == 2 else 0
    hidden, gives = cell.hidden_size, cell.output_size
    expected: dict[str, tuple[Any, ...]] = {
        "weight_ih": (width, inputs or "inputs"),
        "weight_hh": (width, gives),
        "weight_hr": (gives, hidden),
        "bias_ih": (width,),
        "bias_hh": (width,),
    }
    for name, array in arrays.items():
        if array.shape != expected[name]:
            raise InteropError(
                f"{name} of {where}, an {FORMS['torch'][type(cell)].name} of {hidden} units, "
                f"should be {expected[name]}, but is {array.shape}; check the state dict"
            )
    check_one_type(where, arrays.values())


def read_params(arrays: Arrays) -> dict[str, jax.Array]:
    """Our parameters: kernels transposed."""
    params = {"kernel": arrays["weight_ih"].T, "recurrent_kernel": arrays["weight_hh"].T}
    if "bias_ih" in arrays:
        # Both stay, also where they add up: an optimizer moves their sum by two steps at once.
        params |= {"bias": arrays["bias_ih"], "recurrent_bias": arrays["bias_hh"]}
    if "weight_hr" in arrays:
        params["projection_kernel"] = arrays["weight_hr"].T
    return {name: as_jax(array) for name, array in params.items()}


def write_params(cell: Cell, params: Params) -> dict[str, np.ndarray]:
    """The way back of `read_params`; where there is one bias, the second is zeros."""
    arrays = cell_arrays(cell.cell if isinstance(cell, Regularized) else cell, params)
    state = {"weight_ih": arrays["kernel"].T, "weight_hh": arrays["recurrent_kernel"].T}
    if "bias" in arrays:
        second = arrays.get("recurrent_bias", np.zeros_like(arrays["bias"]))
        state |= {"bias_ih": arrays["bias"], "bias_hh": second}
    if "projection_kernel" in arrays:
        state["weight_hr"] = arrays["projection_kernel"].T
    # Arrays of their own, which torch.from_numpy may let others write to.
    return {name: np.array(array, order="C") for name, array in state.items()}


def told_of(where: str, cell: Cell) -> tuple[Any, ...]:
    """What PyTorch's module is told when it is made, the same for all its layers."""
    cell = in_prediction(cell, where, "PyTorch")
    form = FORMS["torch"].get(type(cell))
    if form is None:
        raise InteropError(
            f"PyTorch has modules for {names_of('torch')}, but {where} is {cell!r}; there is no "
            "state dict for it"
        )
    assert isinstance(cell, SimpleRNNCell | LSTMCell | GRUCell | ProjectionLSTMCell)
    if isinstance(cell, SimpleRNNCell):
        nonlinearity = _spell(where, cell.activation, "tanh", "relu")
        return form.name, cell.hidden_size, nonlinearity, cell.use_bias
    _spell(where, cell.activation, "tanh")
    _spell(where, cell.recurrent_activation, "sigmoid")
    if isinstance(cell, GRUCell) and not cell.reset_after:
        raise InteropError(
            f"PyTorch's GRU is that of reset_after=True, but {where} has reset_after=False, which "
            "is another function of the same parameters"
        )
    proj_size = cell.proj_size if isinstance(cell, ProjectionLSTMCell) else 0
    if proj_size >= cell.hidden_size:
        raise InteropError(
            f"proj_size of PyTorch's LSTM must be smaller than its hidden_size, but {where} has "
            f"{proj_size} of {cell.hidden_size}"
        )
    return form.name, cell.hidden_size, proj_size, cell.use_bias


def _spell(where: str, activation: str | Activation, *names: str) -> str:
    for name in names:
        if get_activation(activation) is get_activation(name):
            return name
    raise InteropError(
        f"PyTorch has {' or '.join(names)} here, but {where} has {activation!r}, which its modules "
        "cannot be told"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class TorchOrigin:
    """What a state dict says and a `Model` does not.

    Attributes:
        prefixes: of the keys, by the name of the layer; ``""`` for the top level.
        single_cells: the layers that came as ``nn.LSTMCell`` and the like, without ``_l0``.
    """

    prefixes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    single_cells: frozenset[str] = frozenset()
