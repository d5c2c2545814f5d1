"""The contract of a cell: what one time step computes, apart from how it is run over time."""

import abc
import copy
import dataclasses
import enum
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rnnjax.cells.activations import Initializer
from rnnjax.cells.arguments import (
    as_inputs,
    brief,
    check_batch_shape,
    check_features,
    check_fields,
    check_init,
    check_names,
    check_pair,
    check_sizes,
    check_step,
    check_takes_dtype,
    check_updated,
    drawn,
    floating_dtype,
    made_carry,
    naming,
    number_types,
    rounded,
    usual_promotion,
)
from rnnjax.cells.devices import match_vma
from rnnjax.cells.matrix import Memory, joined, remembered
from rnnjax.cells.onehot import Beside, OneHot
from rnnjax.cells.products import Kernel, add_bias, at_least_float32, product
from rnnjax.errors import InvalidInputError

if TYPE_CHECKING:  # with a default, so that Cell alone stands for a cell of any carry
    from typing_extensions import TypeVar

    CarryT = TypeVar("CarryT", default=Any)
    T = TypeVar("T", covariant=True)

    class PropertyOf(Protocol[T]):
        """A property whose value has the type ``T``."""

        def __get__(self, cell: Any, kind: Any = None, /) -> T: ...

    def declared(get: Callable[[Any], T]) -> T | PropertyOf[T]:
        """Make a property that a class attribute may override, which pyright else refuses."""
else:
    from typing import TypeVar

    CarryT = TypeVar("CarryT")
    declared = property

Params = Any
"""A pytree of arrays; for a single cell a dict such as ``{"kernel": ..., "bias": ...}``."""

ParamTree = Mapping[str, Any] | Sequence[Any]
"""The type of parameters at their root. No array has it, so swapped arguments are a type error."""

Carry = Any
"""A pytree of arrays; for a single cell a NamedTuple such as ``LSTMCarry(hidden, cell)``."""

Inputs = jax.Array | np.ndarray | OneHot | Beside | tuple[Any, Any]
"""An array with features on its last axis, one-hot vectors given as ids, or a pair of either and an
array of raw features."""

PickLast = Callable[[jax.Array, bool], jax.Array]
"""``(ys, against) -> y``: the output of each row's step that ran last. ``against`` says whether the
steps ran against the direction of the sequence."""


class Role(enum.Enum):
    """What a parameter does in a step."""

    INPUT = "multiplied with the inputs, of all steps before the loop"
    LOOP = "multiplied with a state, in the loop"
    OUT = "multiplied with what the loop emits, or a vector added to it, after the loop"
    BIAS = "added to the product of the kernel of its name"
    UNIT = "read by the update as it is: gains, peepholes, decays"


class Coupling(enum.IntEnum):
    """How an `update` couples the new state to the old one. Each value implies the one before it.

    A unit is one index into all leaves of the carry, which then have the same shape. The promise
    holds for all parameters, inputs and states. It is not verified when a cell runs, and a false
    promise gives wrong numbers. `rnnjax.testing.check_cell` tests it.
    """

    ANY = 0
    """The cell makes no promise."""
    ELEMENTWISE = 1
    """The new state of a unit depends only on the old state of that unit. The learners of
    `rnnjax.online` also assume that entry ``k`` of a parameter is for unit ``k % hidden_size``."""
    AFFINE = 2
    """That function is affine, ``s' = A(x) s + b(x)``: `rnnjax.Parallel` runs the cell."""
    CONTRACTING = 3
    """No ``A(x)`` has a norm above 1: `rnnjax.Auto` may choose `rnnjax.Parallel`."""


