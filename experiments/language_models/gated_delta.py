"""Qwen3.5's dense text models, in the layout of transformers: gated delta networks and attention.

The models that are public see images too, and have a head that proposes several tokens. Their
folders hold the sizes of the text model under ``text_config``, and its tensors under
``model.language_model.``; the others are left out.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from experiments.language_models import blocks
from experiments.language_models.blocks import Cache, Carry, Mixed, Params, Place, Shapes
from experiments.language_models.folders import Fields
from rnnjax import MatrixCarry, Memory, causal_convolution, matrix_memory

HEAD, LEFT_OUT = "lm_head.weight", ("model.visual.", "mtp.")
# Queries, keys and values, their convolutions, gate, decay, beta, the norm and the output.
NAMES = ("in_proj_qkv",), ("conv1d",), "in_proj_z", "in_proj_a", "in_proj_b", "norm", "out_proj"


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a model; a layer is ``linear_attention`` or ``full_attention``.

    The sizes that begin with ``memory`` are those of the layers with a matrix memory, in which
    groups of ``memory_heads`` share ``memory_key_heads``. Their beta is below
    ``most_beta``. ``prefix`` is before the tensors' names. `olmo_hybrid` has the same sizes.
    """

    kinds: tuple[str, ...]
    vocabulary: int
    width: int
    inner: int
    heads: int
    key_heads: int
    head_size: int
    rotary: tuple[int, float]
    bias: bool
    taps: int
    memory_heads: int
    memory_key_heads: int
    memory_value_size: int
    memory_key_size: int
    most_beta: int
    epsilon: float
    tied: bool
    prefix: str

    @property
    def embedding(self) -> str:
        """The name of the embedding."""
        return f"{self.prefix}embed_tokens.weight"

    @property
    def key_channels(self) -> int:
        """The number of channels of the keys of all memories."""
        return self.memory_key_heads * self.memory_key_size

    @property
    def value_channels(self) -> int:
        """The number of channels of the values of all memories."""
        return self.memory_heads * self.memory_value_size


def read_config(fields: Fields) -> Config:
    """Read what ``Qwen3_5TextConfig`` writes, by itself or under ``text_config``."""
    prefix, tied = "model.", fields.flag("tie_word_embeddings", False)
    if "text_config" in fields.values:
        fields.ignore(
            "vision_config", "image_token_id", "video_token_id", "vision_start_token_id",
            "vision_end_token_id",
        )  # fmt: skip
        whole, fields, prefix = fields, fields.inside("text_config"), "model.language_model."
        # transformers asks the whole model, whose field older files do not repeat.
        tied = whole.flag("tie_word_embeddings", fields.flag("tie_word_embeddings", False))
    fields.only("num_experts", 0)  # no mixture of experts
    fields.only("hidden_act", "silu", "swish")
    fields.only("attn_output_gate", True)
    fields.only("mlp_only_layers", [])
    fields.ignore(
        "attention_dropout", "max_position_embeddings", "mamba_ssm_dtype", "mtp_num_hidden_layers",
        "mtp_use_dedicated_embeddings",
    )  # fmt: skip
    head_size, heads = fields.size("head_dim", 256), fields.size("num_attention_heads", 16)
    memory_heads = fields.size("linear_num_value_heads", 32)
    config = Config(
        kinds=fields.kinds(fields.size("full_attention_interval", 4)),
        vocabulary=fields.size("vocab_size", 248320),
        width=fields.size("hidden_size", 4096),
        inner=fields.size("intermediate_size", 12288),
        heads=heads,
        key_heads=fields.divisor("num_key_value_heads", heads, 4),
        head_size=head_size,
        rotary=fields.rotary(head_size, 0.25),
        bias=fields.flag("attention_bias", False),
        taps=fields.size("linear_conv_kernel_dim", 4),
        memory_heads=memory_heads,
        memory_key_heads=fields.divisor("linear_num_key_heads", memory_heads, 16),
        memory_value_size=fields.size("linear_value_head_dim", 128),
        memory_key_size=fields.size("linear_key_head_dim", 128),
        most_beta=1,
        epsilon=fields.number("rms_norm_eps", 1e-6),
        tied=tied,
        prefix=prefix,
    )
    fields.done()
    return config


def shapes(config: Config) -> Shapes:
    """Return the shape of every tensor in the file."""
    c, linear = config, blocks.linear_shapes
    heads, convolved = (c.heads, c.key_heads, c.head_size), 2 * c.key_channels + c.value_channels
    attention = blocks.attention_shapes(c.width, *heads, bias=c.bias)
    attention |= linear("q_proj", 2 * c.heads * c.head_size, c.width, bias=c.bias)  # and gates
    kinds = {
        "full_attention": blocks.within("self_attn.", attention)
        | {f"self_attn.{name}_norm.weight": (c.head_size,) for name in "qk"},
        "linear_attention": linear("linear_attn.in_proj_qkv", convolved, c.width)
        | linear("linear_attn.in_proj_z", c.value_channels, c.width)
        | linear("linear_attn.in_proj_a", c.memory_heads, c.width)
        | linear("linear_attn.in_proj_b", c.memory_heads, c.width)
        | linear("linear_attn.out_proj", c.width, c.value_channels)
        | {"linear_attn.conv1d.weight": (convolved, 1, c.taps)}
        | {f"linear_attn.{name}": (c.memory_heads,) for name in ("A_log", "dt_bias")}
        | {"linear_attn.norm.weight": (c.memory_value_size,)},
    }
    every: Shapes = {f"{name}_layernorm.weight": (c.width,) for name in ("input", "post_attention")}
    every |= blocks.gated_mlp_shapes("mlp", c.width, c.inner)
    found: Shapes = {"embed_tokens.weight": (c.vocabulary, c.width), "norm.weight": (c.width,)}
    for i, kind in enumerate(c.kinds):
        found |= blocks.within(f"layers.{i}.", kinds[kind] | every)
    head = {} if c.tied else {HEAD: (c.vocabulary, c.width)}
    return blocks.within(c.prefix, found) | head


