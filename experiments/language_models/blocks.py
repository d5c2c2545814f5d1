"""What the families of language models share: products, norms, and the parts of a flat dict.

Every family is one file with the same names:

- ``Config``, a frozen dataclass, so that it can be a static argument of ``jax.jit``;
- ``read_config(fields) -> Config`` from `folders.Fields`, which refuses what is not supported;
- ``shapes(config) -> {name: shape}`` of every tensor in the peer's file;
- ``begin(config, batch, capacity, dtype=float32) -> carry``, the state before the first token.
  ``capacity`` is the number of tokens that full attention can hold, and ``dtype`` that of its keys
  and values; a recurrent state has one size, and is float32;
- ``apply(config, params, tokens, carry, resets=None) -> (carry, logits)`` with ``tokens (time,
  batch)``, logits ``(time, batch, vocabulary)`` in float32, and ``resets (time, batch)``, true at
  the first token of a document, which then depends on nothing before. The carry that comes out has
  the shapes and types of that which went in, so the same function reads a prompt, makes single
  steps, and trains.

``params`` is a flat dict from the names of the peer's tensors to arrays of their shapes, so a model
is saved as it was read. A family may also have ``LEFT_OUT``, prefixes of tensors that are in public
files but not in its text model, and ``laid_out(config, tensors)``, which returns the tensors of a
file in the one layout that `shapes` has.

In bfloat16, weights multiply in their own type, and states and decays are float32.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax import InvalidInputError

Params = Mapping[str, jax.Array]
Shapes = dict[str, tuple[int, ...]]
Mixed = tuple[Any, jax.Array]  # the new carry of a layer, and what it returns
QUERIES, FEWEST = 512, 64  # that attention compares at once, at most and at least

# ---- a flat dict


def under(params: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return what a prefix of names holds, by the rest of each name.

    >>> under({"layers.0.norm.weight": 1, "layers.1.norm.weight": 2}, "layers.1.")
    {'norm.weight': 2}
    """
    return {name[len(prefix) :]: x for name, x in params.items() if name.startswith(prefix)}


