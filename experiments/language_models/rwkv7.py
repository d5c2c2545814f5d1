"""RWKV-7 "Goose" (Peng et al., 2025), in the layout of its authors' ``.pth`` files."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.language_models import blocks
from experiments.language_models.blocks import Params, Shapes
from rnnjax import InvalidInputError, MatrixCarry, Memory, matrix_memory

EMBEDDING, HEAD = "emb.weight", "head.weight"
EPSILON, HEAD_EPSILON = 1e-5, 64e-5  # of the norms, and of that of each head's reads


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a model; ``ranks`` are those of the products that give w, a, g and v."""

    vocabulary: int
    width: int
    head_size: int
    layers: int
    inner: int
    ranks: tuple[int, ...]
    unread: bool = False
    """Whether the first layer has the parameters of v too, which needs a layer before."""

    @property
    def heads(self) -> int:
        """The number of heads of a layer."""
        return self.width // self.head_size

    @classmethod
    def of(cls, found: Mapping[str, tuple[int, ...]]) -> "Config":
        """Read the sizes from the shapes of a file's tensors.

        Raises:
            InvalidInputError: these are not the tensors of an RWKV-7.
        """
        try:
            layers = len({name.split(".")[1] for name in found if name.startswith("blocks.")})
            last = blocks.under(found, f"blocks.{layers - 1}.att.")
            unread, inner = "blocks.0.att.v1" in found, found["blocks.0.ffn.key.weight"][0]
            ranks = tuple(last[f"{name}1"][1] for name in "wagv"[: 3 + (layers > 1 or unread)])
            (vocabulary, width), (_, size) = found[EMBEDDING], last["r_k"]
            size = width // (width // size)  # another one that does not divide the width
            return cls(vocabulary, width, size, layers, inner, ranks, unread)
        except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
            raise InvalidInputError(
                "the tensors must be those of an RWKV-7, such as blocks.0.att.r_k (heads, "
                f"head_size), but are {', '.join(sorted(found)[:3]) or 'none'}; give a .pth of its "
                "authors, or a .safetensors with the same names"
            ) from error


def shapes(config: Config) -> Shapes:
    """Return the shape of every tensor in the file."""
    c, vector, norms = config, (1, 1, config.width), ["blocks.0.ln0", "ln_out"]
    found: Shapes = dict.fromkeys((EMBEDDING, HEAD), (c.vocabulary, c.width))
    for i in range(c.layers):
        att: Shapes = dict.fromkeys(["k_k", "k_a", *(f"x_{name}" for name in "rwkvag")], vector)
        for name, rank in zip("wagv", c.ranks, strict=False):
            if name != "v" or i or c.unread:
                att |= {f"{name}1": (c.width, rank), f"{name}2": (rank, c.width)}
                att |= {} if name == "g" else {f"{name}0": vector}
        for name in ("receptance", "key", "value", "output"):
            att |= blocks.linear_shapes(name, c.width, c.width)
        att["r_k"] = c.heads, c.head_size
        ffn: Shapes = {"x_k": vector, **blocks.linear_shapes("key", c.inner, c.width)}
        ffn |= blocks.linear_shapes("value", c.width, c.inner)
        found |= blocks.within(f"blocks.{i}.att.", att) | blocks.within(f"blocks.{i}.ffn.", ffn)
        norms += [f"blocks.{i}.{name}" for name in ("ln1", "ln2", "att.ln_x")]
    return found | {f"{norm}.{part}": (c.width,) for norm in norms for part in ("weight", "bias")}


def begin(config: Config, batch: int, capacity: int = 0, dtype: Any = jnp.float32) -> Any:
    """Return the state before the first token: for each layer two tokens and a memory."""
    c, wide = config, blocks.wider(dtype)
    token = jnp.zeros((batch, c.width), wide)
    memory = MatrixCarry(jnp.zeros((batch, c.heads, c.head_size, c.head_size), wide))
    return [(token, memory, token)] * config.layers


