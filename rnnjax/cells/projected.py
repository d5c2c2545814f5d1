"""Cells whose inputs are projected by one matrix product, apart from the recurrence."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import (
    Activation,
    Initializer,
    get_initializer,
)
from rnnjax.cells.arguments import (
    as_inputs,
    check_batch_shape,
    check_features,
    check_fields,
    check_init,
    check_size,
    check_step,
    floating_dtype,
    naming_update,
    same_shapes,
)
from rnnjax.cells.base import Carry, Cell, Inputs, Params, at_least_float32
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

    def __new__(cls, *args: Any, **_: Any) -> Self:
        """Everything behind the hidden size goes by its name."""
        if len(args) > 1:
            raise InvalidInputError(
                f"{cls.__name__} takes its hidden_size by position and the rest by name, but "
                f"{len(args)} arguments came without one; the size of the inputs is given to init"
            )
        return super().__new__(cls)

    @abc.abstractmethod
    def update(self, params: Params, x: Any, carry: Carry) -> Any:
        """The pointwise half of the step, in plain JAX: from what it adds up to the new carry.

        Args:
            params: as `init` returns them; of a `DenseCell` without its kernels, whose products are
                made outside.
            x: ``(*batch, gates * hidden_size)``; of a `DenseCell` see there.
            carry: the state before the step.

        Returns:
            the new carry; with ``output = None`` the new carry and ``y``.
        """

    def __post_init__(self) -> None:
        check_size("hidden_size", self.hidden_size)
        check_fields(self)

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
        check_init(key, input_size)
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
        check_features(self, params, xs)
        return add_bias(product(xs, params["kernel"], self.dtype), params, "bias")

    def advance(self, params: Params, x: Any, carry: Carry) -> tuple[Carry, jax.Array]:
        """`update`, with the types that a step returns; errors in it name the cell.

        A loop's state has to keep its type, whatever the types of inputs and parameters.
        """
        with naming_update(self, x, carry):
            new = self.update(params, x, carry)
            new, y = new if self.output is None else (new, getattr(new, self.output))
            same_shapes(new, carry)
        return self.settle(new, y, carry)

    def settle(self, new: Carry, y: jax.Array, carry: Carry) -> tuple[Carry, jax.Array]:
        """The new carry in the type of the old, and ``y`` in the cell's ``dtype``."""
        new = jax.tree.map(lambda leaf, old: leaf.astype(old.dtype), new, carry)
        like = jax.tree.leaves(new)[0].dtype
        return new, y.astype(like if self.dtype is None else self.dtype)

    def zeros(self, batch_shape: Sequence[int], dtype: DTypeLike | None) -> jax.Array:
        """Zeros ``(*batch_shape, hidden_size)``, in float32 or ``param_dtype`` if that is wider."""
        check_batch_shape(batch_shape)
        if dtype is None:
            dtype = at_least_float32(self.param_dtype)
        dtype = floating_dtype("dtype", dtype)
        return jnp.zeros((*batch_shape, self.hidden_size), dtype)


@dataclasses.dataclass(frozen=True)
class ElementwiseCell(ProjectedCell):
    """A cell without a product in the loop: each unit sees the inputs and its own state alone.

    Its step is given in two pieces::

        projected = project(params, x)               # parallel over time
        carry     = update(params, projected, carry) # pointwise; see output

    A subclass states `num_gates`, `initial_carry` and `update`. For the arguments see
    `ProjectedCell`.
    """

    @property
    def splits(self) -> bool:
        """The step comes in pieces, unless a subclass wrote its own."""
        return type(self).step is ElementwiseCell.step

    def step(self, params: Params, carry: Carry, x: Inputs) -> tuple[Carry, jax.Array]:
        """Run one time step: ``x (*batch, input_size)`` to the new carry and ``y``."""
        x = as_inputs(x)
        check_step(self, carry, x)
        return self.advance(params, self.project(params, x), carry)


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