def within(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Return shapes with a prefix before each name: the inverse of `under`."""
    return {prefix + name: shape for name, shape in shapes.items()}


def linear_shapes(name: str, outputs: int, inputs: int, *, bias: bool = False) -> Shapes:
    """Return the shapes of what `linear` reads."""
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


# ---- products


def embed(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Return the rows of a table for ``tokens (time, batch)``, the first step of every model.

    NaN for an id outside of the table, which JAX would take for the last one, or count from the
    end: known ids, as outside of ``jit``, are refused.

    Raises:
        InvalidInputError: there is no token, or a known id is outside of the vocabulary.
    """
    if tokens.ndim != 2 or not len(tokens):
        raise InvalidInputError(
            f"tokens must be ids (time, batch) of one step at least, but have shape {tokens.shape}"
            "; where there are none, keep the carry"
        )
    if not isinstance(tokens, jax.core.Tracer):
        known = np.asarray(tokens)
        least, most = known.min(initial=0), known.max(initial=0)
        if least < 0 or most >= len(table):
            raise InvalidInputError(
                f"tokens must be ids from 0 to {len(table) - 1}, but go from {least} to {most}; "
                "take the model's own tokenizer"
            )
    # An id below 0 would count from the end.
    ids = jnp.where(tokens < 0, len(table), tokens.astype(jnp.int32))
    return jnp.take(table, ids, axis=0, mode="fill", fill_value=jnp.nan)


def linear(params: Params, name: str, x: jax.Array) -> jax.Array:
    """Compute ``x W^T``, plus the bias if there is one, in the type of the weight.

    PyTorch stores ``W (outputs, inputs)``. The product contracts the last axes of both: of one
    token, XLA for a CPU runs it five times as fast as the product with a transpose.
    """
    weight = params[f"{name}.weight"]
    y = product(x, weight)
    bias = params.get(f"{name}.bias")
    return y if bias is None else y + bias.astype(y.dtype)


@jax.custom_vjp
def product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Compute ``x W^T`` for ``W (outputs, inputs)``, in the type of the weight.

    Its gradient is JAX's own in another order. ``dW = dy^T x`` is a product of two arrays whose
    rows are tokens, the first of which XLA transposes by a slow copy. JAX puts dy there; here it is
    the narrower one, and a copy of x is shared by all weights that multiply it.
    """
    axes = ((x.ndim - 1,), (1,)), ((), ())
    return jax.lax.dot_general(x.astype(weight.dtype), weight, axes)


def _save(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, Any]:
    return product(x, weight), (x, weight)


def _gradients(saved: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = saved
    rows = x.astype(weight.dtype).reshape(-1, x.shape[-1])
    by_token, axes = dy.reshape(-1, dy.shape[-1]), (((0,), (0,)), ((), ()))
    if dy.shape[-1] <= x.shape[-1]:
        dw = jax.lax.dot_general(by_token, rows, axes)
    else:
        dw = jax.lax.dot_general(rows, by_token, axes).T
    return (dy @ weight).astype(x.dtype), dw


product.defvjp(_save, _gradients)


def wider(dtype: Any) -> Any:
    """Return the type that norms, angles and softmaxes are computed in: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


def wide(x: jax.Array) -> jax.Array:
    """Return ``x`` in float32, or in its own type if that is wider."""
    return x.astype(wider(x.dtype))


def logits(params: Params, head: str, embedding: str, x: jax.Array) -> jax.Array:
    """Compute the logits, in float32, by the head, or by the embedding if that is the head."""
    weight = params.get(head, params[embedding])
    return wide(product(x, weight))


# ---- norms


def normed(x: jax.Array, epsilon: float, groups: int = 1) -> jax.Array:
    """Divide by the root of the mean square of each of the groups of features, in float32."""
    x = wide(x)
    parts = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    scale = jax.lax.rsqrt(jnp.mean(parts * parts, axis=-1, keepdims=True) + epsilon)
    return (parts * scale).reshape(x.shape)


def rms_norm(
    params: Params, name: str, x: jax.Array, epsilon: float, *, groups: int = 1
) -> jax.Array:
    """Normalise by the mean square (Zhang & Sennrich, 2019), and multiply by the weight.

    As the peers do it: float32 inside, the type of ``x`` before the weight.
    """
    return scaled(params, name, normed(x, epsilon, groups).astype(x.dtype))


def zero_centered_norm(params: Params, name: str, x: jax.Array, epsilon: float) -> jax.Array:
    """Normalise by the mean square, and multiply by 1 + weight, all in float32, as Gemma does."""
    weight = params[f"{name}.weight"]
    return (normed(x, epsilon) * (1 + weight.astype(wider(x.dtype)))).astype(x.dtype)


def layer_norm(
    params: Params, name: str, x: jax.Array, epsilon: float, *, groups: int = 1
) -> jax.Array:
    """Normalise by mean and variance (Ba et al., 2016), and apply the weight and the bias, if any.

    Types are as in `rms_norm`.
    """
    parts = wide(x).reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    parts = parts - jnp.mean(parts, axis=-1, keepdims=True)
    return scaled(params, name, normed(parts.reshape(x.shape), epsilon, groups).astype(x.dtype))


def scaled(params: Params, name: str, x: jax.Array) -> jax.Array:
    """Multiply by the weight of a norm, and add the bias if there is one."""
    y = params[f"{name}.weight"] * x
    bias = params.get(f"{name}.bias")
    return y if bias is None else y + bias


# ---- convolutions, steps and caps


def softplus(x: jax.Array) -> jax.Array:
    """Compute ``log(1 + exp(x))``; above 20 it is ``x``, as in PyTorch."""
    return jnp.where(x > 20, x, jax.nn.softplus(x))


def taps(params: Params, name: str) -> tuple[jax.Array, jax.Array | None]:
    """Return the taps ``(n, features)`` and the bias of a ``Conv1d`` with a group per feature."""
    return params[f"{name}.weight"][:, 0].T, params.get(f"{name}.bias")


def capped(x: jax.Array, cap: float) -> jax.Array:
    """Compute ``cap tanh(x / cap)``, which is nearly ``x`` where that is small."""
    return cap * jnp.tanh(x / cap)


# ---- parts of a transformer's layer


def in_float32(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Compute a function of bfloat16 in float32, and round once, as PyTorch does."""
    return function(wide(x)).astype(x.dtype)


def gated_mlp_shapes(name: str, width: int, inner: int, *, bias: bool = False) -> Shapes:
    """Return the shapes of what `gated_mlp` reads."""
    shapes = linear_shapes("down_proj", width, inner, bias=bias)
    for part in ("gate_proj", "up_proj"):
        shapes |= linear_shapes(part, inner, width, bias=bias)
    return within(f"{name}.", shapes)


def gated_mlp(
    params: Params, name: str, x: jax.Array, activation: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Compute two layers, the first of which has a gate (Shazeer, 2020)."""
    gate = in_float32(activation, linear(params, f"{name}.gate_proj", x))
    return linear(params, f"{name}.down_proj", gate * linear(params, f"{name}.up_proj", x))


def attention_shapes(
    width: int, heads: int, key_heads: int, head_size: int, *, bias: bool
) -> Shapes:
    """Return the shapes of the products of queries, keys, values and outputs."""
    sizes = {"q": heads * head_size, "k": key_heads * head_size, "v": key_heads * head_size}
    shapes = linear_shapes("o_proj", width, heads * head_size, bias=bias)
    for name, size in sizes.items():
        shapes |= linear_shapes(f"{name}_proj", size, width, bias=bias)
    return shapes


def linear_heads(params: Params, name: str, x: jax.Array, head_size: int) -> jax.Array:
    """Return what `linear` computes in heads: ``(time, batch, heads, head_size)``."""
    return linear(params, name, x).reshape(*x.shape[:2], -1, head_size)


class Place(NamedTuple):
    """Where rows stand: how many tokens were ``read ()``, and where the next one of a row belongs.

    Its ``position`` in its document, from 0 on, and the number of its ``document`` are of
    ``(batch,)``; those of all tokens of a call are of ``(time, batch)``.
    """

    read: jax.Array
    position: jax.Array
    document: jax.Array

    @classmethod
    def start(cls, batch: int) -> "Place":
        """Return the place before the first token."""
        row = jnp.zeros((batch,), jnp.int32)
        return cls(row.sum(), row, row)

    def through(self, tokens: jax.Array, resets: jax.Array | None) -> tuple["Place", "Place"]:
        """Return the place after ``tokens (time, batch)``, and those of the tokens."""
        steps = jnp.arange(len(tokens), dtype=jnp.int32)[:, None]
        position, document = self.position + steps, self.document + 0 * steps
        if resets is not None:
            begun = jax.lax.cummax(jnp.where(resets, steps, -1))  # the step of the last reset
            position = jnp.where(begun < 0, position, steps - begun)
            document = document + jnp.cumsum(resets, axis=0, dtype=jnp.int32)
        after = Place(self.read + len(tokens), position[-1] + 1, document[-1])
        return after, Place(self.read, position, document)


class Cache(NamedTuple):
    """What later tokens attend to: ``keys`` and ``values (batch, heads, size, head_size)``.

    Their ``positions`` and ``documents`` are ``(batch, 1, size)``. An empty slot has document -1.
    Heads are before slots, so that the products with a single query read the keys as they lie.
    """

    keys: jax.Array
    values: jax.Array
    positions: jax.Array
    documents: jax.Array

    @classmethod
    def empty(cls, batch: int, heads: int, size: int, head_size: int, dtype: Any) -> "Cache":
        """Return a cache without a token."""
        slots = jnp.zeros((batch, heads, size, head_size), dtype)
        marks = jnp.zeros((batch, 1, size), jnp.int32)
        return cls(slots, slots, marks, marks - 1)

    def extended(self, new: "Cache", read: jax.Array, roll: bool) -> tuple["Cache", "Cache"]:
        """Return the cache to go on with, and the one in which the new tokens look.

        Args:
            new: the keys and values of the tokens.
            read: how many slots of the cache are used.
            roll: whether the oldest tokens leave it, as in a window.
        """
        if not roll:
            write = jax.lax.dynamic_update_slice_in_dim
            whole = jax.tree.map(lambda old, x: write(old, x, read, axis=2), self, new)
            return whole, whole
        whole = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), self, new)
        return jax.tree.map(lambda x, old: x[:, :, -old.shape[2] :], whole, self), whole


