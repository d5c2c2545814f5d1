"""RecurrentGemma (Botev et al., 2024), in the layout of transformers: Griffin (De et al., 2024)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from experiments.language_models import blocks
from experiments.language_models.blocks import Cache, Carry, Mixed, Params, Place, Shapes
from experiments.language_models.folders import Fields
from rnnjax import causal_convolution, linear_recurrence

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a model; a layer is ``recurrent`` or ``attention``."""

    kinds: tuple[str, ...]
    vocabulary: int
    width: int
    inner: int
    channels: int
    taps: int
    heads: int
    key_heads: int
    head_size: int
    window: int
    rotary: tuple[int, float]
    bias: bool
    cap: float
    epsilon: float
    tied: bool


def read_config(fields: Fields) -> Config:
    """Read what ``RecurrentGemmaConfig`` writes, and the older files of the public models."""
    width, heads = fields.size("hidden_size", 2560), fields.size("num_attention_heads", 10)
    channels = fields.size("lru_width", width)
    whole = width % heads == channels % heads == 0
    fields.expect(whole, "num_attention_heads", f"a divisor of {width} and of {channels}")
    fields.only("head_dim", width // heads)
    fields.only("hidden_activation", "gelu_pytorch_tanh")
    fields.only("embeddings_scale_by_sqrt_dim", True)
    fields.ignore("attention_dropout", "w_init_variance_scale", "final_w_init_variance_scale")
    old = "_block_types" if "_block_types" in fields.values else "block_types"
    usual = ("recurrent", "recurrent", "attention")
    pattern = fields.names(old, "recurrent", "attention", default=usual)
    fields.expect(bool(pattern), old, "a list with a name")
    return Config(
        kinds=tuple(pattern[i % len(pattern)] for i in range(fields.size("num_hidden_layers", 26))),
        vocabulary=fields.size("vocab_size", 256000),
        width=width,
        inner=fields.size("intermediate_size", 7680, least=2) // 2,
        channels=channels,
        taps=fields.size("conv1d_width", 4),
        heads=heads,
        key_heads=fields.divisor("num_key_value_heads", heads, heads),
        head_size=width // heads,
        window=fields.size("attention_window_size", 2048, most=2**16),  # no tensor has its size
        rotary=fields.rotary(width // heads, 0.5),
        bias=fields.flag("attention_bias", False),
        cap=fields.number("logits_soft_cap", 30.0),
        epsilon=fields.number("rms_norm_eps", 1e-6),
        tied=fields.flag("tie_word_embeddings", True),
    )


def shapes(config: Config) -> Shapes:
    """Return the shape of every tensor in the file."""
    c, linear = config, blocks.linear_shapes
    block, heads = c.channels // c.heads, (c.heads, c.key_heads, c.head_size)
    kinds = {
        "attention": blocks.attention_shapes(c.width, *heads, bias=c.bias)
        | linear("o_proj", c.width, c.width, bias=True),
        "recurrent": linear("linear_x", c.channels, c.width, bias=True)
        | linear("linear_y", c.channels, c.width, bias=True)
        | linear("linear_out", c.width, c.channels, bias=True)
        | {"conv_1d.weight": (c.channels, 1, c.taps), "conv_1d.bias": (c.channels,)}
        | {f"rg_lru.{gate}_gate_weight": (c.heads, block, block) for gate in ("input", "recurrent")}
        | {f"rg_lru.{gate}_gate_bias": (c.heads, block) for gate in ("input", "recurrent")}
        | {"rg_lru.recurrent_param": (c.channels,)},
    }
    found = {EMBEDDING: (c.vocabulary, c.width), "model.final_norm.weight": (c.width,)}
    found |= {} if c.tied else {HEAD: (c.vocabulary, c.width)}
    for i, kind in enumerate(c.kinds):
        layer = blocks.within("temporal_block.", kinds[kind])
        layer |= blocks.gated_mlp_shapes("mlp_block", c.width, c.inner, bias=True)
        layer |= {f"{name}_pre_norm.weight": (c.width,) for name in ("temporal", "channel")}
        found |= blocks.within(f"model.layers.{i}.", layer)
    return found


def begin(config: Config, batch: int, capacity: int = 0, dtype: Any = jnp.float32) -> Carry:
    """Return the state before the first token: a window and a state, or a cache, for each layer."""
    c, wide = config, blocks.wider(dtype)
    state = jnp.zeros((batch, c.taps - 1, c.channels), wide), jnp.zeros((batch, c.channels), wide)
    cache = Cache.empty(batch, c.key_heads, c.window, c.head_size, dtype)
    layers = (cache if kind == "attention" else state for kind in c.kinds)
    return Carry(Place.start(batch), tuple(layers))


def apply(
    config: Config, params: Params, tokens: jax.Array, carry: Carry, resets: Any = None
) -> tuple[Carry, jax.Array]:
    """Read ``tokens (time, batch)``; return the new carry, and the logits of what comes next."""
    c, after = config, list[Any]()
    # The peer has this factor in bfloat16: for a width of 2560 it is 50.5, and not 50.596.
    x = blocks.embed(params[EMBEDDING], tokens) * jnp.bfloat16(c.width**0.5)
    place, at = carry.place.through(tokens, resets)
    for i, (kind, state) in enumerate(zip(c.kinds, carry.layers, strict=True)):
        layer = blocks.under(params, f"model.layers.{i}.")
        y = blocks.zero_centered_norm(layer, "temporal_pre_norm", x, c.epsilon)
        mixer = attention if kind == "attention" else recurrence
        state, y = mixer(c, blocks.under(layer, "temporal_block."), y, state, at)
        x, after = x + y, [*after, state]
        y = blocks.zero_centered_norm(layer, "channel_pre_norm", x, c.epsilon)
        x = x + blocks.gated_mlp(layer, "mlp_block", y, jax.nn.gelu)
    x = blocks.zero_centered_norm(params, "model.final_norm", x, c.epsilon)
    logits = blocks.logits(params, HEAD, EMBEDDING, x)
    return Carry(place, tuple(after)), blocks.capped(logits, c.cap)


def attention(c: Config, params: Params, x: jax.Array, cache: Cache, at: Place) -> Mixed:
    """Attend to a window; a part of each query and key is rotated by its position."""
    q, k, v = (blocks.linear_heads(params, f"{name}_proj", x, c.head_size) for name in "qkv")
    q, k = (blocks.rotary(heads, at.position, *c.rotary) for heads in (q, k))
    cache, y = blocks.attend(q, k, v, cache, at, c.window)
    return cache, blocks.linear(params, "o_proj", y.reshape(x.shape))


def recurrence(c: Config, params: Params, x: jax.Array, carry: Any, at: Place) -> Mixed:
    r"""Convolve, and run the RG-LRU, whose root is 1 at the first token of a document.

    .. math::
        a_t = \exp(-8 \, \text{softplus}(\Lambda) \, r_t), \qquad
        h_t = a_t h_{t-1} + \sqrt{1 - a_t^2} \, (i_t u_t)
    """
    (window, state), first = carry, at.position == 0
    u = blocks.linear(params, "linear_x", x)
    window, u = causal_convolution(u, *blocks.taps(params, "conv_1d"), window, resets=first)
    heads = u.astype(x.dtype).reshape(*x.shape[:2], c.heads, -1)
    lru = blocks.under(params, "rg_lru.")
    gates = (
        jnp.einsum("tbhi,hij->tbhj", heads, lru[f"{gate}_gate_weight"]) + lru[f"{gate}_gate_bias"]
        for gate in ("recurrent", "input")
    )
    r, i = (jax.nn.sigmoid(gate.reshape(u.shape).astype(u.dtype)) for gate in gates)
    log_a = -8 * blocks.softplus(lru["recurrent_param"].astype(u.dtype)) * r
    # Not 1 - a^2, which rounds to 0 if a is nearly 1; and the derivative stays finite.
    root = jnp.sqrt(jnp.maximum(-jnp.expm1(2 * log_a), jnp.finfo(u.dtype).tiny))
    drive = jnp.where(first[..., None], 1, root) * i * u
    state, h = linear_recurrence(jnp.exp(log_a), drive, state, resets=first)
    y = blocks.in_float32(jax.nn.gelu, blocks.linear(params, "linear_y", x))
    return (window, state), blocks.linear(params, "linear_out", h.astype(x.dtype) * y)
