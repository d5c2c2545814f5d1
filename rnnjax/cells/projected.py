"""Cells whose inputs are projected by one matrix product, apart from the recurrence."""

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import (
    Activation,
    Initializer,
    get_activation,
    get_initializer,
    named,
)
from rnnjax.cells.base import Carry, Cell, Inputs, Params, as_inputs, at_least_float32
from rnnjax.cells.onehot import OneHot
from rnnjax.cells.rows import as_rows
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True)
class ProjectedCell(Cell):
    """What `DenseCell` and `ElementwiseCell` share: hyperparameters and the product of the inputs.

    Args:
        hidden_size: the number of hidden units.
        activation: of the candidate and the output, by name or as a callable.
        use_bias: whether the gates have a bias.
        kernel_init: initialiser of ``kernel``, by name or as ``(key, shape, dtype) -> array``.
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
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    num_gates: ClassVar[int]
    output: ClassVar[str | None] = "hidden"
    """The leaf of the new carry that is the output; None where `update` returns one beside it."""

    @abc.abstractmethod
    def update(self, params: Params, x: Any, carry: Carry) -> Any:
        """The pointwise half of the step, in plain JAX: from what it adds up to the new carry.

        Args:
            params: as `init` returns them, but for the kernels, which are no business of it.
            x: ``(*batch, gates * hidden_size)``; of a `DenseCell` see there.
            carry: the state before the step.

        Returns:
            the new carry; with ``output = None`` the new carry and ``y``.
        """

    def __post_init__(self) -> None:
        if not isinstance(self.hidden_size, int) or self.hidden_size < 1:
            raise InvalidInputError(
                f"hidden_size must be a positive integer, but is {self.hidden_size!r}"
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("activation"):
                get_activation(value)
                # One spelling of an activation too, which has its gates known for what they are.
                object.__setattr__(self, field.name, named(value))
            elif field.name.endswith("_init"):
                get_initializer(value)
            elif field.name.endswith("dtype") and value is not None:
                # One spelling of a dtype, so that equal cells hash alike.
                object.__setattr__(self, field.name, jnp.dtype(value))

    @property
    def output_size(self) -> int:
        """The size of the last axis of ``y``: ``hidden_size``."""
        return self.hidden_size

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters for inputs with ``input_size`` features.

        Returns:
            a dict of ``kernel (input_size, gates * hidden_size)`` and, with ``use_bias``, ``bias
            (gates * hidden_size,)``, in ``param_dtype``; most cells add to it.
        """
        if input_size < 1:
            raise InvalidInputError(f"input_size must be a positive integer, but is {input_size!r}")
        kernel_key, _, bias_key = jax.random.split(key, 3)
        width = self.num_gates * self.hidden_size
        params = {"kernel": self.draw(self.kernel_init, kernel_key, (input_size, width))}
        if self.use_bias:
            params["bias"] = self.draw(self.bias_init, bias_key, (width,))
        return params

    def draw(
        self, initializer: str | Initializer, key: jax.Array, shape: tuple[int, ...]
    ) -> jax.Array:
        """One parameter in ``param_dtype``, drawn in float32 at least: orthogonal needs it."""
        drawn = get_initializer(initializer)(key, shape, at_least_float32(self.param_dtype))
        return drawn.astype(self.param_dtype)

    @property
    def projects_plainly(self) -> bool:
        """Whether `project` is as below, and not one that a subclass wrote."""
        return type(self).project is ProjectedCell.project

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

    def advance(self, params: Params, x: Any, carry: Carry) -> tuple[Carry, jax.Array]:
        """`update`, with the new carry in the type of the old and ``y`` in the cell's ``dtype``.

        A loop's state has to keep its type, whatever the types of inputs and parameters.
        """
        new = self.update(params, x, carry)
        new, y = new if self.output is None else (new, getattr(new, self.output))
        new = jax.tree.map(lambda leaf, old: leaf.astype(old.dtype), new, carry)
        like = jax.tree.leaves(new)[0].dtype
        return new, y.astype(like if self.dtype is None else self.dtype)

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
class ElementwiseCell(ProjectedCell):
    """A cell without a product in the loop: each unit sees the inputs and its own state alone.

    Its step is given in two pieces::

        projected = project(params, x)               # parallel over time
        carry     = update(params, projected, carry) # pointwise; the output is carry.hidden

    A subclass states `num_gates`, `initial_carry` and `update`. For the arguments see
    `ProjectedCell`.
    """

    @property
    def splits(self) -> bool:
        """The step comes in pieces, unless a subclass wrote its own."""
        return type(self).step is ElementwiseCell.step

    def step(self, params: Params, carry: Carry, x: Inputs) -> tuple[Carry, jax.Array]:
        """Run one time step: ``x (*batch, input_size)`` to the new carry and ``y``."""
        return self.advance(params, self.project(params, as_inputs(x)), carry)


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


def product(x: Inputs, kernel: jax.Array, dtype: DTypeLike | None) -> jax.Array:
    """``x @ kernel``, operands in ``dtype`` (``None``: promoted), summed in float32 at least."""
    if isinstance(x, OneHot):
        rows = x.rows(kernel)  # rounded after the look-up, so that the gradient's sums are not
        rows = rows if dtype is None else rows.astype(dtype)
        return rows.astype(at_least_float32(rows.dtype))
    if dtype is None:
        dtype = jnp.promote_types(x.dtype, kernel.dtype)
    # Two axes, not three: the gradient is then two plain products, without transposed copies.
    rows = as_rows(x).astype(dtype)
    out = jnp.matmul(rows, kernel.astype(dtype), preferred_element_type=at_least_float32(dtype))
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


def add_bias(x: jax.Array, params: Params, name: str) -> jax.Array:
    """``x`` plus the bias of that name, in the type of ``x``; ``x`` itself if there is none."""
    return x + params[name].astype(x.dtype) if name in params else x