class Param(NamedTuple):
    """A parameter as a cell declares it.

    Attributes:
        shape: the shape of the array.
        init: the initialiser, by name or as ``(key, shape, dtype) -> array``.
        role: what the parameter does in a step.
    """

    shape: tuple[int, ...]
    init: str | Initializer = "zeros"
    role: Role = Role.UNIT


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
    - ``coupling``: how ``update`` couples the new state to the old one. Default `Coupling.ANY`. A
      class that writes its own ``update`` declares its own coupling and inherits none.
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
        """Refuse methods of a subclass that the engine would not call."""
        super().__init_subclass__()
        # A promise is about one update, not about another that replaces it.
        if _origin(cls, "update") < _origin(cls, "coupling"):
            # A property, which type checkers take for a method.
            cls.coupling = Cell.coupling  # type: ignore[method-assign]
        written = [name for name in _DERIVED if name in vars(cls)]
        if cls.carry is not None and written:
            raise InvalidInputError(
                f"{cls.__name__} writes {', '.join(written)}, which follow from its update and "
                f"parameters, so that no way of running it would see them; change those, or "
                "write a cell on rnnjax.Cell without a carry declared"
            )
        if cls.carry is not None and not (
            isinstance(cls.carry, type) and hasattr(cls.carry, "_make")
        ):
            raise InvalidInputError(
                f"carry of {cls.__name__} must be the class of a NamedTuple, as "
                f"rnnjax.SimpleRNNCarry, but is {brief(cls.carry)}; write one with a field for "
                "each array of the state"
            )
        gates: Any = cls.gates  # perhaps a property
        if not (isinstance(gates, tuple | list) or hasattr(gates, "__get__")):
            raise InvalidInputError(
                f"gates of {cls.__name__} must be a tuple of names, but is {brief(gates)}; "
                "write gates = ('i', 'f', 'o'), and of one gate ('f',) with the comma"
            )
        if cls.readout is not Cell.readout and cls.output is not None:
            raise InvalidInputError(
                f"{cls.__name__} writes a readout, but its output is {cls.output!r}; set output = "
                "None, and let update return the new carry and what readout reads"
            )
        if cls.memory is not Cell.memory and (cls.update is not Cell.update or cls.output):
            raise InvalidInputError(
                f"{cls.__name__} writes a memory, from which its update follows; write no update, "
                "set output = None, and let recall make the outputs"
            )
        for name in ("raw", "loop"):
            if not hasattr(getattr(cls, name), "__get__"):  # no property
                check_sizes(cls.__name__, name, getattr(cls, name))
        check_takes_dtype(cls, cls.initial_carry)
        fields: dict[str, Any] = {}  # those of other bases too, which may be no cells
        for base in reversed(cls.__mro__):
            fields |= {**vars(base), **vars(base).get("__dataclass_fields__", {})}
        for name, value in fields.items():
            if isinstance(value, dataclasses.Field) and not value.compare:
                raise InvalidInputError(
                    f"{name} of {cls.__name__} must be compared, because equal cells share what is "
                    "compiled, but has compare=False; leave that out, and give a value that can be "
                    "hashed"
                )

    def __new__(cls, *args: Any, **named: Any) -> Self:
        """Refuse positional arguments after the hidden size."""
        if cls is Cell:
            raise InvalidInputError("Cell is what cells are made of; take one, as LSTMCell(50)")
        if cls.carry is not None and len(args) > 1:
            raise InvalidInputError(
                f"{cls.__name__} takes its hidden_size by position and the rest by name, but "
                f"{len(args)} arguments came without one; the size of the inputs is given to init"
            )
        unknown = [name for name in named if name not in getattr(cls, "__dataclass_fields__", ())]
        # A signature takes longer to find than a cell to build.
        takes = inspect.signature(cls.__init__).parameters if unknown else {}
        unknown = [name for name in unknown if name not in takes]
        if unknown and all(one.kind is not one.VAR_KEYWORD for one in takes.values()):
            raise InvalidInputError(
                f"{cls.__name__} takes {', '.join([*takes][1:])}, but got {unknown[0]}; use one of "
                "these names"
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_fields(self)

    if not TYPE_CHECKING:  # which say themselves that a cell is not callable

        def __call__(self, *_: Any, **__: Any) -> Any:
            """Raise an error that says how to run a cell."""
            raise InvalidInputError(
                f"{brief(self)} must be run by a step or over a sequence, but was called; write "
                "carry, y = cell.step(params, carry, x), or rnnjax.unroll(cell, params, xs)"
            )

        @property
        def num_feature_axes(self) -> int:
            """Raise an error for Flax's own ``RNN``, which reads this first of a cell."""
            raise AttributeError(
                f"{brief(self)} must be run by rnnjax.linen.RNN or rnnjax.nnx.RNN, but was given "
                "to Flax's own; import RNN from there"
            )

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

    @usual_promotion()
    def init(self, key: jax.Array, input_size: int) -> Params:
        """Initialise the parameters for inputs with ``input_size`` features.

        Returns:
            a dict of the arrays that `parameters` declares, in ``param_dtype``.
        """
        check_init(key, input_size)
        check_names(self, input_size)
        params = self.parameters(input_size)
        if "kernel" not in params:
            raise InvalidInputError(
                f"parameters of {brief(self)} must have a kernel, which the inputs are multiplied "
                f"with, but are {', '.join(params) or 'none'}; add yours to super().parameters"
            )
        first = "kernel", "recurrent_kernel", "bias"
        keys = dict(zip(first, jax.random.split(key, 3), strict=True))
        keys |= {n: jax.random.fold_in(key, i) for i, n in enumerate(params) if n not in first}
        # In float32 at least, as orthogonal initialisation needs.
        wide = at_least_float32(self.param_dtype)
        return {
            name: drawn(self, name, param, keys[name], wide).astype(self.param_dtype)
            for name, param in params.items()
        }

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
        x, raw = self.split_raw(x)
        product = self.multiplied(params, x, self.dtype)
        carry, emitted = self.apply_update(
            params, self.update_input(params, product, carry), carry, raw
        )
        return carry, self.read(params, emitted, x)

    def split_raw(self, xs: Any) -> tuple[Any, dict[str, jax.Array]]:
        """Split inputs ``(..., input_size)`` into what the kernel multiplies, and raw features."""
        check_pair(self, xs)
        if not self.raw:
            return xs, {}
        if isinstance(xs, Beside):
            xs, rest = xs.xs, xs.raw
        else:
            xs, rest = xs[..., : -self.raw_size], xs[..., -self.raw_size :]
        rest = rest.astype(at_least_float32(rest.dtype))  # time gaps are no operands of products
        ends = list(itertools.accumulate(self.raw.values()))
        return xs, dict(zip(self.raw, jnp.split(rest, ends[:-1], axis=-1), strict=True))

    def multiplied(self, params: Params, xs: Any, dtype: DTypeLike | None) -> jax.Array:
        """``xs @ kernel``, for inputs without raw features ``(..., features)``."""
        if not xs.shape[-1]:  # all of them are raw
            return xs
        return product(xs, params["kernel"], dtype)

    def update_input(
        self,
        params: Params,
        projected: jax.Array,
        carry: CarryT,
        times: Callable[[jax.Array], jax.Array] | None = None,
        drop: Callable[[jax.Array], jax.Array] | None = None,
    ) -> Any:
        """Make the argument ``x`` of `update`: the first half of a step, however it is run.

        Args:
            params: the parameters.
            projected: the inputs' product, without its bias.
            carry: the state before the step.
            times: multiplies a state by ``recurrent_kernel``; by default as the cell declares it.
            drop: what the state goes through before that, as recurrent dropout.
        """
        projected = self.biased(projected, params, "bias")
        if self.recurrent is None:
            return projected
        state = getattr(carry, self.recurrent)
        state = state if drop is None else drop(state)
        if times is None:
            recurrent = product(state, params["recurrent_kernel"], self.dtype)
        else:
            recurrent = times(state)
        recurrent = self.biased(recurrent, params, "recurrent_bias")
        if not self.additive:
            return projected, recurrent
        columns = projected.shape[-1], recurrent.shape[-1]
        if columns[0] != columns[1]:
            raise InvalidInputError(
                f"kernel and recurrent_kernel of {brief(self)} must have the same number of "
                f"columns, because their products are added, but have {columns[0]} and "
                f"{columns[1]}; write additive = False, so that update is given both as a pair"
            )
        return projected + recurrent

    def biased(self, x: jax.Array, params: Params, name: str) -> jax.Array:
        """Add the bias of that name to a product, if the cell declares one."""
        return add_bias(x, params, name) if is_bias(self, name) else x

    @property
    def kernels_outside(self) -> tuple[str, ...]:
        """The names of the kernels that the engine multiplies before the update."""
        return ("kernel",) if self.recurrent is None else ("kernel", "recurrent_kernel")

    def loop_params(self, params: Params) -> Params:
        """Return the parameters that the loop reads: all except those of `readout`."""
        roles = roles_of(self)
        return {name: leaf for name, leaf in params.items() if roles.get(name) is not Role.OUT}

    def update_params(self, params: Params) -> Params:
        """Return the parameters that `update` may read: all except `kernels_outside`."""
        outside = self.kernels_outside
        return {name: p for name, p in self.loop_params(params).items() if name not in outside}

    def apply_update(
        self,
        params: Params,
        x: Any,
        carry: CarryT,
        raw: Mapping[str, jax.Array],
        dtype: DTypeLike | None = None,
    ) -> tuple[CarryT, jax.Array]:
        """Call `update` and cast its result to the types of the carry: the other half of a step.

        Errors name the cell.

        The state of a loop must not change its type, whatever the types of inputs and parameters.
        ``dtype`` is the type of the operands of products in `update`, if not the cell's.
        """
        dtype, roles = self.dtype if dtype is None else dtype, roles_of(self)
        read = {
            name: Kernel(leaf, dtype) if roles.get(name) is Role.LOOP else leaf
            for name, leaf in self.update_params(params).items()
        }
        advice = (
            f"params has {sorted(read)}; check gates, additive, output, raw, and what it returns"
        )
        with naming(self, "update", advice, x=x, **{"the carry": carry}, **raw):
            new = self.update(read, x, carry, **raw)
            own = new if isinstance(new, type(carry)) else carry  # what is none is refused below
            new, y = new if self.output is None else (new, getattr(own, self.output))
            check_updated(carry, new)
            new = jax.tree.map(lambda leaf, old: match_vma(leaf.astype(old.dtype), old), new, carry)
            types = number_types(new) if self.dtype is None else [self.dtype]
            return new, rounded(y, jnp.result_type(*types)) if types else y

    @property
    def has_memory(self) -> bool:
        """Whether the cell declares a `memory`."""
        return type(self).memory is not Cell.memory

    @property
    def has_readout(self) -> bool:
        """Whether the cell declares a `readout`."""
        return type(self).readout is not Cell.readout

    def read(
        self, params: Params, emitted: jax.Array, xs: Inputs, dtype: DTypeLike | None = None
    ) -> jax.Array:
        """Call `readout` for one step or for all, and cast its result to the type of the outputs.

        ``dtype`` is the type of the operands of its products, if not the cell's.
        """
        if not self.has_readout:
            return emitted
        dtype, roles = self.dtype if dtype is None else dtype, roles_of(self)
        given = {n: params[n] for n, role in roles.items() if role is Role.OUT}
        read = {n: p if jnp.ndim(p) == 1 else Kernel(p, dtype) for n, p in given.items()}
        advice = f"params has those of Role.OUT alone, {sorted(read)}: matrices for @, and vectors"
        with naming(self, "readout", advice, emitted=emitted, xs=xs):
            return self.readout(read, emitted, xs).astype(emitted.dtype)

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


_DERIVED = (
    "step", "split_raw", "multiplied", "update_input", "biased", "loop_params", "update_params",
    "apply_update", "read",
)  # fmt: skip


def roles_of(cell: Cell) -> Mapping[str, Role]:
    """Return the roles of a cell's parameters, by name.

    Raises:
        InvalidInputError: a parameter that the engine adds or multiplies is missing, or one is
            declared that the engine would not use.
    """
    roles = {name: param.role for name, param in cell.parameters(1 + cell.raw_size).items()}
    for name, role in roles.items():
        if not isinstance(role, Role):
            raise InvalidInputError(
                f"{name} of {brief(cell)} must have a rnnjax.Role as its role, but has {role!r}; "
                f"give one of {', '.join(map(str, Role))}"
            )
    outside = cell.kernels_outside
    biases = ("bias", "recurrent_bias")[: len(outside)]
    missing = [name for name in outside if name not in roles]
    lost = [n for n, role in roles.items() if role is Role.BIAS and n not in biases]
    if missing or lost:
        came = f"{missing[0]} is missing" if missing else f"{lost[0]} is one too"
        raise InvalidInputError(
            f"parameters of {brief(cell)} must have {' and '.join(outside)}, and of the role BIAS "
            f"only {' and '.join(biases)}, but {came}; what the update adds has the role UNIT"
        )
    after = [name for name, role in roles.items() if role is Role.OUT]
    if after and not cell.has_readout:
        raise InvalidInputError(
            f"{after[0]} of {brief(cell)} has the role OUT, but the cell writes no readout that "
            "would read it; write one, or let the update read it as UNIT or LOOP"
        )
    if cell.recurrent is not None:
        cell._leaf_shape("recurrent", cell.recurrent)
    if not isinstance(cell.coupling, Coupling):
        raise InvalidInputError(
            f"coupling of {brief(cell)} must be a rnnjax.Coupling, as Coupling.ELEMENTWISE, but is "
            f"{cell.coupling!r}"
        )
    return roles


def _origin(cls: type, name: str) -> int:
    """Return the index in the ``__mro__`` of the class that defines a name; 0 is ``cls``."""
    return next(i for i, base in enumerate(cls.__mro__) if name in vars(base))


def without_initializers(cell: Any) -> Any:
    """Return the cell with the default initialisers, which only `init` reads.

    A cell is static: equal cells share a compiled program. A new initialiser object equals no
    earlier one and would force another compilation.
    """
    if type(cell) is tuple:  # those of a combination
        entries = tuple(map(without_initializers, cell))
        return entries if any(a is not b for a, b in zip(entries, cell, strict=True)) else cell
    changes: dict[str, Any] = {}
    fields = dataclasses.fields(cell) if dataclasses.is_dataclass(cell) else ()
    for field in fields if isinstance(cell, Cell) else ():  # other values are the user's
        value = runs = getattr(cell, field.name)
        if field.name.endswith("_init") and field.default is not dataclasses.MISSING:
            runs = field.default
        elif isinstance(value, Cell) or type(value) is tuple:
            runs = without_initializers(value)
        if runs is not value:
            changes[field.name] = runs
    if not changes:
        return cell
    # Without its constructor, which would check everything again.
    new = copy.copy(cell)
    for name, value in changes.items():
        object.__setattr__(new, name, value)
    return new


def is_bias(cell: Cell, name: str) -> bool:
    """Whether the engine adds the parameter of that name to a product before the update."""
    return roles_of(cell).get(name) is Role.BIAS
