"""Olmo Hybrid, in the layout of transformers: gated delta networks, and attention as in Olmo 3.

Layers with a memory have norms before their two parts, and those with attention behind them. Beta
is below 2, so what is removed from a memory may change its sign (Grazzi et al., 2025). The public
models have no rotary positions.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.language_models import blocks, gated_delta
from experiments.language_models.blocks import Cache, Carry, Mixed, Params, Place, Shapes
from experiments.language_models.folders import Fields
from experiments.language_models.gated_delta import Config

HEAD, EPSILON = gated_delta.HEAD, 1e-5  # of a memory's norm, whatever rms_norm_eps says
NAMES = (
    ("q_proj", "k_proj", "v_proj"), ("q_conv1d", "k_conv1d", "v_conv1d"), "g_proj", "a_proj",
    "b_proj", "o_norm", "o_proj",
)  # fmt: skip
PARTS = {  # of a layer: what mixes tokens, and two norms
    "linear_attention": ("linear_attn.", "attention_layer_norm", "feedforward_layer_norm"),
    "full_attention": ("self_attn.", "post_attention_layernorm", "post_feedforward_layernorm"),
}
begin = gated_delta.begin


def read_config(fields: Fields) -> Config:
    """Read what ``OlmoHybridConfig`` writes."""
    fields.only("hidden_act", "silu", "swish")
    fields.ignore(  # of training, or of the first weights
        "attention_dropout", "linear_a_log_max", "linear_a_log_min", "linear_dt_init_floor",
        "linear_dt_max", "linear_dt_min", "max_position_embeddings",
    )  # fmt: skip
    width, layers = fields.size("hidden_size", 3840), fields.size("num_hidden_layers", 32)
    heads = fields.size("num_attention_heads", 30)
    head_size = fields.size("head_dim", width // heads)
    memory_heads = fields.size("linear_num_value_heads", heads)
    memory_key_heads = fields.divisor("linear_num_key_heads", memory_heads, heads)
    memory_key_size = fields.size("linear_key_head_dim", int(0.75 * width / memory_key_heads))
    return Config(
        kinds=fields.kinds(min(4, layers)),
        vocabulary=fields.size("vocab_size", 100352),
        width=width,
        inner=fields.size("intermediate_size", 11008),
        heads=heads,
        key_heads=fields.divisor("num_key_value_heads", heads, heads),
        head_size=head_size,
        rotary=rotary(fields, head_size),
        bias=fields.flag("attention_bias", False),
        taps=fields.size("linear_conv_kernel_dim", 4),
        memory_heads=memory_heads,
        memory_key_heads=memory_key_heads,
        memory_value_size=fields.size("linear_value_head_dim", 2 * memory_key_size),
        memory_key_size=memory_key_size,
        most_beta=2 if fields.flag("linear_allow_neg_eigval", True) else 1,
        epsilon=fields.number("rms_norm_eps", 1e-6),
        tied=fields.flag("tie_word_embeddings", False),
        prefix="model.",
    )


def rotary(fields: Fields, head_size: int) -> tuple[int, float]:
    """Return how many entries of a head are rotated: all, or none where ``rope_theta`` is null."""
    given = fields.values.get("rope_parameters")
    place = given if isinstance(given, dict) and "rope_theta" in given else fields.values
    if "rope_theta" in place and place["rope_theta"] is None:
        fields.ignore("rope_parameters", "rope_theta")
        return 0, 1.0
    size, base = fields.rotary(head_size, 1.0)
    name = "rope_parameters" if given else "partial_rotary_factor"
    fields.expect(size == head_size, name, "such that all entries of a head are rotated")
    return size, base


def shapes(config: Config) -> Shapes:
    """Return the shape of every tensor in the file."""
    c, linear = config, blocks.linear_shapes
    attention = blocks.attention_shapes(c.width, c.heads, c.key_heads, c.head_size, bias=c.bias)
    attention |= {f"{x}_norm.weight": attention[f"{x}_proj.weight"][:1] for x in "qk"}
    memory: Shapes = {"A_log": (c.memory_heads,), "dt_bias": (c.memory_heads,)}
    memory |= linear("o_proj", c.width, c.value_channels)
    memory["o_norm.weight"] = (c.memory_value_size,)
    sizes = {"q": c.key_channels, "k": c.key_channels, "v": c.value_channels, "g": c.value_channels}
    for name, channels in (sizes | {"a": c.memory_heads, "b": c.memory_heads}).items():
        memory |= linear(f"{name}_proj", channels, c.width)
    memory |= {f"{name}_conv1d.weight": (sizes[name], 1, c.taps) for name in "qkv"}
    found: Shapes = {"model.norm.weight": (c.width,), c.embedding: (c.vocabulary, c.width)}
    for i, kind in enumerate(c.kinds):
        mixer, *norms = PARTS[kind]
        layer = blocks.within(mixer, attention if kind == "full_attention" else memory)
        layer |= blocks.gated_mlp_shapes("mlp", c.width, c.inner)
        layer |= {f"{name}.weight": (c.width,) for name in norms}
        found |= blocks.within(f"model.layers.{i}.", layer)
    return found if c.tied else found | {HEAD: (c.vocabulary, c.width)}


def laid_out(config: Config, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return tensors as public files have them, from what transformers may have written.

    It cuts the taps of queries, keys and values into equal parts, and names a norm behind attention
    as one in a memory's layer. It reads both layouts.
    """
    c, found = config, dict(tensors)
    for i, kind in enumerate(c.kinds):
        at = f"model.layers.{i}."
        usual, other = f"{at}post_attention_layernorm.weight", f"{at}feedforward_layer_norm.weight"
        if kind == "full_attention" and usual not in found and other in found:
            found[usual] = found.pop(other)
        names = [f"{at}linear_attn.{name}_conv1d.weight" for name in "qkv"]
        parts = [found[name] for name in names if name in found]
        alike = len({x.dtype for x in parts}) == 1
        alike = alike and [x.shape[1:] for x in parts] == [(1, c.taps)] * 3
        if alike and sum(map(len, parts)) == 2 * c.key_channels + c.value_channels:
            parts = np.split(np.concatenate(parts), [c.key_channels, 2 * c.key_channels])
            found |= zip(names, parts, strict=True)
    return found


