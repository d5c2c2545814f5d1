"""Checks of arguments that every room uses: sizes, flags, types, keys, arrays.

All checks use shapes and types alone. They run while a program is traced and cost nothing when it
runs. An error says what was expected, what came and what to do.
"""

import contextlib
import functools
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim
from jax.typing import DTypeLike

from rnnjax.errors import InteropError, InvalidInputError, RnnjaxError, called

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
_TABLE = "the words of other libraries stand in docs/from"
_PAGES = ["keras", "pytorch", "flax", "haiku", "equinox", "sktime", "darts", "purejaxrl"]
# What is called, given by name, or stands alone: `hk.LSTM(50)`, `batch_first=True`, `.weights`.
_WORD = re.compile(r"(?<![=\w])([\w.]*\.)?([A-Za-z_]\w*)(?=\(|=(?!=)|`)")


@functools.cache
def _rows() -> dict[str, list[tuple[str, str, set[str]]]]:
    """Read the tables of ``docs/from``, which a wheel has inside of the package.

    Of each word on the left: what stands on the right, the page, and where it is said: in what the
    last row in bold names, or after a dot.
    """
    found: dict[str, list[tuple[str, str, set[str]]]] = {}
    ours = Path(__file__).parent
    folder = ours / "from" if (ours / "from").exists() else ours.parent / "docs" / "from"
    for path in [folder / f"{page}.md" for page in _PAGES]:
        text, owners = path.read_text("utf-8") if path.exists() else "", set[str]()
        for theirs, here in re.findall(r"^\| (.+?) \| (.+) \|$", text, re.MULTILINE):
            bold, words = theirs.startswith("**"), _WORD.findall(theirs)
            owners = {word for _, word in words} if bold else owners
            here = re.sub(r"`|\[(.+?)\]\(.+?\)", r"\1", here)
            for dot, word in words:
                row = here, path.stem, owners | ({"."} if dot or bold else set())
                found.setdefault(word, []).append(row)
    return found


def answer(word: str, place: str = ".") -> str:
    """Return what a word of another library is here, as the pages of ``docs/from`` say.

    A word may be several things. Of its rows those count that belong to ``place``, a function or a
    class that got it as a keyword, or a dot where it was a name; and of each page the first. What
    follows a dot is no keyword.
    """
    rows = [
        (place in where, here, page)
        for here, page, where in _rows().get(word, [])
        if place in where or "." not in where
    ]
    told = {page: here for there, here, page in reversed(rows) if there == max(rows)[0]}
    said = [  # up to the end of a clause
        f"{re.findall(r'.{1,180}(?=; |$)|.+', told[page])[0]} (docs/from/{page}.md)"
        for page in _PAGES
        if page in told
    ]
    return f"in rnnjax: {', or '.join(said[:3])}" if said else _TABLE


def refuse_name(module: str, name: str) -> Any:
    """Be the ``__getattr__`` of a module: say what a word of another library is here."""
    said = "" if name.startswith("_") else f"; {answer(name)}"
    raise AttributeError(f"module {module!r} has no attribute {name!r}{said}")


def check_call(who: str, function: Callable[..., Any], args: Any, named: Mapping[str, Any]) -> None:
    """Raise if a function does not take these arguments, and say what an unknown name is here."""
    signature = inspect.signature(function)
    takes = signature.parameters
    known = ", ".join(name for name in takes if name != "self")
    unknown = [name for name in named if name not in takes]
    if unknown and all(one.kind is not one.VAR_KEYWORD for one in takes.values()):
        said = answer(unknown[0], who.rpartition(".")[2])
        said = f"use one of {known}; {said}" if said == _TABLE else said
        raise InvalidInputError(f"{who} takes no {unknown[0]}; {said}")
    try:
        signature.bind(*args, **named)
    except TypeError as error:
        raise InvalidInputError(f"{who}({known}): {error}; {_TABLE}") from None


class Advised:
    """A class that answers words of other libraries where it is made."""

    def __new__(cls, *args: Any, **named: Any) -> Self:
        """Check the arguments; a copy is made without any."""
        if named:
            check_call(cls.__name__, functools.partial(cls.__init__, None), args, named)
        return super().__new__(cls)


def advised(function: FunctionT) -> FunctionT:
    """Let a function answer words of other libraries, which it does not take."""

    @functools.wraps(function)
    def called(*args: Any, **named: Any) -> Any:
        try:
            return function(*args, **named)
        except TypeError:  # or one that was raised inside
            check_call(function.__qualname__, function, args, named)
            raise

    return called  # type: ignore[return-value]  # wraps keeps the signature, untold to mypy


