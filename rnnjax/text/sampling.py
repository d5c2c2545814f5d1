"""Sampling text from a model: one step per character, with a carried state."""

import dataclasses
import functools
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from rnnjax.checks import check_alike, check_instance, check_key, check_size, described
from rnnjax.errors import InvalidInputError, NonFiniteError
from rnnjax.text.vocabulary import as_integers

StepFunction = Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]]
"""``(params, carry, tokens (*batch,)) -> (carry, logits (*batch, vocabulary))``."""

NONE = -1
"""The id of no character: before the start of a text, or if nothing could be sampled."""


class State(NamedTuple):
    """The state of the sampling loop.

    Attributes:
        carry: the state of the model after all characters except the last.
        tokens: ``(*batch,)``, the last characters.
        keys: ``(*batch,)``; character ``n`` of a row is sampled with ``fold_in(its key, n)``.
        position: the number of characters sampled so far.
        recent: ``(window, *batch)``, the last characters, for the penalty.
    """

    carry: Any
    tokens: Any
    keys: jax.Array
    position: Any
    recent: Any


# XLA may flush smaller numbers to 0.
_TINY = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Sampling:
    r"""How to sample the next character from the logits :math:`x` of a model.

    In this order, with :math:`R` the last ``penalty_window`` characters:

    .. math::
        x_i &\leftarrow x_i / \rho \text{ if } x_i > 0 \text{, else } x_i \rho
            \qquad \text{for } i \in R \\
        x_i &\leftarrow x_i / T \\
        x_i &\leftarrow -\infty \text{ unless } x_i \text{ is one of the } k \text{ largest} \\
        x_i &\leftarrow -\infty \text{ unless the probabilities of all larger ones sum to less
            than } p \\
        i &\sim \text{softmax}(x)

    A filter retains all characters that tie with the last one it retains. Temperature 0 takes the
    most probable character after the penalty, on a tie the lowest id; the filters have no effect.

    A new temperature does not compile again: only the set of options in use is static. Options that
    are not in use cost nothing.

    Args:
        temperature: :math:`T`; 0 takes the most probable character, 1 samples as predicted.
        top_k: :math:`k`, the number of characters to sample from (Fan et al., 2018); 0 for all.
        top_p: :math:`p`, the share of the probability to sample from (nucleus sampling: Holtzman et
            al., 2020), after ``top_k``; 1 for all.
        repetition_penalty: :math:`\rho`, above 1 against repetition, below 1 for it (Keskar et al.,
            2019, who divide every logit; dividing a negative one would reward it). It depends on
            the zero point of the model's logits.
        penalty_window: how many of the last characters are penalised. Keskar et al. penalise the
            whole text, for words. A page contains all letters, and a penalty on all of them would
            only flatten the prediction.

    Raises:
        InvalidInputError: a number is out of its range.

    >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    >>> jnp.isfinite(Sampling(top_k=2).filter(logits)).tolist()
    [True, True, False, False]
    >>> jnp.isfinite(Sampling(top_p=0.9).filter(logits)).tolist()
    [True, True, True, False]
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    penalty_window: int = 64

    def __post_init__(self) -> None:
        for name, least, most, wanted, usual in (
            ("temperature", 0, _LARGEST, "from 0 (the most probable) up", "0.5 to 1 are usual"),
            ("top_p", math.ulp(0), 1, "above 0 and at most 1 (all characters)", "0.9 is usual"),
            ("repetition_penalty", _TINY, _LARGEST, "above 0, which float32 holds", "1 is none"),
        ):
            value: Any = getattr(self, name)
            number = isinstance(value, Real)
            if not number or not least <= value <= most:
                raise InvalidInputError(
                    f"{name} must be a number {wanted}, but is {value!r}; {usual}"
                )
        check_size("top_k", self.top_k, 0)
        check_size("penalty_window", self.penalty_window)

    def filter(self, logits: jax.Array, recent: jax.Array | None = None) -> jax.Array:
        """Return the logits of the distribution to sample from.

        Args:
            logits: ``(*batch, vocabulary)``.
            recent: ``(n, *batch)``, the ids of the last characters, of which the last
                ``penalty_window`` count; -1 for none. Required for a ``repetition_penalty``.

        Returns:
            float32 or wider ``(*batch, vocabulary)``; -inf for characters that are excluded. With
            temperature 0 it is 0 at the most probable character, and -inf elsewhere.

        Raises:
            InvalidInputError: there is a ``repetition_penalty`` without ``recent``; or ``recent``
                does not have the batch of ``logits``.
        """
        if self.window and recent is None:
            raise InvalidInputError(
                "a repetition_penalty needs the last characters, but recent was left out; pass "
                "their ids (n, *batch)"
            )
        logits = jnp.asarray(logits)
        if recent is not None:
            recent = _characters("recent", recent, logits.shape[:-1])[-self.window :]
        logits = _filtered(self.numbers, logits, recent)
        if self.numbers["temperature"] is not None:
            return logits
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        return jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, -jnp.inf)

    @property
    def window(self) -> int:
        """How many of the last characters are read."""
        return int(self.penalty_window) if self.repetition_penalty != 1 else 0

    @property
    def numbers(self) -> dict[str, Any]:
        """The numbers, which can change without compiling; None if they are not in use."""
        greedy, top_k = self.temperature < _TINY, min(int(self.top_k), np.iinfo(np.int32).max)
        return {
            "temperature": None if greedy else np.float32(self.temperature),
            "top_k": None if greedy or not top_k else np.int32(top_k),
            "top_p": None if greedy or self.top_p == 1 else np.float32(self.top_p),
            "penalty": np.float32(self.repetition_penalty) if self.window else None,
        }


def sample(
    step: StepFunction,
    params: Any,
    carry: Any,
    tokens: jax.Array,
    *,
    key: jax.Array,
    length: int,
    temperature: float | None = None,
    sampling: Sampling | None = None,
    history: npt.ArrayLike | None = None,
) -> tuple[Any, jax.Array]:
    """Continue texts with a model, in one loop on the device.

    Each character costs one step, whatever the length of the text before. Character ``n`` of a row
    is sampled with ``fold_in(its key, n)``: it depends neither on the other rows nor on ``length``.

    Args:
        step: one step of the model. It is static: pass the same function object each time.
        params: the first argument of ``step``.
        carry: the state after all characters except the last.
        tokens: ``(*batch,)`` ids of the last character of each text.
        key: a random key for each row, ``(*batch,)``; or one key, of which row ``b``, counted
            through all axes, uses ``jax.random.fold_in(key, b)``.
        length: the number of characters to sample.
        temperature: short for ``sampling=Sampling(temperature=...)``; by default 1.
        sampling: how to sample.
        history: ``(n, *batch)``, ids of the text so far, up to ``tokens``, for the repetition
            penalty; -1 for none. By default only ``tokens``.

    Returns:
        the carry after all characters except the last one sampled, and ids ``(length, *batch)``,
        int32. Inside ``jit``, which cannot raise, an id is -1 if the logits are not finite.

    Raises:
        InvalidInputError: ``length`` is below 1, a number of the sampling is out of range, the
            temperature is given twice, or ``key`` or ``history`` do not fit ``tokens``.
        NonFiniteError: the logits contain NaN or plus infinity, or only minus infinity.

    >>> def count(params, carry, tokens):
    ...     return carry, jax.nn.one_hot((tokens + 1) % 5, 5)
    >>> key = jax.random.key(0)
    >>> _, drawn = sample(count, (), (), jnp.int32(2), key=key, length=4, temperature=0)
    >>> drawn.tolist()
    [3, 4, 0, 1]
    """
    if sampling is not None and temperature is not None:
        raise InvalidInputError(
            f"temperature {temperature} came with a sampling, which has its own; leave one out"
        )
    if sampling is None:
        sampling = Sampling(1.0 if temperature is None else temperature)
    check_size("length", length)
    state = begin(sampling, carry, tokens, key, history, length)
    end, drawn = draw(step, length, params, state, sampling.numbers)
    if not isinstance(drawn, jax.core.Tracer):
        check_drawn(np.asarray(drawn))
    return end.carry, drawn


@functools.partial(jax.jit, static_argnums=(0, 1))
def draw(
    step: StepFunction, length: int, params: Any, state: State, numbers: dict[str, Any]
) -> tuple[State, jax.Array]:
    """Sample ``length`` characters of each row; return the new state and ids ``(length, *batch)``.

    ``step`` is static. ``numbers`` are not, except for which of them are in use.
    """

    def one(state: State, _: None) -> tuple[State, jax.Array]:
        carry, logits = stepped(step, params, state.carry, state.tokens)
        # NaN, plus infinity, or only minus infinity: there is nothing to sample from.
        drawable = jnp.isfinite(jnp.max(logits, axis=-1))
        scores = _filtered(numbers, logits, state.recent)
        if numbers["temperature"] is not None:
            scores += noise(state, scores)
        tokens = jnp.where(drawable, jnp.argmax(scores, axis=-1), NONE).astype(jnp.int32)
        recent = jnp.concatenate([state.recent, tokens[None]])[1:]
        return State(carry, tokens, state.keys, state.position + 1, recent), tokens

    return jax.lax.scan(one, state, length=length)


def stepped(step: StepFunction, params: Any, carry: Any, tokens: Any) -> tuple[Any, jax.Array]:
    """Call a step, and raise unless it returns what a `StepFunction` must."""
    returned = step(params, carry, tokens)
    pair = isinstance(returned, tuple) and len(returned) == 2
    if not pair or np.shape(returned[1])[:-1] != tokens.shape or not np.ndim(returned[1]):
        raise InvalidInputError(
            f"step must return (carry, logits), logits {(*tokens.shape, 'vocabulary')}, but "
            f"returned {described(returned)}; return both"
        )
    check_alike("step", carry, returned[0], "return (carry, logits)")
    return returned


def noise(state: State, logits: jax.Array) -> jax.Array:
    """Sample Gumbel noise: the argmax of logits plus noise is a sample of their softmax."""

    def row(key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, state.position)
        return jax.random.gumbel(key, logits.shape[-1:], logits.dtype)

    drawn = each_alone(state.keys)(row)(state.keys.reshape(-1))
    return drawn.reshape(*state.keys.shape, *drawn.shape[1:])


def each_alone(keys: jax.Array) -> Callable[..., Any]:
    """Map a sampling function over rows so that no row depends on the others.

    It is `jax.vmap` for threefry keys. With other kinds of keys `jax.vmap` would mix rows.
    """
    if jax.random.key_impl(keys) == "threefry2x32":
        return jax.vmap
    return lambda function: functools.partial(jax.lax.map, function)


def begin(
    sampling: Sampling,
    carry: Any,
    tokens: jax.Array,
    key: jax.Array,
    history: npt.ArrayLike | None,
    length: int,
) -> State:
    """Return the state of the loop before the first character."""
    check_instance("sampling", sampling, Sampling, "a Sampling, as Sampling(temperature=0.5)")
    tokens = as_integers("tokens", tokens).astype(np.int32)
    keys = _row_keys(key, tokens.shape)
    known = tokens[None] if history is None else _characters("history", history, tokens.shape)
    # No longer than the text. Windows are powers of two, because each one is compiled.
    window = min(sampling.window, 1 << int(len(known) + length - 1).bit_length())
    if not window:
        known = np.zeros((0, *tokens.shape), np.int32)
    known = known[max(0, len(known) - window) :]
    nothing = np.full((window - len(known), *tokens.shape), NONE, np.int32)
    together = jnp.concatenate if isinstance(known, jax.Array) else np.concatenate
    return State(carry, tokens, keys, np.int32(0), together([nothing, known]))


def _characters(name: str, ids: npt.ArrayLike, batch: tuple[int, ...]) -> Any:
    known = as_integers(name, ids).astype(np.int32)
    if known.ndim == 0 or known.shape[1:] != batch:
        raise InvalidInputError(
            f"{name} must be (n, *batch) with the batch {batch}, but its shape is {known.shape}; "
            "put time first"
        )
    return known


def _row_keys(key: jax.Array, batch: tuple[int, ...]) -> jax.Array:
    if not hasattr(key, "dtype") or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        try:
            key = jax.random.wrap_key_data(key)
        except (TypeError, ValueError):
            check_key(key)  # which refuses it
    if key.shape == batch:
        return key
    if key.shape:
        raise InvalidInputError(
            f"key must be one key, or one for each row, {batch}, but their shape is {key.shape}; "
            "split one by jax.random.split"
        )
    rows, fold = jnp.arange(math.prod(batch)), functools.partial(jax.random.fold_in, key)
    return each_alone(key)(fold)(rows).reshape(batch)


@jax.jit
def _filtered(numbers: dict[str, Any], logits: jax.Array, recent: jax.Array | None) -> jax.Array:
    # In a narrow type the sums of probabilities, and the noise, would be too coarse.
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    size = logits.shape[-1]
    if numbers["penalty"] is not None:
        assert recent is not None  # the callers see to it
        seen = jax.nn.one_hot(recent, size, dtype=bool).any(axis=0)
        penalised = jnp.where(logits > 0, logits / numbers["penalty"], logits * numbers["penalty"])
        logits = jnp.where(seen, penalised, logits)
    if numbers["temperature"] is None:
        return logits
    # The largest becomes 0, so that no temperature makes it overflow.
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / numbers["temperature"]
    if numbers["top_k"] is not None:
        logits = _keep_largest(
            logits, lambda kept: kept.sum(axis=-1, keepdims=True) >= numbers["top_k"]
        )
    if numbers["top_p"] is not None:
        probabilities = jax.nn.softmax(logits, axis=-1)
        logits = _keep_largest(
            logits,
            lambda kept: (
                jnp.sum(probabilities, axis=-1, keepdims=True, where=kept) >= numbers["top_p"]
            ),
        )
    return logits


def _keep_largest(logits: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Retain the largest logits, as few as are enough, and their ties.

    On a CPU this takes a fifth of the time of sorting, at 64 x 68 logits.

    Args:
        logits: logits of at most 0.
        enough: from booleans, the logits retained, to whether they are enough in each row.
    """
    # Floating-point numbers from 0 up are in the order of their bits as integers. The bits of the
    # border are found one after the other, from the highest.
    bits = logits.dtype.itemsize * 8
    integer = jnp.dtype(f"int{bits}").type
    below = jax.lax.bitcast_convert_type(jnp.abs(logits), integer)

    def one(i: jax.Array, border: jax.Array) -> jax.Array:
        farther = border | jax.lax.shift_left(integer(1), jnp.asarray(bits - 2 - i, integer))
        return jnp.where(enough(below < farther), border, farther)

    border = jnp.zeros((*logits.shape[:-1], 1), integer)
    border = jax.lax.fori_loop(0, bits - 1, one, border)
    return jnp.where(below <= border, logits, -jnp.inf)


def check_drawn(drawn: npt.NDArray[np.int32], before: int = 0, where: str = "") -> None:
    """Raise if a character could not be sampled: its logits had no finite maximum."""
    if (drawn == NONE).any():
        position, *row = np.argwhere(drawn == NONE)[0].tolist()
        where = f" of row {', '.join(map(str, row))}" if row else where
        raise NonFiniteError(
            f"logits must have a finite maximum, but those for character {before + position}{where}"
            " have NaN, plus infinity, or minus infinity alone; check the parameters of the model"
        )
