"""Residual blocks around a matrix memory, of which language models of today are made."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

import rnnjax.cells as cells
from rnnjax.cells.composite import CompositeCell, LayerRun

Carries = tuple[Any, Any]


def mamba2(hidden_size: int) -> "Block":
    """Mamba-2's block (Dao & Gu, 2024), twice as wide inside, with heads of 64 channels."""
    width = 2 * hidden_size
    return Block(hidden_size, cells.Mamba2Cell(width, heads=max(1, width // 64), state_size=64))


def gated_delta(hidden_size: int) -> "Block":
    """The gated delta rule's block (Yang et al., 2025), with heads of 64 values, or 32.

    Its cell gates and normalises what it reads once more.
    """
    heads = max(1, hidden_size // (32 if hidden_size % 64 else 64))
    return Block(hidden_size, cells.GatedDeltaNetCell(hidden_size, heads=heads))


@dataclasses.dataclass(frozen=True)
class Block(CompositeCell[Carries]):
    r"""A norm, a convolution over four steps, a memory, a gate, and a product, beside the inputs.

    .. math::
        u &= \text{norm}(x), \qquad h = \text{memory}(\text{silu}(\text{conv}(u))) \\
        y &= x + (\text{norm}(h) \odot \text{silu}(u W_g)) \, W_o

    ``norm`` divides by the root of the mean square and multiplies by gains. The inputs and outputs
    are ``(*batch, hidden_size)``; the carry is that of the convolution and that of the memory.

    >>> block = mamba2(32)
    >>> params = block.init(jax.random.key(0), 32)
    >>> carry, y = block.step(params, block.initial_carry((8,)), jnp.ones((8, 32)))
    >>> y.shape
    (8, 32)
    """

    hidden_size: int
    mixer: cells.Cell

    @property
    def convolution(self) -> cells.TemporalConvCell:
        """A product and a causal convolution, before the memory."""
        return cells.TemporalConvCell(self.mixer.output_size)

    @property
    def output_size(self) -> int:
        """The size of the inputs, because the outputs are added to them."""
        return self.hidden_size

    def init(self, key: jax.Array, input_size: int) -> dict[str, Any]:
        """Draw the parameters; ``input_size`` is ``hidden_size``."""
        keys, width = jax.random.split(key, 4), self.mixer.output_size
        draw = jax.nn.initializers.glorot_uniform()
        return {
            "norm": jnp.ones(self.hidden_size),
            "convolution": self.convolution.init(keys[0], self.hidden_size),
            "memory": self.mixer.init(keys[1], width),
            "gain": jnp.ones(width),
            "gate": draw(keys[2], (self.hidden_size, width)),
            "out": draw(keys[3], (width, self.hidden_size)),
        }

    def initial_carry(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> Carries:
        """Begin with an empty window and an empty memory."""
        first, second = self.convolution, self.mixer
        return first.initial_carry(batch_shape, dtype), second.initial_carry(batch_shape, dtype)

    def unroll_layers(
        self, run: LayerRun, params: Any, xs: Any, carry: Carries, key: jax.Array | None
    ) -> tuple[Carries, jax.Array]:
        """Run both cells over all steps, and the rest beside them."""
        normed = _norm(xs, params["norm"])
        window, ys = run(self.convolution, params["convolution"], normed, carry[0])
        memory, ys = run(self.mixer, params["memory"], jax.nn.silu(ys), carry[1])
        gated = _norm(ys, params["gain"]) * jax.nn.silu(normed @ params["gate"])
        return (window, memory), xs + gated @ params["out"]


def _norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    return gain * x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