def public(module: Mapping[str, Any]) -> list[str]:
    """Return the public names of a package, as ``__all__``: what it has that is no module."""
    names = (name for name, x in module.items() if not isinstance(x, types.ModuleType))
    return sorted(name for name in names if not name.startswith("_"))


def package(name: str, what: str, extra: str, error: type[RnnjaxError] = InteropError) -> Any:
    """Return the package that ``what`` needs, which is in an extra of ours."""
    try:
        return __import__(name)
    except ImportError as missing:
        ours = packages_distributions().get("rnnjax", ["rnnjax"])[0]  # as an index may name it
        raise error(
            f"{what} need the package {name}, which is missing; pip install '{ours}[{extra}]'"
        ) from missing


def brief(value: Any) -> str:
    """Describe a cell, a carry or any other value in a few words, for an error message.

    >>> import rnnjax
    >>> brief(rnnjax.LSTMCell(5)), brief((1, 2)), brief(jnp.ones((3, 2)))
    ('LSTMCell(5)', 'a tuple of 2', 'float32 (3, 2)')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool | int | float | complex | str):
        return repr(value) if len(repr(value)) < 60 else f"a {type(value).__name__}"
    if hasattr(value, "hidden_size"):
        return f"{type(value).__name__}({value.hidden_size})"
    if hasattr(value, "_fields"):
        return f"{type(value).__name__}({', '.join(value._fields)})"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(str, sorted(value, key=str)))[:80]}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def described(tree: Any) -> Any:
    """Return the type and the shape of each leaf of a tree, for a comparison or an error message.

    >>> described({"bias": jnp.ones(3)})
    {'bias': 'float32[3]'}
    """
    return jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{list(np.shape(leaf))}", tree)


def check_alike(who: str, given: Any, came: Any, advice: str) -> None:
    """Raise unless ``who``, a function, returned a carry of the shapes and types that it was given.

    A loop hands it on, whose state must not change its type.
    """
    wanted, found = described(given), described(came)
    if jax.tree.flatten(found) != jax.tree.flatten(wanted):
        raise InvalidInputError(
            f"{who} must return a carry like the one that it is given, {wanted}, but returned "
            f"{found}; {advice}"
        )


def is_integer(value: Any) -> bool:
    """Whether a value is an integer, which True and 2.0 are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


@contextlib.contextmanager
def usual_promotion() -> Iterator[None]:
    """Allow NumPy's promotion of shapes and types, even if the caller's program forbids it.

    A program may set ``jax_numpy_rank_promotion="raise"`` or ``jax_numpy_dtype_promotion="strict"``
    for its own code. The library adds a bias to rows and mixes bfloat16 with float32 on purpose.
    """
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def check_flag(name: str, value: Any) -> None:
    """Raise unless a value is True or False; a traced value is neither."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidInputError(
            f"{name} must be True or False, known before the program runs, but is {brief(value)}"
        )


def check_instance(name: str, value: Any, kind: type | types.UnionType, expected: str) -> None:
    """Raise unless a value is an instance of a class, or of one of several."""
    if not isinstance(value, kind):
        raise InvalidInputError(f"{name} must be {expected}, but is {brief(value)}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise unless a value is one of a few words."""
    if not isinstance(value, str) or value not in choices:
        known = " or ".join([", ".join(f'"{word}"' for word in choices[:-1]), f'"{choices[-1]}"'])
        raise InvalidInputError(f"{name} must be {known}, but is {brief(value)}")


def check_size(name: str, value: Any, least: int = 1) -> None:
    """Raise unless a size is an integer of at least ``least``, 1 or 0."""
    if not is_integer(value) or value < least:
        wanted = "a positive integer" if least else "an integer from 0 up"
        raise InvalidInputError(f"{name} must be {wanted}, but is {brief(value)}")


def is_floating(dtype: Any) -> bool:
    """Whether a type is a real floating-point type that a cell can compute in.

    JAX does not promote types of 8 bits or less, so a bias could not be added to their products,
    and has no long doubles.

    >>> is_floating(jnp.bfloat16), is_floating(jnp.float8_e4m3fn), is_floating(int)
    (True, False, False)
    """
    return jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize in (2, 4, 8)