def apply(
    config: Config, params: Params, tokens: jax.Array, carry: Carry, resets: Any = None
) -> tuple[Carry, jax.Array]:
    """Read ``tokens (time, batch)``; return the new carry, and the logits of what comes next."""
    c, after = config, list[Any]()
    x, own = blocks.embed(params[c.embedding], tokens), dataclasses.replace(c, epsilon=EPSILON)
    carry.check_room(len(tokens))
    place, at = carry.place.through(tokens, resets)
    for i, (kind, state) in enumerate(zip(c.kinds, carry.layers, strict=True)):
        layer = blocks.under(params, f"model.layers.{i}.")
        prefix, first, second = PARTS[kind]
        mixer = blocks.under(layer, prefix)
        if kind == "full_attention":
            state, y = attention(c, mixer, x, state, at)
            x = x + norm(layer, first, y, c.epsilon)
            y = norm(layer, second, blocks.gated_mlp(layer, "mlp", x, jax.nn.silu), c.epsilon)
        else:
            y = norm(layer, first, x, c.epsilon)
            state, y = gated_delta.gated_delta(own, mixer, y, state, resets, NAMES)
            x = x + y
            y = blocks.gated_mlp(layer, "mlp", norm(layer, second, x, c.epsilon), jax.nn.silu)
        x, after = x + y, [*after, state]
    x = norm(params, "model.norm", x, c.epsilon)
    return Carry(place, tuple(after)), blocks.logits(params, HEAD, c.embedding, x)


def norm(params: Params, name: str, x: jax.Array, epsilon: float) -> jax.Array:
    """Normalise by the mean square, and multiply by the weight, all in float32."""
    return blocks.in_float32(lambda y: blocks.rms_norm(params, name, y, epsilon), x)


def attention(c: Config, params: Params, x: jax.Array, cache: Cache, at: Place) -> Mixed:
    """Attend; all heads of queries, and of keys, are normalised at once, and rotated in float32."""
    q, k, v = (blocks.linear(params, f"{name}_proj", x) for name in "qkv")
    q, k = norm(params, "q_norm", q, c.epsilon), norm(params, "k_norm", k, c.epsilon)
    q, k, v = (y.reshape(*x.shape[:2], -1, c.head_size) for y in (q, k, v))
    q, k = (blocks.rotary(blocks.wide(y), at.position, *c.rotary).astype(x.dtype) for y in (q, k))
    cache, y = blocks.attend(q, k, v, cache, at)
    return cache, blocks.linear(params, "o_proj", y.reshape(*x.shape[:2], -1))
