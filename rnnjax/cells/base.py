"""The contract of a cell: what one time step computes, apart from how it is run over time."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import (
    Activation,
    Initializer,
    activate_gates,
    gate_slopes,
    get_activation,
    get_initializer,
    slopes_follow_from_values,
)
from rnnjax.cells.onehot import OneHot
from rnnjax.errors import InvalidInputError

Params = Any
"""A pytree of arrays; for a single cell a dict such as ``{"kernel": ..., "bias": ...}``."""

Carry = Any
"""A pytree of arrays; for a single cell a NamedTuple such as ``LSTMCarry(hidden, cell)``."""

Inputs = jax.Array | OneHot
"""An array whose last axis are the features, or one-hot vectors given as their ids."""

LayerRun = Callable[["Cell", Params, Any, Carry], tuple[Carry, jax.Array]]
"""``(cell, params, xs, carry) -> (carry, ys)``: one layer over a whole sequence."""


class Cell(abc.ABC):
    """What one time step of a recurrent network computes, as pure functions.

    A cell is a frozen dataclass of hyperparameters. It owns no arrays and remembers nothing:
    parameters come from `init`, state from `initial_carry`, and both are passed to `step`
    explicitly. Because it is hashable it is static under ``jit``, and a cell that is built again
    from the same hyperparameters hits ``jit``'s cache.

    Every leaf of a carry begins with the axes of the batch.
    """

    @property
    @abc.abstractmethod
    def output_size(self) -> int:
        """The size of the last axis of ``y``."""

    @abc.abstractmethod
    def init(self, key: jax.Array, input_size: int) -> Params:
        """Draw the parameters for inputs with ``input_size`` features."""

    @abc.abstractmethod
    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> Carry:
        """Return the state with which a sequence begins: zeros, unless the cell says otherwise."""

    @abc.abstractmethod
    def step(self, params: Params, carry: Carry, x: Inputs) -> tuple[Carry, jax.Array]:
        """Run one time step: ``x`` is ``(*batch, input_size)``, ``y`` ``(*batch, output_size)``."""

    @property
    def splits(self) -> bool:
        """Whether `step` is also given as project, recurrent product and activate.

        Every method but the plain scan needs to know these pieces apart; see `DenseCell`.
        """
        return False


class CompositeCell(Cell):
    """A cell made of layers, each of which runs over the whole sequence before the next."""

    @abc.abstractmethod
    def unroll_layers(
        self, run: LayerRun, params: Params, xs: Inputs, carry: Carry
    ) -> tuple[Carry, jax.Array]:
        """Run the layers over ``xs``, each of them by calling ``run``."""


@dataclasses.dataclass(frozen=True)
class DenseCell(Cell):
    """A cell whose only product in the loop is ``hidden @ recurrent_kernel``.

    Its step is given in three pieces::

        projected = project(params, x)                  # needs only the input: parallel over time
        recurrent = recurrent_product(params, hidden)   # linear in the hidden state
        carry, y  = activate(params, projected, recurrent, carry)      # pointwise

    A subclass states `num_gates`, `initial_carry` and `activate` (the equation). `step`, the
    reference scan, the fused path and its gradient follow from these.

    Args:
        hidden_size: the number of hidden units.
        activation: of the candidate and the output, by name or as a callable.
        use_bias: whether the gates have a bias.
        kernel_init: initialiser of ``kernel``, by name or as ``(key, shape, dtype) -> array``.
        recurrent_kernel_init: the same for ``recurrent_kernel``.
        bias_init: the same for the biases.
        dtype: of the operands of the matrix products and of the outputs. With ``None`` the
            products run in the promoted type of input and parameters, and outputs have the type of
            the carry. Products in a type narrower than float32 accumulate in float32, and the
            carry stays float32: ``dtype=jnp.bfloat16`` does not make the state forget.
        param_dtype: of the parameters that `init` draws.
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    activation: str | Activation = "tanh"
    use_bias: bool = True
    kernel_init: str | Initializer = "glorot_uniform"
    recurrent_kernel_init: str | Initializer = "orthogonal"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    num_gates: ClassVar[int]

    def __post_init__(self) -> None:
        if not isinstance(self.hidden_size, int) or self.hidden_size < 1:
            raise InvalidInputError(
                f"hidden_size must be a positive integer, but is {self.hidden_size!r}"
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("activation"):
                get_activation(value)
            elif field.name.endswith("_init"):
                get_initializer(value)
            elif field.name.endswith("dtype") and value is not None:
                # One spelling of a dtype, so that equal cells hash alike.
                object.__setattr__(self, field.name, jnp.dtype(value))

    @abc.abstractmethod
    def activate(
        self, params: Params, projected: jax.Array, recurrent: jax.Array, carry: Carry
    ) -> tuple[Carry, jax.Array]:
        """The pointwise half of the step: ``(*batch, gates * hidden_size)`` to ``(carry, y)``."""

    @property
    def output_size(self) -> int:
        """The size of the last axis of ``y``: ``hidden_size``."""
        return self.hidden_size

    @property
    def splits(self) -> bool:
        """A dense cell's step comes in pieces, unless a subclass wrote its own."""
        own = type(self)
        return own.step is DenseCell.step and own.recurrent_product is DenseCell.recurrent_product

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters for inputs with ``input_size`` features.

        Returns:
            a dict of ``kernel (input_size, gates * hidden_size)``, ``recurrent_kernel
            (hidden_size, gates * hidden_size)`` and, with ``use_bias``, ``bias
            (gates * hidden_size,)``, in ``param_dtype``; some cells add to it.
        """
        if input_size < 1:
            raise InvalidInputError(f"input_size must be a positive integer, but is {input_size!r}")
        kernel_key, recurrent_key, bias_key = jax.random.split(key, 3)
        width = self.num_gates * self.hidden_size
        params = {
            "kernel": self.draw(self.kernel_init, kernel_key, (input_size, width)),
            "recurrent_kernel": self.draw(
                self.recurrent_kernel_init, recurrent_key, (self.hidden_size, width)
            ),
        }
        if self.use_bias:
            params["bias"] = self.draw(self.bias_init, bias_key, (width,))
        return params

    def draw(
        self, initializer: str | Initializer, key: jax.Array, shape: tuple[int, ...]
    ) -> jax.Array:
        """One parameter in ``param_dtype``, drawn in float32 at least: orthogonal needs it."""
        drawn = get_initializer(initializer)(key, shape, at_least_float32(self.param_dtype))
        return drawn.astype(self.param_dtype)

    def project(self, params: Params, xs: Inputs) -> jax.Array:
        """``xs @ kernel + bias``: the half of the step that needs only the input.

        Args:
            params: as `init` returns them.
            xs: ``(..., input_size)``, any number of leading axes: one step, or all of them.

        Returns:
            ``(..., gates * hidden_size)``.

        Raises:
            InvalidInputError: a parameter is missing or of another shape, or ``xs`` has another
                number of features.
        """
        check_params(self, params, xs)
        return add_bias(product(xs, params["kernel"], self.dtype), params, "bias")

    def recurrent_product(self, params: Params, hidden: jax.Array) -> jax.Array:
        """``hidden @ recurrent_kernel``, plus ``recurrent_bias`` in the cells that have one."""
        recurrent = product(hidden, params["recurrent_kernel"], self.dtype)
        return add_bias(recurrent, params, "recurrent_bias")

    def update(
        self, params: Params, projected: jax.Array, recurrent: jax.Array, carry: Carry
    ) -> tuple[Carry, jax.Array]:
        """`activate`, with the new carry in the type of the old and ``y`` in the cell's ``dtype``.

        A loop's state has to keep its type, whatever the types of inputs and parameters.
        """
        return self.cast(self.activate(params, projected, recurrent, carry), carry)

    def step(self, params: Params, carry: Carry, x: Inputs) -> tuple[Carry, jax.Array]:
        """Run one time step.

        Args:
            params: as `init` returns them.
            carry: the state, as `initial_carry` or the step before returned it.
            x: ``(*batch, input_size)``.

        Returns:
            the new carry, and ``y (*batch, hidden_size)``.
        """
        projected = self.project(params, as_inputs(x))
        return self.update(params, projected, self.recurrent_product(params, carry.hidden), carry)

    def cast(self, result: tuple[Carry, jax.Array], carry: Carry) -> tuple[Carry, jax.Array]:
        """The new carry in the type of the old one, and ``y`` in the cell's ``dtype``."""
        new, y = result
        new = jax.tree.map(lambda leaf, old: leaf.astype(old.dtype), new, carry)
        return new, y.astype(new.hidden.dtype if self.dtype is None else self.dtype)

    def zeros(self, batch_shape: Sequence[int], dtype: DTypeLike | None) -> jax.Array:
        """Zeros ``(*batch_shape, hidden_size)``, in float32 or ``param_dtype`` if that is wider."""
        if not isinstance(batch_shape, tuple | list):
            raise InvalidInputError(
                f"batch_shape must be a tuple, but is {batch_shape!r}; write ({batch_shape!r},)"
            )
        if dtype is None:
            dtype = at_least_float32(self.param_dtype)
        return jnp.zeros((*batch_shape, self.hidden_size), dtype)


@dataclasses.dataclass(frozen=True)
class GatedCell(DenseCell):
    """A dense cell whose gates come first, and whose state follows from them.

    A subclass states `gates` and `combine` in place of `activate`, and `pull_gates`, the derivative
    of `gates` from its values. Knowing the gates apart lets the fast path keep their values for
    the backward pass and nothing else, and compute no transcendental function a second time. Most
    cells are an `AdditiveCell`, which has `pull_gates` written for it.
    """

    @property
    @abc.abstractmethod
    def keeps_gates(self) -> bool:
        """Whether `pull_gates` knows the derivatives of this cell's activations."""

    @abc.abstractmethod
    def gates(self, projected: jax.Array, recurrent: jax.Array) -> Any:
        """What the state follows from: a pytree whose first leaf has the shape of ``projected``.

        A subclass that overrides it has to bring its own `pull_gates`; otherwise the fast path
        keeps the inputs of its gates and has JAX differentiate them.
        """

    @abc.abstractmethod
    def combine(self, params: Params, gates: Any, carry: Carry) -> tuple[Carry, jax.Array]:
        """The step from the gates on; pointwise."""

    @abc.abstractmethod
    def pull_gates(self, gates: Any, d_gates: Any) -> tuple[jax.Array, jax.Array]:
        """The cotangents of ``projected`` and ``recurrent``, from the values of `gates` and theirs.

        Where the two are the same, one and the same array saves the second.
        """

    def activate(
        self, params: Params, projected: jax.Array, recurrent: jax.Array, carry: Carry
    ) -> tuple[Carry, jax.Array]:
        """`combine` of the gates."""
        return self.combine(params, self.gates(projected, recurrent), carry)


@dataclasses.dataclass(frozen=True)
class AdditiveCell(GatedCell):
    """A gated cell whose gates see input and state only as their sum, as in an LSTM.

    A subclass states `gate_activations` and `combine`, whose ``gates`` is one array
    ``(*batch, gates * hidden_size)``.
    """

    @property
    @abc.abstractmethod
    def gate_activations(self) -> tuple[str | Activation, ...]:
        """The activation of each gate, in the order of the kernel's columns."""

    @property
    def keeps_gates(self) -> bool:
        """Where all gates are tanh or sigmoid."""
        return slopes_follow_from_values(self.gate_activations)

    def gates(self, projected: jax.Array, recurrent: jax.Array) -> jax.Array:
        """The activated sum."""
        return activate_gates(projected + recurrent, self.gate_activations)

    def pull_gates(self, gates: jax.Array, d_gates: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Both cotangents are that of the sum."""
        d_sum = d_gates * gate_slopes(gates, self.gate_activations)
        return d_sum, d_sum


def check_params(cell: Cell, params: Params, xs: Inputs) -> None:
    """Raise unless ``params`` are those of ``cell``, and ``xs (..., input_size)`` fits them.

    Raises:
        InvalidInputError: a parameter is missing, unknown or of another shape, or ``xs`` has
            another number of features.
    """
    name = type(cell).__name__
    if not isinstance(params, Mapping) or "kernel" not in params:
        came = f"hold {sorted(params)}" if isinstance(params, Mapping) else f"are a {type(params)}"
        raise InvalidInputError(
            f"params should be the dict that {name}.init returns, but {came}; "
            "make them with cell.init(key, input_size)"
        )
    input_size = jnp.shape(params["kernel"])[0]
    expected = _parameter_shapes(cell, input_size)
    shapes = {key: jnp.shape(array) for key, array in params.items()}
    if shapes != expected:
        differing = sorted(key for key in shapes | expected if shapes.get(key) != expected.get(key))
        listed = "; ".join(
            f"{key}: expected {expected.get(key, 'none')}, got {shapes.get(key, 'none')}"
            for key in differing
        )
        raise InvalidInputError(
            f"params do not belong to {cell}: {listed}; make them with cell.init(key, input_size)"
        )
    if xs.ndim == 0 or xs.shape[-1] != input_size:
        came = f"{xs.shape[-1]} features" if xs.ndim else "no axes"
        raise InvalidInputError(
            f"xs has {came}, but params were initialised for {input_size}; "
            "check the last axis of xs (time, batch, features)"
        )


@functools.lru_cache(maxsize=1024)
def _parameter_shapes(cell: Cell, input_size: int) -> dict[str, tuple[int, ...]]:
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size))
    return {name: leaf.shape for name, leaf in shapes.items()}


def at_least_float32(dtype: DTypeLike) -> jnp.dtype[Any]:
    """The type itself, or float32 if the type is narrower: sums and states are kept in it."""
    return jnp.promote_types(dtype, jnp.float32)


def as_inputs(xs: Any) -> Inputs:
    """``xs``, or the ids of `OneHot`, as a JAX array."""
    if isinstance(xs, OneHot):
        return OneHot(jnp.asarray(xs.ids), xs.size)
    return jnp.asarray(xs)


def product(x: Inputs, kernel: jax.Array, dtype: DTypeLike | None) -> jax.Array:
    """``x @ kernel``, operands in ``dtype`` (``None``: promoted), summed in float32 at least."""
    if isinstance(x, OneHot):
        rows = x.rows(kernel)  # rounded after the look-up, so that the gradient's sums are not
        rows = rows if dtype is None else rows.astype(dtype)
        return rows.astype(at_least_float32(rows.dtype))
    if dtype is None:
        dtype = jnp.promote_types(x.dtype, kernel.dtype)
    # Two axes, not three: the gradient is then two plain products, without transposed copies.
    rows = x.reshape(-1, x.shape[-1]).astype(dtype)
    out = jnp.matmul(rows, kernel.astype(dtype), preferred_element_type=at_least_float32(dtype))
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


def add_bias(x: jax.Array, params: Params, name: str) -> jax.Array:
    """``x`` plus the bias of that name, in the type of ``x``; ``x`` itself if there is none."""
    return x + params[name].astype(x.dtype) if name in params else x