def floating_dtype(name: str, value: DTypeLike) -> Any:
    """Return the scalar type of that name in one spelling, so that equal cells hash alike.

    It is not a ``numpy.dtype``: ``numpy.dtype("float64")`` equals None, which is another cell.

    Raises:
        InvalidInputError: it is not a real floating-point type of 16 bits or more that JAX has.
    """
    dtype = None
    with contextlib.suppress(TypeError):
        dtype = None if value is None else jnp.dtype(value)  # NumPy takes None for float64
    if dtype is None or not is_floating(dtype):
        raise InvalidInputError(
            f"{name} must be a floating-point type of 16 bits or more that JAX has, such as "
            f"jnp.float32 or jnp.bfloat16, but is {brief(value) if dtype is None else dtype}"
        )
    return dtype.type


def as_array(name: str, value: Any) -> jax.Array:
    """Return ``value`` as a JAX array.

    Raises:
        InvalidInputError: it cannot be converted.
    """
    with contextlib.suppress(TypeError, ValueError):
        if not isinstance(value, Mapping):
            return jnp.asarray(value)
    advice = "check the order of the arguments, and give parts of it by themselves"  # as Padded.xs
    if isinstance(value, list | np.ndarray):
        advice = "rows of several lengths are padded to one by rnnjax.pad"
    raise InvalidInputError(f"{name} must be an array, but is {brief(value)}; {advice}")


def check_floats(name: str, dtype: Any, advice: str) -> None:
    """Raise unless an array has a type of `is_floating`."""
    if not is_floating(dtype):
        raise InvalidInputError(
            f"{name} must be floating-point of 16 bits or more, but is {dtype}; {advice}"
        )


def check_known(name: str, values: Any, advice: str) -> None:
    """Raise if values are traced, and so known only when a program runs."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values)):
        raise InvalidInputError(
            f"{name} must be known, but are traced inside of jit or another transformation; "
            f"{advice}"
        )


def check_lengths(lengths: Any, num_steps: Any, of: str, advice: str) -> None:
    """Raise unless known lengths lie between 0 and the number of steps, if that is known."""
    known = np.asarray(lengths)  # inside of jit, JAX would trace even what is known
    if not known.size:
        return
    least, most = int(known.min()), int(known.max())
    if least < 0 or (not is_symbolic_dim(num_steps) and most > num_steps):
        raise InvalidInputError(
            f"{called('lengths')} must lie between 0 and the {num_steps} steps of {of}, but go "
            f"from {least} to {most}; {advice}"
        )


def check_key(key: Any) -> None:
    """Raise unless ``key`` is a single random key."""
    with contextlib.suppress(TypeError, ValueError, AttributeError):
        bits, kind = jax.random.key_data(key), jax.random.key_impl(key)
        if jax.random.wrap_key_data(bits, impl=kind).ndim == 0:  # it also checks how many bits
            return
    raise InvalidInputError(
        f"key must be a JAX random key such as jax.random.key(0), but is {brief(key)}"
    )


def check_batch_shape(batch_shape: Any) -> None:
    """Raise unless ``batch_shape`` is a tuple of sizes."""
    if not isinstance(batch_shape, tuple | list):
        shape = f"({batch_shape},)" if is_integer(batch_shape) else "(8,) for eight rows"
        raise InvalidInputError(
            f"batch_shape must be a tuple, but is {brief(batch_shape)}; write {shape}"
        )
    for size in batch_shape:
        if not is_symbolic_dim(size) and not (is_integer(size) and size >= 0):
            raise InvalidInputError(
                f"batch_shape must be a tuple of integers from 0 up, but holds {brief(size)}"
            )


def state_type(*trees: Any) -> Any:
    """Return the type of a recurrence's state: the widest of what makes it, float32 at least.

    In bfloat16 a state loses changes of less than 1/256, and a decay of 0.999 is 1. A type that is
    wider, or complex, stays. Integers among the leaves do not count.

    >>> state_type(jnp.ones(2, jnp.bfloat16), [1j * jnp.ones(2), jnp.arange(3)])
    dtype('complex64')
    """
    return jnp.result_type(jnp.float32, *number_types(trees))


def number_types(tree: Any) -> list[Any]:
    """Return the types of the leaves that are real or complex numbers, not counters or flags."""
    types = [leaf.dtype for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return [t for t in types if is_floating(t) or jnp.issubdtype(t, jnp.complexfloating)]


def rounded(y: jax.Array, dtype: Any) -> jax.Array:
    """Round ``y`` to the precision of a type; real numbers stay real, and complex ones complex."""
    real = jnp.finfo(dtype).dtype
    return y.astype(jnp.promote_types(real, jnp.complex64) if jnp.iscomplexobj(y) else real)
