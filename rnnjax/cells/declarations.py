"""The words of the contract of a cell, and the checks of what a cell declares."""

import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import register_namedtuple_serialization

from rnnjax.cells.activations import Initializer, get_initializer
from rnnjax.cells.onehot import Beside, OneHot
from rnnjax.cells.products import at_least_float32
from rnnjax.cells.validation import check_init, check_names, check_sizes, check_takes_dtype
from rnnjax.checks import brief, check_call
from rnnjax.errors import InvalidInputError, RnnjaxError

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


KindT = TypeVar("KindT", bound=type)


def exportable(kind: KindT) -> KindT:
    """Let `jax.export` write a NamedTuple of ours as ``rnnjax.`` and its name."""
    register_namedtuple_serialization(kind, serialized_name=f"rnnjax.{kind.__name__}")
    return kind


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


# ---- checks of a class, and of a call of it


def check_class(cls: Any, base: Any) -> None:
    """Raise unless the declarations of a subclass of ``base``, which is `Cell`, fit each other."""
    if cls.carry is not None and "step" in vars(cls):
        raise InvalidInputError(
            f"{cls.__name__} writes step, which follows from its update and parameters, so that no "
            "way of running it would see it; change those, or write a cell on rnnjax.Cell without "
            "a carry declared"
        )
    if cls.carry is not None and not (isinstance(cls.carry, type) and hasattr(cls.carry, "_make")):
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
    if cls.readout is not base.readout and cls.output is not None:
        raise InvalidInputError(
            f"{cls.__name__} writes a readout, but its output is {brief(cls.output)}; set output = "
            "None, and let update return the new carry and what readout reads"
        )
    if cls.memory is not base.memory and (cls.update is not base.update or cls.output):
        raise InvalidInputError(
            f"{cls.__name__} writes a memory, from which its update follows; write no update, "
            "set output = None, and let recall make the outputs"
        )
    for name in ("raw", "loop"):
        if not hasattr(getattr(cls, name), "__get__"):  # no property
            check_sizes(cls.__name__, name, getattr(cls, name))
    check_takes_dtype(cls, cls.initial_carry)
    fields: dict[str, Any] = {}  # those of other bases too, which may be no cells
    for kind in reversed(cls.__mro__):
        fields |= {**vars(kind), **vars(kind).get("__dataclass_fields__", {})}
    for name, value in fields.items():
        if isinstance(value, dataclasses.Field) and not value.compare:
            raise InvalidInputError(
                f"{name} of {cls.__name__} must be compared, because equal cells share what is "
                "compiled, but has compare=False; leave that out, and give a value that can be "
                "hashed"
            )


def check_called(cls: Any, base: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Raise unless a cell is made with its hidden size alone by position, and names that it has."""
    if cls is base:
        raise InvalidInputError("Cell is what cells are made of; take one, as LSTMCell(50)")
    if cls.carry is not None and len(args) > 1:
        raise InvalidInputError(
            f"{cls.__name__} takes its hidden_size by position and the rest by name, but "
            f"{len(args)} arguments came without one; the size of the inputs is given to init"
        )
    # A signature takes longer to find than a cell to build.
    if any(name not in getattr(cls, "__dataclass_fields__", ()) for name in named):
        check_call(cls.__name__, functools.partial(cls.__init__, None), args, named)


# ---- parameters


def initialized(cell: Any, key: jax.Array, input_size: int) -> Params:
    """Return the initial parameters of a cell, each drawn with a key of its own."""
    check_init(key, input_size)
    check_names(cell, input_size)
    params = cell.parameters(input_size)
    if "kernel" not in params:
        raise InvalidInputError(
            f"parameters of {brief(cell)} must have a kernel, which the inputs are multiplied "
            f"with, but are {', '.join(params) or 'none'}; add yours to super().parameters"
        )
    first = "kernel", "recurrent_kernel", "bias"
    keys = dict(zip(first, jax.random.split(key, 3), strict=True))
    keys |= {n: jax.random.fold_in(key, i) for i, n in enumerate(params) if n not in first}
    # In float32 at least, as orthogonal initialisation needs.
    wide = at_least_float32(cell.param_dtype)
    return {
        name: _drawn(cell, name, param, keys[name], wide).astype(cell.param_dtype)
        for name, param in params.items()
    }


def _drawn(cell: Any, name: str, param: Any, key: jax.Array, dtype: Any) -> jax.Array:
    """Return an initial array of the parameter ``param``, a `rnnjax.Param` of ``cell``.

    Raises:
        InvalidInputError: the initialiser does not support the shape (most that scale by the sizes
            of two axes cannot make a bias), or ``param`` is not a `rnnjax.Param`.
    """
    if not isinstance(param, Param) or not isinstance(param.shape, tuple):
        came = brief(param) if hasattr(param, "dtype") else repr(param)
        raise InvalidInputError(
            f"{name} of {brief(cell)} must be a rnnjax.Param with a tuple for its shape, but is "
            f"{came}; write Param((size,), 'ones')"
        )
    if 0 in param.shape:  # as a kernel where all inputs are raw: initialisers divide by sizes
        return jnp.zeros(param.shape, dtype)
    try:
        array = get_initializer(param.init)(key, param.shape, dtype)
        reason = f"it returned {brief(array)}"
        if hasattr(array, "astype") and np.shape(array) == param.shape:
            return array
    except RnnjaxError:
        raise
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).split(". ")[0][:120]
    # All biases of a cell share one initialiser.
    argument = "bias_init" if name.endswith("bias") else f"{name}_init"
    raise InvalidInputError(
        f"{argument} of {brief(cell)} must be an initializer (key, shape, dtype) -> array that "
        f"draws {name} {param.shape}, but {reason}; 'zeros', 'ones' and 'unit_uniform' draw any "
        "shape"
    )


def roles_of(cell: Any) -> Mapping[str, Role]:
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
    outside = kernels_outside(cell)
    biases = ("bias", "recurrent_bias")[: len(outside)]
    missing = [name for name in outside if name not in roles]
    lost = [n for n, role in roles.items() if role is Role.BIAS and n not in biases]
    if missing or lost:
        came = f"{missing[0]} is missing" if missing else f"{lost[0]} is one too"
        raise InvalidInputError(
            f"parameters of {brief(cell)} must have {' and '.join(outside)}, and of the role BIAS "
            f"only {' and '.join(biases)}, but {came}; what the update adds has the role UNIT, and "
            "use_recurrent_bias needs a recurrent product"
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


def kernels_outside(cell: Any) -> tuple[str, ...]:
    """The names of the kernels that the engine multiplies before the update."""
    return ("kernel",) if cell.recurrent is None else ("kernel", "recurrent_kernel")