class Carry(NamedTuple):
    """The carry of a model with attention: where its rows stand, and the carry of each layer."""

    place: Place
    layers: tuple[Any, ...]

    def check_room(self, num_tokens: int) -> None:
        """Raise unless all caches have room for so many tokens.

        Under ``jit`` the number of tokens that were read is not known: it counts as 0.
        """
        sizes = [layer.keys.shape[2] for layer in self.layers if isinstance(layer, Cache)]
        if not sizes:
            return
        unknown = isinstance(self.place.read, jax.core.Tracer)
        read, size = 0 if unknown else int(self.place.read), min(sizes)
        if read + num_tokens > size:
            raise InvalidInputError(
                f"a carry of capacity {size}{'' if unknown else f' that has read {read} tokens'} "
                f"must be given at most {size - read} more, but got {num_tokens}; begin with a "
                "larger capacity"
            )


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, cache: Cache, at: Place,
    window: int | None = None,
) -> tuple[Cache, jax.Array]:  # fmt: skip
    r"""Attend to the tokens of a document up to each token.

    .. math::
        y_t = \sum_{s \le t} \text{softmax}_s(q_t^\top k_s / \sqrt{n}) \, v_s

    The softmax is computed in float32.

    Args:
        query: ``(time, batch, heads, n)``.
        key: ``(time, batch, key_heads, n)``, with heads that divide those of the queries: head h
            uses key head ``h // (heads / key_heads)`` (Ainslie et al., 2023).
        value: as the key.
        cache: what was before.
        at: the places of the tokens.
        window: how many tokens are seen, with the token itself, and the size of the cache; None
            for all, which must have room in the cache.

    Returns:
        the cache with these tokens, and ``(time, batch, heads, n)``, which is NaN without room.
    """
    marks = (jnp.swapaxes(x, 0, 1)[:, None] for x in (at.position, at.document))
    new = Cache(key.transpose(1, 2, 0, 3), value.transpose(1, 2, 0, 3), *marks)
    new = jax.tree.map(lambda x, old: x.astype(old.dtype), new, cache)
    cache, held = cache.extended(new, at.read, roll=window is not None)
    q = query.reshape(*query.shape[:2], key.shape[2], -1, query.shape[-1])

    # A derivative saves what is looked at, and no weights of the side that is not taken.
    @jax.checkpoint
    def look(q: jax.Array, position: jax.Array, document: jax.Array, seen: Cache) -> jax.Array:
        back = position.T[:, None, :, None] - seen.positions[:, :, None]  # (batch, 1, time, size)
        same = document.T[:, None, :, None] == seen.documents[:, :, None]
        visible = same & (back >= 0)
        if window is not None:
            visible &= back < window
        k, v = seen.keys.astype(q.dtype), seen.values.astype(q.dtype)
        # With time next to n, the product needs no transpose of its largest array, the scores.
        q = q.transpose(1, 2, 3, 0, 4)
        scores = jnp.einsum("bgrtn,bgsn->bgrts", q, k, preferred_element_type=wider(q.dtype))
        scores = jnp.where(visible[:, :, None], scores * q.shape[-1] ** -0.5, -jnp.inf)
        weights = jax.nn.softmax(scores).astype(v.dtype)
        return jnp.einsum("bgrts,bgsn->bgrtn", weights, v).transpose(3, 0, 1, 2, 4)

    def blocks(seen: Cache) -> jax.Array:
        """Look by blocks of queries, since the weights of all of them are the largest array."""
        count, given, found = -(-len(q) // QUERIES), (q, at.position, at.document), []
        size = max(-(-len(q) // 8), FEWEST)
        if count == 1:  # a loop of Python, of which XLA may have all arrays at once
            for start in range(0, len(q), size):
                part, slots = slice(start, start + size), slice(None)
                if seen is new:  # the slots are those of the queries, and none sees a later one
                    slots = slice(0 if window is None else max(0, start + 1 - window), start + size)
                own = jax.tree.map(lambda x, i=part: x[i], given)
                found.append(look(*own, jax.tree.map(lambda x, i=slots: x[:, :, i], seen)))
            return jnp.concatenate(found).reshape(query.shape)

        def split(x: jax.Array) -> jax.Array:  # the last one again, which sees itself
            pads = [(0, count * QUERIES - len(x))] + [(0, 0)] * (x.ndim - 1)
            return jnp.pad(x, pads, mode="edge").reshape(count, QUERIES, *x.shape[1:])

        y = jax.lax.map(lambda part: look(*part, seen), jax.tree.map(split, given))
        return y.reshape(-1, *query.shape[1:])[: len(query)]

    if len(query) == 1:
        y = blocks(held)
    else:  # where nothing was read before, all other slots are empty
        y = jax.lax.cond(at.read == 0, lambda: blocks(new), lambda: blocks(held))
    if window is None:  # a write that does not fit would hide other tokens
        y = jnp.where(at.read + len(query) <= cache.keys.shape[2], y, jnp.nan)
    return cache, y


def rotary(x: jax.Array, positions: jax.Array, size: int, base: float) -> jax.Array:
    r"""Rotate the first ``size`` entries of heads ``(time, batch, heads, n)`` by their positions.

    Entries i and i + size / 2 are turned by the angle :math:`p \, b^{-2i / \text{size}}` for
    position p and base b (Su et al., 2021). Angles are computed in float32.
    """
    rates = jnp.asarray(base ** -(np.arange(0, size, 2) / size), wider(x.dtype))
    angles = positions[..., None, None] * rates
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    a, b, rest = jnp.split(x, [size // 2, size], axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
