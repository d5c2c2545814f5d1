"""Mamba-2 (Dao & Gu, 2024), in the layout of transformers: ``Mamba2ForCausalLM``."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from experiments.language_models import blocks, mamba
from experiments.language_models.blocks import Params, Shapes
from experiments.language_models.folders import Fields
from experiments.language_models.mamba import EMBEDDING, HEAD
from rnnjax import InvalidInputError, MatrixCarry, Memory, causal_convolution, matrix_memory


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a model; ``heads * head_size`` channels, whose keys are of ``groups``."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    head_size: int
    state_size: int
    groups: int
    taps: int
    epsilon: float
    bias: bool
    convolution_bias: bool
    step_limit: tuple[float, float]
    residual_in_float32: bool
    tied: bool

    @property
    def channels(self) -> int:
        """The number of channels of all heads."""
        return self.heads * self.head_size

    @property
    def convolved(self) -> int:
        """The number of features of the convolution: the channels, the keys and the queries."""
        return self.channels + 2 * self.groups * self.state_size


def read_config(fields: Fields) -> Config:
    """Read what ``Mamba2Config`` writes."""
    fields.only("hidden_act", "silu", "swish")
    fields.only("rms_norm", True)
    fields.ignore(  # of training, and what the peer does not read: it multiplies by the gate first
        "chunk_size", "intermediate_size", "norm_before_gate", "rescale_prenorm_residual",
        "time_step_floor", "time_step_init_scheme", "time_step_max", "time_step_min",
        "time_step_rank", "time_step_scale",
    )  # fmt: skip
    config = Config(
        vocabulary=fields.size("vocab_size", 32768),
        width=fields.size("hidden_size", 4096),
        layers=fields.size("num_hidden_layers", 64),
        heads=fields.size("num_heads", 128),
        head_size=fields.size("head_dim", 64),
        state_size=fields.size("state_size", 128),
        groups=fields.size("n_groups", 8),
        taps=fields.size("conv_kernel", 4),
        epsilon=fields.number("layer_norm_epsilon", 1e-5),
        bias=fields.flag("use_bias", False),
        convolution_bias=fields.flag("use_conv_bias", True),
        step_limit=fields.pair("time_step_limit", (0.0, math.inf)),
        residual_in_float32=fields.flag("residual_in_fp32", True),
        tied=fields.flag("tie_word_embeddings", False),
    )
    inner = fields.number("expand", 2) * config.width
    if config.channels != int(inner) or config.heads % config.groups:
        raise InvalidInputError(
            f"num_heads {config.heads} of head_dim {config.head_size} must be expand * hidden_size "
            f"= {inner:g} in all, in n_groups {config.groups} that divide them; check config.json"
        )
    return config


def shapes(config: Config) -> Shapes:
    """Return the shape of every tensor in the file."""
    c, inner = config, config.channels
    layer = {
        "norm.weight": (c.width,),
        **blocks.linear_shapes(
            "mixer.in_proj", inner + c.convolved + c.heads, c.width, bias=c.bias
        ),
        "mixer.conv1d.weight": (c.convolved, 1, c.taps),
        **({"mixer.conv1d.bias": (c.convolved,)} if c.convolution_bias else {}),
        **{f"mixer.{name}": (c.heads,) for name in ("A_log", "D", "dt_bias")},
        "mixer.norm.weight": (inner,),
        **blocks.linear_shapes("mixer.out_proj", c.width, inner, bias=c.bias),
    }
    found = {EMBEDDING: (c.vocabulary, c.width), "backbone.norm_f.weight": (c.width,)}
    found |= {} if c.tied else {HEAD: (c.vocabulary, c.width)}
    for i in range(c.layers):
        found |= blocks.within(f"backbone.layers.{i}.", layer)
    return found


def begin(config: Config, batch: int, capacity: int = 0, dtype: Any = jnp.float32) -> Any:
    """Return the state before the first token: for each layer a window and a memory."""
    c, wide = config, blocks.wider(dtype)
    window = jnp.zeros((batch, c.taps - 1, c.convolved), wide)
    memory = MatrixCarry(jnp.zeros((batch, c.heads, c.head_size, c.state_size), wide))
    return [(window, memory)] * c.layers


def apply(
    config: Config, params: Params, tokens: jax.Array, carry: Any, resets: Any = None
) -> tuple[Any, jax.Array]:
    """Read ``tokens (time, batch)``; return the new carry, and the logits of what comes next."""
    return mamba.apply(config, params, tokens, carry, resets, mixer)


def mixer(
    config: Config, params: Params, x: jax.Array, carry: Any, resets: Any
) -> tuple[Any, jax.Array]:
    r"""Compute the block of the paper around its state space.

    .. math::
        S_t = \exp(-\Delta_t e^a) \, S_{t-1} + \Delta_t \, u_t B_t^\top, \qquad
        y_t = S_t C_t + d \, u_t
    """
    c, (window, memory) = config, carry
    z, u, step = jnp.split(
        blocks.linear(params, "in_proj", x), [c.channels, c.channels + c.convolved], axis=-1
    )
    window, u = causal_convolution(u, *blocks.taps(params, "conv1d"), window, resets=resets)
    u = jax.nn.silu(u.astype(x.dtype))
    u, key, query = jnp.split(u, [c.channels, c.channels + c.groups * c.state_size], axis=-1)
    u = u.reshape(*u.shape[:2], c.heads, c.head_size)
    key, query = (k.reshape(*k.shape[:2], c.groups, c.state_size) for k in (key, query))
    step = blocks.wide(blocks.softplus(step + params["dt_bias"]).clip(*c.step_limit))
    log_decay = -step * jnp.exp(blocks.wide(params["A_log"]))
    memory, y = matrix_memory(Memory(query, key, u, log_decay, beta=step), memory, resets=resets)
    y = y + blocks.wide(params["D"])[:, None] * u
    y = y.reshape(*y.shape[:2], c.channels) * jax.nn.silu(blocks.wide(z))
    y = blocks.rms_norm(params, "norm", y, c.epsilon, groups=c.groups)
    return (window, memory), blocks.linear(params, "out_proj", y)
