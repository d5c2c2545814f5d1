"""Mamba (Gu & Dao, 2023) and Falcon-Mamba (Zuo et al., 2024), in the layout of transformers."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from experiments.language_models import blocks
from experiments.language_models.blocks import Mixed, Params, Shapes
from experiments.language_models.folders import Fields
from rnnjax import causal_convolution, linear_recurrence

EMBEDDING, HEAD = "backbone.embeddings.weight", "lm_head.weight"
CHUNK = 16  # steps whose states are in memory at a time: so few that they stay in a core's cache


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a model. ``mixer_epsilon`` is of Falcon-Mamba's norms of the step and keys."""

    vocabulary: int
    width: int
    channels: int
    layers: int
    state_size: int
    step_rank: int
    taps: int
    epsilon: float
    mixer_epsilon: float | None
    bias: bool
    convolution_bias: bool
    residual_in_float32: bool
    tied: bool


def read_config(fields: Fields) -> Config:
    """Read what ``MambaConfig`` and ``FalconMambaConfig`` write."""
    fields.only("hidden_act", "silu", "swish")
    fields.only("rms_norm", True)
    fields.only("ssm_cfg", {})
    fields.ignore(  # of training, and older names of what is read below
        "d_inner", "d_model", "expand", "fused_add_norm", "n_layer", "pad_vocab_size_multiple",
        "rescale_prenorm_residual", "time_step_floor", "time_step_init_scheme", "time_step_max",
        "time_step_min", "time_step_scale", "use_associative_scan", "use_falcon_mambapy",
        "use_mambapy",
    )  # fmt: skip
    width, rank = fields.size("hidden_size", 768), fields.take("time_step_rank", "auto")
    falcon = fields.values["model_type"] == "falcon_mamba"
    return Config(
        vocabulary=fields.size("vocab_size", 50280),
        width=width,
        channels=fields.size("intermediate_size", int(fields.number("expand", 2) * width)),
        layers=fields.size("num_hidden_layers", 32),
        state_size=fields.size("state_size", 16),
        step_rank=math.ceil(width / 16) if rank == "auto" else fields.size("time_step_rank"),
        taps=fields.size("conv_kernel", 4),
        epsilon=fields.number("layer_norm_epsilon", 1e-5),
        mixer_epsilon=fields.number("mixer_rms_eps", 1e-6) if falcon else None,
        bias=fields.flag("use_bias", False),
        convolution_bias=fields.flag("use_conv_bias", True),
        residual_in_float32=fields.flag("residual_in_fp32", True),
        tied=fields.flag("tie_word_embeddings", True),
    )


def shapes(config: Config) -> Shapes:
    """Return the shape of every tensor in the file."""
    c = config
    layer = {
        "norm.weight": (c.width,),
        **blocks.linear_shapes("mixer.in_proj", 2 * c.channels, c.width, bias=c.bias),
        "mixer.conv1d.weight": (c.channels, 1, c.taps),
        **({"mixer.conv1d.bias": (c.channels,)} if c.convolution_bias else {}),
        **blocks.linear_shapes("mixer.x_proj", c.step_rank + 2 * c.state_size, c.channels),
        **blocks.linear_shapes("mixer.dt_proj", c.channels, c.step_rank, bias=True),
        "mixer.A_log": (c.channels, c.state_size),
        "mixer.D": (c.channels,),
        **blocks.linear_shapes("mixer.out_proj", c.width, c.channels, bias=c.bias),
    }
    found = {EMBEDDING: (c.vocabulary, c.width), "backbone.norm_f.weight": (c.width,)}
    found |= {} if c.tied else {HEAD: (c.vocabulary, c.width)}
    for i in range(c.layers):
        found |= blocks.within(f"backbone.layers.{i}.", layer)
    return found


def begin(config: Config, batch: int, capacity: int = 0, dtype: Any = jnp.float32) -> Any:
    """Return the state before the first token: for each layer a window and the channels' states."""
    c, wide = config, blocks.wider(dtype)
    window = jnp.zeros((batch, c.taps - 1, c.channels), wide)
    return [(window, jnp.zeros((batch, c.channels, c.state_size), wide))] * c.layers


