"""The contract of a cell: what one time step computes, apart from how it is run over time."""

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnjax.cells.activations import Initializer
from rnnjax.cells.declarations import (
    Carry,
    CarryT,
    Coupling,
    Inputs,
    Param,
    Params,
    ParamTree,
    PickLast,
    Role,
    check_called,
    check_class,
    declared,
    exportable,
    initialized,
)
from rnnjax.cells.matrix import Memory, joined, remembered
from rnnjax.cells.products import at_least_float32
from rnnjax.cells.step import plain_step, split_raw
from rnnjax.cells.validation import as_inputs, check_features, check_fields, check_step, made_carry
from rnnjax.checks import advised, answer, brief, check_batch_shape, floating_dtype, usual_promotion
from rnnjax.errors import InvalidInputError

__all__ = [
    "Carry", "CarryT", "Cell", "Coupling", "Inputs", "Param", "ParamTree", "Params", "PickLast",
    "Role", "declared", "exportable",
]  # fmt: skip


class Cell(abc.ABC, Generic[CarryT]):
    r"""What one time step of a recurrent network computes, as data and one pure function.

    A cell is a frozen dataclass of hyperparameters. ``hidden_size`` comes first, the rest are
    keyword-only. It holds no arrays and no state: parameters come from `init`, state from
    `initial_carry`, and both are passed to `step`. A cell is hashable, and so static under ``jit``;
    equal cells share ``jit``'s cache.

    A subclass declares its `carry` and its `gates`, and writes `update`, the equation:

    .. math::
        h', c' = \text{update}(x W + b, \; h U, \; c)

    Everything else follows: `parameters` (``kernel`` :math:`W`, ``recurrent_kernel`` :math:`U`,
    ``bias`` :math:`b`; a subclass can add more), `init`, `initial_carry`, `step`, and every method
    that runs the cell over time. A subclass can declare:

    - ``carry``: the NamedTuple of the state. Its leaves begin with the batch axes. Name it in the
      class for type checkers too: ``class LSTMCell(Cell[LSTMCarry])``. If leaves depend on each
      other, its ``free`` names the independent ones, as in `rnnjax.cells.SLSTMCarry`.
    - ``gates``: the names of the equal parts of ``x W``, in order.
    - ``recurrent``: the leaf of the carry that ``recurrent_kernel`` multiplies before the update.
      Default ``"hidden"``. With None the engine makes no such product: each unit sees its own state
      alone, or the update multiplies (see `update`).
    - ``additive``: whether the update gets the sum of both products, as in an LSTM. Default True.
      Otherwise it gets the pair ``(projected, recurrent)``, as in a GRU, whose reset gate scales
      one of them.
    - ``raw``: the names and sizes of the last features of the inputs, which the update gets as they
      are, by keyword: ``raw = {"gap": 1}`` and ``update(self, params, x, carry, gap)``. They may be
      time gaps, or marks of observed values as in a GRU-D. Default: none.
    - ``loop``: the kernels that the update multiplies by, with the number of gates or the shape of
      each, as in ``loop = {"candidate_kernel": 1}``. Default: none.
    - ``output``: the leaf of the new carry that is the output. Default ``"hidden"``. With None the
      update returns the new carry and ``y``, whose size is `output_size`.
    - ``coupling``: how ``update`` couples the new state to the old one. Default `Coupling.ANY`. It
      is a promise about one ``update``. A subclass that writes another ``update`` and no coupling
      is therefore given `Coupling.ANY` when the class is made, whatever its base promised: an
      inherited promise could be false, and then `Parallel` would give wrong numbers in silence.
    - `readout`: a product after the loop, for all steps at once. Default: the outputs are what the
      loop emits.
    - `memory`: the writes and reads of a matrix state, instead of an ``update``. `Parallel` then
      runs chunks of steps as matrix products.

    Fields whose names end in ``_init`` are initialisers. Only `init` and `initial_carry` read them:
    cells that differ in them share one compiled program.

    A cell with another kind of equation leaves ``carry`` at None and writes `output_size`, `init`,
    `initial_carry` and `step`. It runs on ``Scan()``.

    >>> import dataclasses, rnnjax
    >>> @dataclasses.dataclass(frozen=True)
    ... class SubLSTMCell(rnnjax.Cell):  # Costa et al., 2017
    ...     hidden_size: int
    ...     carry = rnnjax.LSTMCarry
    ...     gates = "i", "f", "z", "o"
    ...
    ...     def update(self, params, x, carry):
    ...         i, f, z, o = jnp.split(jax.nn.sigmoid(x), 4, axis=-1)
    ...         cell = f * carry.cell + z - i
    ...         return rnnjax.LSTMCarry(jax.nn.sigmoid(cell) - o, cell)
    >>> cell = SubLSTMCell(5)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, ys = rnnjax.unroll(cell, params, jnp.ones((10, 8, 3)))
    >>> params["kernel"].shape, ys.shape
    ((3, 20), (10, 8, 5))
    """

    # Hyperparameters of a cell that has no field of the name.
    hidden_size: int
    use_bias: bool = True
    use_recurrent_bias: bool = False
    kernel_init: str | Initializer = "glorot_uniform"
    recurrent_kernel_init: str | Initializer = "orthogonal"
    bias_init: str | Initializer = "zeros"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    carry: ClassVar[Any] = None
    additive: ClassVar[bool] = True
    output: ClassVar[str | None] = "hidden"

    @declared
    def gates(self) -> tuple[str, ...]:
        """The names of the equal parts of the inputs' product."""
        raise InvalidInputError(
            f"{type(self).__name__} declares no gates; state them, as in gates = ('i', 'f', 'o')"
        )

    @declared
    def recurrent(self) -> str | None:
        """The leaf of the carry that ``recurrent_kernel`` multiplies before the update."""
        return "hidden"

    @declared
    def raw(self) -> Mapping[str, int]:
        """The names and sizes of the last features, which the update gets as they are."""
        return {}

    @declared
    def loop(self) -> Mapping[str, int | tuple[int, ...]]:
        """The kernels that the update multiplies by: the number of gates of each, or its shape."""
        return {}

    @declared
    def coupling(self) -> Coupling:
        """How the update couples the new state to the old one."""
        return Coupling.ANY

    def __init_subclass__(cls) -> None:
        """Drop a coupling that was promised of another update, and check the declarations."""
        super().__init_subclass__()
        # The class that a lookup finds first: a smaller index is nearer to `cls`, which has 0.
        update, coupling = (
            next(i for i, kind in enumerate(cls.__mro__) if name in vars(kind))
            for name in ("update", "coupling")
        )
        if update < coupling:  # a property, which type checkers take for a method
            cls.coupling = Cell.coupling  # type: ignore[method-assign]
        check_class(cls, Cell)

    def __new__(cls, *args: Any, **named: Any) -> Self:
        """Refuse positional arguments after the hidden size."""
        check_called(cls, Cell, args, named)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_fields(self)

    if not TYPE_CHECKING:  # which say themselves that a cell is not callable

        def __call__(self, *_: Any, **__: Any) -> Any:
            """Raise an error that says how to run a cell."""
            raise InvalidInputError(f"{brief(self)} cannot be called; {answer('call')}")

        def __getattr__(self, name: str) -> Any:
            """Say what a word of another framework is here."""
            if name.startswith("_") or hasattr(type(self), name):
                return object.__getattribute__(self, name)  # raises what it raised
            kind = type(self).__name__
            raise AttributeError(f"{kind!r} object has no attribute {name!r}; {answer(name)}")

    # ---- what a subclass writes

    def parameters(self, input_size: int) -> dict[str, Param]:
        """Declare the parameters for inputs with ``input_size`` features, by name.

        By default: ``kernel (input_size - raw_size, gates * hidden_size)``, ``recurrent_kernel
        (size of the state, gates * hidden_size)`` if ``recurrent`` names a leaf, ``bias (gates *
        hidden_size,)`` unless ``use_bias`` is False, with ``use_recurrent_bias`` a
        ``recurrent_bias`` of that shape, and the kernels of ``loop``, each ``(hidden_size, its
        gates * hidden_size)`` or of the shape that it states.
        """
        width = len(self.gates) * self._units
        kernel = input_size - self.raw_size, width
        params = {"kernel": Param(kernel, self.kernel_init, Role.INPUT)}
        if self.recurrent is not None:
            shape = (*self._leaf_shape("recurrent", self.recurrent), width)
            params["recurrent_kernel"] = Param(shape, self.recurrent_kernel_init, Role.LOOP)
        if self.use_bias:
            params["bias"] = Param((width,), self.bias_init, Role.BIAS)
        if self.use_bias and self.use_recurrent_bias:
            params["recurrent_bias"] = Param((width,), self.bias_init, Role.BIAS)
        for name, size in self.loop.items():
            shape = size if isinstance(size, tuple) else (self._units, size * self._units)
            params[name] = Param(shape, self.recurrent_kernel_init, Role.LOOP)
        return params

    @declared
    def carry_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each leaf of the carry, without the batch: ``(hidden_size,)``."""
        return dict.fromkeys(self._declared()._fields, (self._units,))

    def update(self, params: Params, x: Any, carry: CarryT, *_: Any, **raw: Any) -> Any:
        """Compute the new carry from the products of input and state, in plain JAX.

        It is the equation of one row. Any number of batch axes may come first, so count axes from
        the last; no row may depend on another. A cell whose rows interact, as in a norm over the
        batch, writes `step` instead. These rules hold for `memory`, `recall` and `readout` too, and
        `rnnjax.testing.check_cell` tests them.

        Args:
            params: the parameters without the kernels that the engine multiplies: ``kernel``, and
                ``recurrent_kernel`` if `recurrent` names a leaf. Write ``state @ params[name]`` to
                multiply by another kernel, in the cell's ``dtype``.
            x: the products of the inputs and of the state ``(*batch, gates * hidden_size)``, as
                `additive` says.
            carry: the state before the step.
            **raw: the features that ``raw`` names, each ``(*batch, size)``.

        Returns:
            the new carry; with ``output = None`` the new carry and ``y``.
        """
        if not self.has_memory:
            raise InvalidInputError(f"{type(self).__name__} declares a carry, but writes no update")
        new, read, stabilizer = remembered(self.memory(params, x, **raw), carry)
        return new, self.recall(params, x, read, stabilizer)

    def memory(self, params: Params, x: jax.Array, *_: Any, **raw: Any) -> Memory:
        """Declare how a step changes a matrix state, from the inputs alone.

        A cell that writes it has a `rnnjax.MatrixCarry` or a `rnnjax.cells.StabilizedCarry`,
        ``recurrent = None`` and ``output = None``, and no `update`.

        Args:
            params: as in `update`.
            x: the inputs' product ``(*batch, width)``.
            **raw: as in `update`.
        """
        raise InvalidInputError(f"{type(self).__name__} declares no memory")

    def recall(self, params: Params, x: jax.Array, read: jax.Array, stabilizer: Any) -> jax.Array:
        """Compute the output of a step from what it read of its memory; by default just that.

        Args:
            params: as in `update`.
            x: the inputs' product ``(*batch, width)``.
            read: ``(*batch, heads, value_size)``.
            stabilizer: ``(*batch, heads)`` or None; ``read`` is divided by its exponential.

        Returns:
            ``(*batch, size)``.
        """
        return joined(read)

    def readout(self, params: Params, emitted: Any, xs: Any) -> jax.Array:
        """Compute the outputs from what the loop emits; by default just that.

        Products that no later step needs belong here: they run for all steps at once. A cell that
        writes a readout has ``output = None``.

        Args:
            params: the parameters with role OUT: matrices for ``emitted @ params[name]`` or ``xs @
                params[name]``, in the cell's ``dtype``, and vectors as they are.
            emitted: ``(*batch, size)``, what `update` returned with the new carry.
            xs: ``(*batch, input_size)``, the inputs of the same step without those that ``raw``
                names, perhaps `OneHot`.

        Returns:
            ``(*batch, output_size)``.
        """
        return emitted

    # ---- what follows

    @declared
    def is_stochastic(self) -> bool:
        """Whether training draws random numbers and needs the ``key`` of `rnnjax.unroll`."""
        return False

    @property
    def raw_size(self) -> int:
        """The number of features that ``raw`` names."""
        return sum(self.raw.values())

    @declared
    def output_size(self) -> int:
        """The size of the last axis of ``y``."""
        if self.output is None:
            return self._units
        return self._leaf_shape("output", self.output)[-1]

    def last_output(self, carry: CarryT | None, ys: jax.Array, pick: PickLast) -> jax.Array:
        """Return each row's output of the step that ran last, which returned ``carry``.

        If the carry does not hold it, ``pick`` takes it from ``ys``, the outputs of all steps.
        """
        if carry is None or self.carry is None or self.output is None:
            return pick(ys, False)
        return getattr(carry, self.output).astype(ys.dtype)

    @advised
    @usual_promotion()
    def init(self, key: jax.Array, input_size: int) -> Params:
        """Initialise the parameters for inputs with ``input_size`` features.

        Returns:
            a dict of the arrays that `parameters` declares, in ``param_dtype``.
        """
        return initialized(self, key, input_size)

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> CarryT:
        """Return the state at the start of a sequence: zeros, unless the cell says otherwise.

        Args:
            batch_shape: the first axes of each leaf.
            dtype: the type of the leaves; by default float32, or ``param_dtype`` if wider.
        """
        check_batch_shape(batch_shape)
        if dtype is None:
            dtype = at_least_float32(self.param_dtype)
        dtype = floating_dtype("dtype", dtype)
        kind = self._declared()
        shapes = [self._leaf_shape("carry", name) for name in kind._fields]
        return kind(*(jnp.zeros((*batch_shape, *shape), dtype) for shape in shapes))

    def start(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> CarryT:
        """Return the state at the start of a sequence, which may depend on parameters.

        `rnnjax.unroll` uses it if no carry is given, and at each reset. It equals `initial_carry`,
        except in a layer that learns its initial state: `rnnjax.LearnedCarry`.
        """
        return made_carry(self, batch_shape, dtype)

    @advised
    @usual_promotion()
    def step(self, params: Params, carry: CarryT, x: Inputs) -> tuple[CarryT, jax.Array]:
        """Run one time step.

        Args:
            params: as `init` returns them.
            carry: the state, as `initial_carry` or the step before returned it.
            x: ``(*batch, input_size)``, or a `OneHot` or a pair, as `rnnjax.unroll` takes them.

        Returns:
            the new carry, and ``y (*batch, output_size)``.
        """
        x = as_inputs(x)
        check_step(self, carry, x)
        check_features(self, params, x)
        return plain_step(self, params, carry, *split_raw(self, x))

    @property
    def has_memory(self) -> bool:
        """Whether the cell declares a `memory`."""
        return type(self).memory is not Cell.memory

    @property
    def has_readout(self) -> bool:
        """Whether the cell declares a `readout`."""
        return type(self).readout is not Cell.readout

    @property
    def _units(self) -> int:
        if not hasattr(self, "hidden_size"):
            raise InvalidInputError(
                f"{type(self).__name__} has no hidden_size; make it a dataclass(frozen=True) with "
                "the field hidden_size: int, or write carry_shapes, parameters and output_size"
            )
        return self.hidden_size

    def _leaf_shape(self, field: str, leaf: str) -> tuple[int, ...]:
        if leaf not in self.carry_shapes:
            raise InvalidInputError(
                f"{field} of {brief(self)} must name leaves of carry_shapes, "
                f"{', '.join(self.carry_shapes)}, or be None, but has {leaf!r}; add it there"
            )
        return self.carry_shapes[leaf]

    def _declared(self) -> Any:
        if self.carry is None:
            raise InvalidInputError(
                f"{brief(self)} declares no carry, from which it would be made; state one, as in "
                "carry = rnnjax.LSTMCarry, or write output_size, init, initial_carry and step"
            )
        return self.carry
