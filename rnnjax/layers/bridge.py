"""The first carry of a decoder from the last carry of an encoder."""

import dataclasses

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.composite import check_free, vector_sizes
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True)
class Bridge:
    r"""Computes the first carry of one network from the last carry of another.

    .. math::
        t = \tanh([s_1, \dots, s_n] W_t + b_t) \quad \text{for each leaf } t

    with :math:`s_i` all leaves of the source's carry: hidden and cell states, of both directions of
    a `Bidirectional`, of all layers of a `Stack`. Cho et al. (2014) initialise their decoder this
    way. The two networks may differ in kind and in size.

    Args:
        source: the cell whose carry is read.
        target: the cell whose carry is computed.

    Raises:
        InvalidInputError: a leaf of a carry is not one vector per row, or the target's carry may
            not hold arbitrary numbers (`SLSTMCell`).

    >>> import rnnjax
    >>> encoder = rnnjax.Bidirectional(rnnjax.GRUCell(4))
    >>> decoder = rnnjax.Stack([rnnjax.LSTMCell(5)] * 2)
    >>> bridge = Bridge(encoder, decoder)
    >>> params = bridge.init(jax.random.key(0))
    >>> carry = bridge(params, encoder.initial_carry((8,)))
    >>> carry[1].cell.shape
    (8, 5)
    """

    source: Cell
    target: Cell

    def __post_init__(self) -> None:
        self._sizes()
        check_free("a Bridge", self.target)

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        """Initialise one Glorot uniform kernel per target leaf, side by side, and a zero bias."""
        sources, targets = self._sizes()
        size = sum(sources)
        draw = jax.nn.initializers.glorot_uniform()
        keys = jax.random.split(key, len(targets))
        kernels = [draw(k, (size, t)) for k, t in zip(keys, targets, strict=True)]
        return {"kernel": jnp.concatenate(kernels, axis=1), "bias": jnp.zeros(sum(targets))}

    def __call__(self, params: Params, carry: Carry) -> Carry:
        """Compute the target's carry.

        Args:
            params: as `init` returns them.
            carry: the source's carry, every leaf ``(*batch, size)``.
        """
        sources, targets = self._sizes()
        leaves = jax.tree.leaves(carry)
        if [leaf.shape[-1] for leaf in leaves] != sources:
            raise InvalidInputError(
                f"carry must be that of the source, with leaves of {sources} units, but has "
                f"{[leaf.shape for leaf in leaves]}; give the carry that unroll returned"
            )
        flat = jnp.tanh(jnp.concatenate(leaves, axis=-1) @ params["kernel"] + params["bias"])
        ends = [sum(targets[:i]) for i in range(1, len(targets))]
        like = jax.tree.structure(self.target.initial_carry())
        return jax.tree.unflatten(like, jnp.split(flat, ends, axis=-1))

    def _sizes(self) -> tuple[list[int], list[int]]:
        """Return the sizes of the leaves of both carries."""
        source, target = (vector_sizes("a Bridge joins", c) for c in (self.source, self.target))
        return source, target