def apply(
    config: Any, params: Params, tokens: jax.Array, carry: Any, resets: Any = None, mix: Any = None
) -> tuple[Any, jax.Array]:
    """Read ``tokens (time, batch)``; return the new carry, and the logits of what comes next.

    Mamba-2 has the same layers around a ``mix`` of its own.
    """
    x, after = blocks.embed(params[EMBEDDING], tokens), []
    for i, state in enumerate(carry):
        layer = blocks.under(params, f"backbone.layers.{i}.")
        y = blocks.rms_norm(layer, "norm", x.astype(layer["norm.weight"].dtype), config.epsilon)
        state, y = (mix or mixer)(config, blocks.under(layer, "mixer."), y, state, resets)
        x = (blocks.wide(x) if config.residual_in_float32 else x) + y
        after.append(state)
    x = blocks.rms_norm(params, "backbone.norm_f", x, config.epsilon)
    return after, blocks.logits(params, HEAD, EMBEDDING, x)


def mixer(config: Config, params: Params, x: jax.Array, carry: Any, resets: Any) -> Mixed:
    """Compute the block of the paper around its state space."""
    c, (window, states) = config, carry
    u, z = jnp.split(blocks.linear(params, "in_proj", x), 2, axis=-1)
    window, u = causal_convolution(u, *blocks.taps(params, "conv1d"), window, resets=resets)
    u = jax.nn.silu(u.astype(x.dtype))
    step, key, query = jnp.split(
        blocks.linear(params, "x_proj", u), [c.step_rank, c.step_rank + c.state_size], axis=-1
    )
    if c.mixer_epsilon is not None:
        parts = (blocks.normed(part, c.mixer_epsilon) for part in (step, key, query))
        step, key, query = (part.astype(x.dtype) for part in parts)
    step = blocks.product(step, params["dt_proj.weight"])
    step = blocks.softplus(step + blocks.wide(params["dt_proj.bias"]))
    states, y = state_space(params["A_log"], (step, key, query, u), states, resets)
    y = y + blocks.wide(params["D"]) * u
    return (window, states), blocks.linear(params, "out_proj", y * jax.nn.silu(z))


# --8<-- [start:model]
def state_space(log_decay: jax.Array, inputs: Any, states: jax.Array, resets: Any) -> Any:
    r"""Compute the last states ``(batch, channels, state_size)`` and the output of each step.

    .. math::
        h_t = \exp(-\Delta_t e^a) \odot h_{t-1} + \Delta_t \, u_t B_t^\top, \qquad y_t = h_t C_t

    All states of a long text would not fit into memory. So they are computed by chunks of steps,
    and those of a chunk again for a gradient (`jax.checkpoint`).
    """
    rate = -jnp.exp(blocks.wide(log_decay))

    def chunk(states: jax.Array, at: Any) -> Any:
        (step, key, query, u), begun = at
        drive = (step * u)[..., None] * key[..., None, :]
        decay = jnp.exp(step[..., None] * rate)
        states, found = linear_recurrence(decay, drive, states, resets=begun)
        return states, (found.astype(query.dtype) * query[..., None, :]).sum(-1)

    chunk = jax.checkpoint(chunk, prevent_cse=False)
    whole = len(inputs[0]) // CHUNK * CHUNK
    parts = []
    if whole:
        cut = jax.tree.map(lambda x: x[:whole].reshape(-1, CHUNK, *x.shape[1:]), (inputs, resets))
        states, y = jax.lax.scan(chunk, states, cut)
        parts.append(y.reshape(whole, *y.shape[2:]))
    if whole < len(inputs[0]):
        states, y = chunk(states, jax.tree.map(lambda x: x[whole:], (inputs, resets)))
        parts.append(y)
    return states, jnp.concatenate(parts)
    # --8<-- [end:model]