def begin(config: Config, batch: int, capacity: int, dtype: Any = jnp.float32) -> Carry:
    """Return the state before the first token: a window and a memory, or a cache, of each layer."""
    c, wide = config, blocks.wider(dtype)
    window = jnp.zeros((batch, c.taps - 1, 2 * c.key_channels + c.value_channels), wide)
    shape = batch, c.memory_heads, c.memory_value_size, c.memory_key_size
    state = window, MatrixCarry(jnp.zeros(shape, wide))
    cache = Cache.empty(batch, c.key_heads, capacity, c.head_size, dtype)
    layers = (cache if kind == "full_attention" else state for kind in c.kinds)
    return Carry(Place.start(batch), tuple(layers))


def apply(
    config: Config, params: Params, tokens: jax.Array, carry: Carry, resets: Any = None
) -> tuple[Carry, jax.Array]:
    """Read ``tokens (time, batch)``; return the new carry, and the logits of what comes next."""
    c, after = config, list[Any]()
    x = blocks.embed(params[c.embedding], tokens)
    carry.check_room(len(tokens))
    place, at = carry.place.through(tokens, resets)
    for i, (kind, state) in enumerate(zip(c.kinds, carry.layers, strict=True)):
        layer = blocks.under(params, f"{c.prefix}layers.{i}.")
        y = blocks.zero_centered_norm(layer, "input_layernorm", x, c.epsilon)
        if kind == "full_attention":
            state, y = attention(c, blocks.under(layer, "self_attn."), y, state, at)
        else:
            state, y = gated_delta(c, blocks.under(layer, "linear_attn."), y, state, resets)
        x, after = x + y, [*after, state]
        y = blocks.zero_centered_norm(layer, "post_attention_layernorm", x, c.epsilon)
        x = x + blocks.gated_mlp(layer, "mlp", y, jax.nn.silu)
    x = blocks.zero_centered_norm(params, f"{c.prefix}norm", x, c.epsilon)
    return Carry(place, tuple(after)), blocks.logits(params, HEAD, c.embedding, x)


def attention(c: Config, params: Params, x: jax.Array, cache: Cache, at: Place) -> Mixed:
    """Attend; queries and keys are normalised, and what a head returns has a gate."""
    q, gate = jnp.split(blocks.linear_heads(params, "q_proj", x, 2 * c.head_size), 2, axis=-1)
    k, v = (blocks.linear_heads(params, f"{name}_proj", x, c.head_size) for name in "kv")
    q = blocks.zero_centered_norm(params, "q_norm", q, c.epsilon)
    k = blocks.zero_centered_norm(params, "k_norm", k, c.epsilon)
    q, k = (blocks.rotary(heads, at.position, *c.rotary) for heads in (q, k))
    cache, y = blocks.attend(q, k, v, cache, at)
    y = (y * blocks.in_float32(jax.nn.sigmoid, gate)).reshape(*x.shape[:2], -1)
    return cache, blocks.linear(params, "o_proj", y)


def gated_delta(
    c: Config, params: Params, x: jax.Array, carry: Any, resets: Any, names: Any = NAMES
) -> Mixed:
    r"""Convolve, and run the gated delta rule (Yang, Kautz & Hatamizadeh, 2025).

    .. math::
        S_t = \alpha_t S_{t-1} \, (I - \beta_t k_t k_t^\top) + \beta_t \, v_t k_t^\top, \qquad
        y_t = \text{norm}(S_t q_t) \odot \text{silu}(z_t)

    Here :math:`\alpha = \exp(-e^a \, \text{softplus}(\Delta))`, and q and k are unit vectors.
    """
    (window, memory), (inputs, convolutions, gate, *rates, norm, output) = carry, names
    u = jnp.concatenate([blocks.linear(params, name, x) for name in inputs], axis=-1)
    taps = jnp.concatenate([blocks.taps(params, name)[0] for name in convolutions], axis=-1)
    window, u = causal_convolution(u, taps, None, window, resets=resets)
    u, wide = jax.nn.silu(u), u.dtype
    q, k, v = jnp.split(u, [c.key_channels, 2 * c.key_channels], axis=-1)
    q, k = (y.reshape(*x.shape[:2], c.memory_key_heads, -1) for y in (q, k))
    q, k = (y * jax.lax.rsqrt(jnp.square(y).sum(-1, keepdims=True) + 1e-6) for y in (q, k))
    v = v.reshape(*x.shape[:2], c.memory_heads, -1)
    a, beta = (blocks.linear(params, name, x).astype(wide) for name in rates)
    step = blocks.softplus(a + params["dt_bias"].astype(wide))
    beta = c.most_beta * jax.nn.sigmoid(beta)
    log_decay = -jnp.exp(params["A_log"].astype(wide)) * step
    write = Memory(q * c.memory_key_size**-0.5, k, v, log_decay, beta=beta, erase=beta)
    memory, y = matrix_memory(write, memory, resets=resets)
    y = blocks.rms_norm(params, norm, y.astype(x.dtype), c.epsilon)
    z = blocks.linear(params, gate, x).reshape(y.shape)
    y = (y * jax.nn.silu(z.astype(wide))).reshape(*x.shape[:2], -1)
    return (window, memory), blocks.linear(params, output, y.astype(x.dtype))
