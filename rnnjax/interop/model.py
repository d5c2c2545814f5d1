"""What every reader returns and every writer takes: layers, their parameters, and how they run."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.engine import Auto, Method
from rnnjax.errors import InvalidInputError
from rnnjax.interop.layers import Context, Flow, Layer, Recurrent


class Network(abc.ABC):
    """The layers of a model and the order in which they run, without parameters.

    A network is a frozen dataclass like a cell: hashable, so it is static under ``jit``.
    """

    @property
    @abc.abstractmethod
    def layers(self) -> Mapping[str, Layer]:
        """The layers by their names, in the order in which they run."""

    @abc.abstractmethod
    def run(
        self, params: Params, xs: Any, carry: Mapping[str, Carry], mask: Any, context: Context
    ) -> tuple[dict[str, Carry], Any]:
        """Run the layers over ``xs``; ``carry`` has entries for some recurrent layers or none."""

    @property
    def axes(self) -> str:
        """Of inputs and outputs, in words."""
        return "time first"

    def num_steps(self, params: Params, xs: Any) -> int:
        """The number of time steps in ``xs``: its first axis, unless a network says otherwise."""
        return int(jnp.shape(xs)[0])

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> dict[str, Carry]:
        """The state with which a sequence begins: by name, that of each recurrent layer's cell."""
        return {
            name: layer.cell.initial_carry(batch_shape, dtype)
            for name, layer in self.layers.items()
            if isinstance(layer, Recurrent)
        }