def apply(
    config: Config, params: Params, tokens: jax.Array, carry: Any, resets: Any = None
) -> tuple[Any, jax.Array]:
    """Read ``tokens (time, batch)``; return the new carry, and the logits of what comes next."""
    x, first, after = blocks.embed(params[EMBEDDING], tokens), None, []
    x = blocks.layer_norm(params, "blocks.0.ln0", x, EPSILON)
    for i, (last, memory, last_inner) in enumerate(carry):
        layer = blocks.under(params, f"blocks.{i}.")
        y = blocks.layer_norm(layer, "ln1", x, EPSILON)
        att = blocks.under(layer, "att.")
        last, mixed = token_shift(att, y, last, resets)
        memory, first, y = time_mixing(config, att, mixed, first, memory, resets)
        x = x + y
        y = blocks.layer_norm(layer, "ln2", x, EPSILON)
        last_inner, mixed = token_shift(blocks.under(layer, "ffn."), y, last_inner, resets)
        y = jnp.square(jax.nn.relu(blocks.linear(layer, "ffn.key", mixed("k"))))
        x = x + blocks.linear(layer, "ffn.value", y)
        after.append((last, memory, last_inner))
    x = blocks.layer_norm(params, "ln_out", x, EPSILON)
    return after, blocks.logits(params, HEAD, EMBEDDING, x)


def token_shift(
    params: Params, x: jax.Array, last: jax.Array, resets: Any
) -> tuple[jax.Array, Callable[[str], jax.Array]]:
    """Return the last token, and a function that mixes each token with the one before."""
    before = jnp.concatenate([last[None].astype(x.dtype), x[:-1]])
    before = before if resets is None else jnp.where(resets[..., None], 0, before)

    def mixed(name: str) -> jax.Array:
        return x + (before - x) * params[f"x_{name}"].reshape(-1)

    return x[-1].astype(last.dtype), mixed


def time_mixing(
    config: Config, params: Params, mixed: Any, first: Any, memory: MatrixCarry, resets: Any
) -> tuple[MatrixCarry, jax.Array, jax.Array]:
    r"""Return the new memory, the values of the first layer, and the block's output.

    .. math::
        S_t = S_{t-1} \, (\text{diag}(w_t) - \kappa_t (a_t \odot \kappa_t)^\top) + v_t k_t^\top,
        \qquad y_t = \text{norm}(S_t r_t) + (r_t \cdot (\rho \odot k_t)) \, v_t

    for each head, with decays :math:`w` of 0.545 to 1, and :math:`|\kappa| = 1`. The values of a
    later layer are mixed with those of the first.
    """
    p = {name: x if x.ndim == 2 else x.reshape(-1) for name, x in params.items()}

    def low_rank(name: str, inside: Callable[[jax.Array], jax.Array]) -> jax.Array:
        y = inside(mixed(name) @ p[f"{name}1"]) @ p[f"{name}2"]
        return y + p[f"{name}0"] if f"{name}0" in p else y

    def heads(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], config.heads, -1)

    r, k, v = (blocks.linear(p, name, mixed(name[0])) for name in ("receptance", "key", "value"))
    rate = jax.nn.sigmoid(low_rank("a", lambda x: x))
    gate = low_rank("g", jax.nn.sigmoid)
    log_decay = -math.exp(-0.5) * jax.nn.sigmoid(blocks.wide(low_rank("w", jnp.tanh)))
    if first is None:  # this is the first layer
        first = v
    else:
        v = v + (first - v) * jax.nn.sigmoid(low_rank("v", lambda x: x))
    kappa = blocks.wide(heads(k * p["k_k"]))
    kappa = kappa * jax.lax.rsqrt(jnp.square(kappa).sum(-1, keepdims=True).clip(1e-24))
    r, k, v = heads(r), heads(k * (1 + (rate - 1) * p["k_a"])), heads(v)
    step = Memory(r, k, v, heads(log_decay), removal_query=kappa, removal_key=heads(rate) * kappa)
    memory, y = matrix_memory(step, memory, resets=resets)
    y = y.reshape(*gate.shape).astype(gate.dtype)
    y = blocks.layer_norm(p, "ln_x", y, HEAD_EPSILON, groups=config.heads)
    bonus = (r * k * p["r_k"]).sum(-1, keepdims=True) * v
    return memory, first, blocks.linear(p, "output", (y + bonus.reshape(y.shape)) * gate)
