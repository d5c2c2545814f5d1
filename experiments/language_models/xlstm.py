"""xLSTM-7B (Beck et al., 2025), in the layout of transformers: ``xLSTMForCausalLM``."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from experiments.language_models import blocks
from experiments.language_models.blocks import Params, Shapes
from experiments.language_models.folders import Fields
from rnnjax import MatrixCarry, Memory, matrix_memory
from rnnjax.cells import StabilizedCarry

EMBEDDING, HEAD = "backbone.embeddings.weight", "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a model, where ``keys`` and ``values`` are of all heads, and its caps."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    keys: int
    values: int
    inner: int
    bias: bool
    epsilon: float
    norm_epsilon: float
    gate_cap: float
    logit_cap: float


def read_config(fields: Fields) -> Config:
    """Read what ``xLSTMConfig`` writes."""
    fields.ignore(  # of kernels, training and older versions; of others the tensors' names tell
        "mode", "chunkwise_kernel", "sequence_kernel", "step_kernel", "chunk_size", "head_dim",
        "max_inference_chunksize", "return_last_states", "autocast_kernel_dtype", "add_qk_norm",
        "norm_reduction_force_float32", "add_embedding_dropout", "add_forward_backend_padding",
        "cell_norm_eps", "force_bos_token_insert", "add_post_norm", "igate_bias_init_range",
        "mlstm_round_up_to_multiple_of", "add_post_blocks_norm", "add_out_norm",
        "tie_word_embeddings",
    )  # fmt: skip
    fields.only("weight_mode", "single")
    fields.only("inference_state_dtype", "float32")  # the peer rounds a state to another one
    width = fields.size("hidden_size", fields.take("embedding_dim", None) or 4096)
    multiple = fields.size("ffn_round_up_to_multiple_of", 64)
    inner = width * fields.number("ffn_proj_factor", 2.667)
    config = Config(
        vocabulary=fields.size("vocab_size", 50304),
        width=width,
        layers=fields.size("num_blocks", fields.size("num_hidden_layers", 32)),
        heads=fields.size("num_heads", 8),
        keys=int(width * fields.number("qk_dim_factor", 0.5)),
        values=int(width * fields.number("v_dim_factor", 1.0)),
        inner=int((inner + multiple - 1) // multiple) * multiple,
        bias=fields.flag("use_bias", False),
        epsilon=fields.number("eps", 1e-6),
        norm_epsilon=fields.number("norm_eps", 1e-6),
        gate_cap=fields.number("gate_soft_cap", 15.0),
        logit_cap=fields.number("output_logit_soft_cap", 30.0),
    )
    for size in (config.keys, config.values):
        fields.expect(size % config.heads == 0 < size, "num_heads", f"a divisor of {size}")
    return config


def shapes(config: Config) -> Shapes:
    """Return the shape of every tensor in the file."""
    c = config
    sizes: Shapes = {
        "mlstm_layer.q": (c.keys, c.width), "mlstm_layer.k": (c.keys, c.width),
        "mlstm_layer.v": (c.values, c.width), "mlstm_layer.ogate_preact": (c.values, c.width),
        "mlstm_layer.multihead_norm": (c.values,), "mlstm_layer.out_proj": (c.width, c.values),
        "ffn.proj_up_gate": (c.inner, c.width), "ffn.proj_up": (c.inner, c.width),
        "ffn.proj_down": (c.width, c.inner), "norm_mlstm": (c.width,), "norm_ffn": (c.width,),
    }  # fmt: skip
    layer = {f"{name}.weight": shape for name, shape in sizes.items()}
    layer |= {f"{name}.bias": shape[:1] for name, shape in sizes.items() if c.bias}
    for name in ("igate_preact", "fgate_preact"):
        layer |= blocks.linear_shapes(f"mlstm_layer.{name}", c.heads, c.width, bias=True)
    found: Shapes = {EMBEDDING: (c.vocabulary, c.width), HEAD: (c.vocabulary, c.width)}
    for i in range(c.layers):
        found |= blocks.within(f"backbone.blocks.{i}.", layer)
    return found | {"backbone.out_norm.weight": (c.width,)}


def begin(config: Config, batch: int, capacity: int = 0, dtype: Any = jnp.float32) -> Any:
    """Return the state before the first token: for each layer a memory and its stabilizer."""
    heads, rows = (batch, config.heads), config.values // config.heads + 1
    wide = blocks.wider(dtype)
    memory = jnp.zeros((*heads, rows, config.keys // config.heads), wide)
    return [StabilizedCarry(memory, jnp.zeros(heads, wide))] * config.layers


def apply(
    config: Config, params: Params, tokens: jax.Array, carry: Any, resets: Any = None
) -> tuple[Any, jax.Array]:
    """Read ``tokens (time, batch)``; return the new carry, and the logits of what comes next."""
    x, after = blocks.embed(params[EMBEDDING], tokens), []
    for i, state in enumerate(carry):
        layer = blocks.under(params, f"backbone.blocks.{i}.")
        y = blocks.rms_norm(layer, "norm_mlstm", x, config.norm_epsilon)
        state, y = mlstm(config, blocks.under(layer, "mlstm_layer."), y, state, resets)
        x = x + y
        y = blocks.rms_norm(layer, "norm_ffn", x, config.norm_epsilon)
        gate = jax.nn.silu(blocks.linear(layer, "ffn.proj_up_gate", y))
        x = x + blocks.linear(layer, "ffn.proj_down", gate * blocks.linear(layer, "ffn.proj_up", y))
        after.append(state)
    x = blocks.rms_norm(params, "backbone.out_norm", x, config.norm_epsilon)
    return after, blocks.capped(blocks.logits(params, HEAD, EMBEDDING, x), config.logit_cap)


def mlstm(
    c: Config, params: Params, x: jax.Array, carry: StabilizedCarry, resets: Any
) -> tuple[StabilizedCarry, jax.Array]:
    r"""Compute the block around the matrix memory, whose gates i and f are capped.

    .. math::
        C_t = \sigma(f_t) \, C_{t-1} + e^{i_t} \, [v_t, 1] \, k_t^\top, \qquad
        [c_t, n_t] = C_t q_t / \sqrt{d}, \qquad
        y_t = \sigma(o_t) \odot \text{norm}(c_t / (\max(|n_t|, 1) + \varepsilon e^{m_t}))

    All of the memory and of a read is divided by the exponential of the stabilizer :math:`m`.
    """
    q, k, v = (blocks.linear(params, n, x).reshape(*x.shape[:2], c.heads, -1) for n in "qkv")
    gates = (blocks.wide(blocks.linear(params, f"{n}gate_preact", x)) for n in "if")
    entry, forget = (blocks.capped(gate, c.gate_cap) for gate in gates)
    decay = jax.nn.log_sigmoid(forget)
    before, m = stabilizers(decay, entry, carry.stabilizer, resets)
    q = blocks.wide(q) * k.shape[-1] ** -0.5
    v = jnp.pad(v, [(0, 0)] * 3 + [(0, 1)], constant_values=1)
    step = Memory(q, k, v, decay + before - m, beta=jnp.exp(entry - m))
    last, read = matrix_memory(step, MatrixCarry(carry.memory), resets=resets)
    norm = jnp.maximum(jnp.abs(read[..., -1]), jnp.exp(-m)) + c.epsilon
    y = (read[..., :-1] / norm[..., None]).reshape(*x.shape[:2], c.values).astype(x.dtype)
    y = blocks.layer_norm(params, "multihead_norm", y, c.norm_epsilon, groups=c.heads)
    y = jax.nn.sigmoid(blocks.linear(params, "ogate_preact", x)) * y
    return StabilizedCarry(last.memory, m[-1]), blocks.linear(params, "out_proj", y)


def stabilizers(decay: Any, entry: Any, begin: Any, resets: Any) -> tuple[jax.Array, jax.Array]:
    r"""Return :math:`m_{t-1}` and :math:`m_t = \max(\log \sigma(f_t) + m_{t-1}, i_t)`.

    It bounds the exponentials, and is 0 before a document. As the maximum of sums is associative,
    a prefix of it over all steps takes as many rounds as the logarithm of their number.
    """
    first = jnp.zeros_like(decay, bool) if resets is None else resets[..., None]
    kept = jnp.where(first, -jnp.inf, decay)
    entry = jnp.where(first, jnp.maximum(decay, entry), entry).at[0].max(kept[0] + begin)

    def joined(one: Any, two: Any) -> Any:
        return one[0] + two[0], jnp.maximum(one[1] + two[0], two[1])

    m = jax.lax.associative_scan(joined, (kept, entry))[1]
    return jnp.where(first, 0, jnp.concatenate([begin[None], m[:-1]])), m