@dataclasses.dataclass(frozen=True)
class Sequential(Network):
    """Layers in a row.

    Args:
        chain: the layers from the input up, with distinct names; kept as a tuple.

    Raises:
        InvalidInputError: there is no layer, an entry is not a `Layer`, or two have one name.
    """

    chain: tuple[Layer, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "chain", tuple(self.chain))
        if not self.chain:
            raise InvalidInputError("a network needs at least one layer, but got none")
        names = []
        for layer in self.chain:
            if not isinstance(layer, Layer):
                raise InvalidInputError(
                    f"a Sequential is made of layers such as Recurrent('lstm', LSTMCell(50)), but "
                    f"got {layer!r}"
                )
            names.append(layer.name)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidInputError(
                f"layers need names of their own, by which their parameters are found, but "
                f"{', '.join(twice)} occurs twice; rename one"
            )

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The layers by their names, from the input up."""
        return {layer.name: layer for layer in self.chain}

    def run(
        self, params: Params, xs: Any, carry: Mapping[str, Carry], mask: Any, context: Context
    ) -> tuple[dict[str, Carry], Any]:
        """Run the layers one after the other."""
        flow, carries = Flow(xs, mask), {}
        for i, layer in enumerate(self.chain):
            key = None if context.key is None else jax.random.fold_in(context.key, i)
            here = dataclasses.replace(context, key=key)
            state, flow = layer.run(params.get(layer.name, {}), flow, carry.get(layer.name), here)
            if isinstance(layer, Recurrent):
                carries[layer.name] = state
        return carries, flow.xs


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model that came from another framework, or goes to one.

    Attributes:
        network: its layers and the order in which they run; hashable.
        params: by the name of the layer, its parameters. Those of a recurrent layer are the
            parameters of its cell: ``rnnjax.unroll(model.layers["lstm"].cell,
            model.params["lstm"], xs)`` runs it by itself.
        origin: what the source holds and rnnjax's parameters do not, such as PyTorch's second bias
            of a gate; read only by the way back into the same format, so that what came unchanged
            goes back unchanged.

    >>> import rnnjax
    >>> cell = rnnjax.LSTMCell(5)
    >>> model = Model.of(cell, cell.init(jax.random.key(0), 3))
    >>> carry, ys = model(jnp.ones((10, 8, 3)))
    >>> carry, ys = model.apply(model.params, jnp.ones((10, 8, 3)), carry)  # goes on from there
    >>> ys.shape, carry["rnn"].hidden.shape
    ((10, 8, 5), (8, 5))
    >>> print(model)
    layer  what it is   parameters
    rnn    LSTMCell(5)  180  bias (20,), kernel (3, 20), recurrent_kernel (5, 20)
    axes   time first
    """

    network: Network
    params: Params
    origin: Any = None

    @classmethod
    def of(cls, cell: Cell, params: Params, name: str = "rnn") -> "Model":
        """A model of one recurrent layer: a cell, a `rnnjax.Stack`, a `rnnjax.Bidirectional`."""
        return cls(Sequential((Recurrent(name, cell),)), {name: params})

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The layers by their names, in the order in which they run."""
        return self.network.layers

    def with_params(self, params: Params) -> "Model":
        """The same model with other parameters, after training, say.

        Raises:
            InvalidInputError: they have another structure, or another shape somewhere.
        """
        ours, theirs = (
            {
                jax.tree_util.keystr(path): jnp.shape(leaf)
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            }
            for tree in (self.params, params)
        )
        differing = sorted(k for k in ours | theirs if ours.get(k) != theirs.get(k))
        if differing:
            listed = "; ".join(
                f"{k}: expected {ours.get(k, 'none')}, got {theirs.get(k, 'none')}"
                for k in differing[:6]
            )
            raise InvalidInputError(
                f"params do not belong to this model: {listed}; train from model.params"
            )
        return dataclasses.replace(self, params=params)

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> dict[str, Carry]:
        """The state with which a sequence begins: by name, that of each recurrent layer."""
        return self.network.initial_carry(batch_shape, dtype)

    def __call__(self, xs: Any, carry: Any = None, **semantics: Any) -> tuple[Any, Any]:
        """`apply` with the model's own parameters."""
        return self.apply(self.params, xs, carry, **semantics)

    def apply(
        self,
        params: Params,
        xs: Any,
        carry: Mapping[str, Carry] | None = None,
        *,
        lengths: jax.Array | None = None,
        mask: jax.Array | None = None,
        resets: jax.Array | None = None,
        key: jax.Array | None = None,
        method: Method = Auto(),
    ) -> tuple[dict[str, Carry], Any]:
        """Run the model; a pure function, to be jitted and differentiated.

        Args:
            params: like ``self.params``.
            xs: ``(time, *batch, features)``, time first whatever the framework had, unless
                ``print(model)`` says that axes are the graph's own; integer ids ``(time, *batch)``
                where the first layer takes ids.
            carry: by the name of a recurrent layer, its state before the first step; a layer that
                is left out begins with its initial carry.
            lengths: the valid steps of each row, as in `rnnjax.unroll`.
            mask: which steps are valid, as there.
            resets: where new sequences begin, as there.
            key: for dropout; without it nothing is dropped, as for prediction.
            method: how to run the recurrent layers, as there.

        Returns:
            the carry after the last step, and the outputs: ``(time, *batch, size)``, or
            ``(*batch, size)`` behind a layer that returns its last output alone.

        Raises:
            InvalidInputError: ``params`` is no dict, ``carry`` names a layer that is not there, or
                an argument does not fit; see `rnnjax.unroll`.
        """
        carry = {} if carry is None else carry
        known = {name for name, layer in self.layers.items() if isinstance(layer, Recurrent)}
        if not isinstance(carry, Mapping) or not set(carry) <= known:
            came = sorted(map(str, carry)) if isinstance(carry, Mapping) else type(carry).__name__
            raise InvalidInputError(
                f"carry must be a dict with entries for some of {sorted(known)}, but is {came}; "
                "start from model.initial_carry(batch_shape), or leave it out"
            )
        if not isinstance(params, Mapping):
            raise InvalidInputError(
                f"params should be a dict like model.params, but is {type(params).__name__}"
            )
        if lengths is not None:
            valid = _valid(jnp.asarray(lengths), self.network.num_steps(params, xs))
            mask = valid if mask is None else valid & jnp.asarray(mask)
        context = Context(resets=resets, key=key, method=method)
        return self.network.run(params, xs, carry, mask, context)

    def __str__(self) -> str:
        """A table of the layers with the names and shapes of their parameters."""
        rows = [("layer", "what it is", "parameters")]
        for name, layer in self.layers.items():
            leaves = jax.tree_util.tree_leaves_with_path(self.params.get(name, {}))
            shapes = ", ".join(
                f"{jax.tree_util.keystr(path, simple=True, separator='.')} {jnp.shape(leaf)}"
                for path, leaf in leaves
            )
            count = sum(np.size(leaf) for _, leaf in leaves)
            shown = repr(name)[1:-1]  # names of files may hold what moves a terminal
            rows.append((shown, str(layer), f"{count:,}  {shapes}" if leaves else "none"))
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        lines = [f"{name:{widths[0]}}  {kind:{widths[1]}}  {shapes}" for name, kind, shapes in rows]
        return "\n".join([*lines, f"{'axes':{widths[0]}}  {self.network.axes}"])


def _valid(lengths: jax.Array, num_steps: int) -> jax.Array:
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise InvalidInputError(
            f"lengths must be integers, the number of valid steps of each row, but are "
            f"{lengths.dtype}; booleans for each step are given as mask"
        )
    return jnp.arange(num_steps).reshape(-1, *[1] * lengths.ndim) < lengths
