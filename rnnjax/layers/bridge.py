"""One network's carry from another's: an encoder's last state begins a decoder."""

import dataclasses

import jax
import jax.numpy as jnp

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.composite import check_free, vector_sizes
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True)
class Bridge:
    r"""Makes the first carry of one network of the last carry of another, whatever the two are.

    .. math::
        t = \tanh([s_1, \dots, s_n] W_t + b_t) \quad \text{for each leaf } t

    with :math:`s_i` all leaves of the source's carry: of both directions of a `Bidirectional`, of
    all layers of a `Stack`, hidden and cell states. Cho et al. (2014) begin their decoder so. The
    sizes of the two networks need not agree.

    Args:
        source: the cell whose carry is read.
        target: the cell whose carry is made.

    Raises:
        InvalidInputError: a leaf of either carry is not a vector of each row, or the target's may
            not hold any numbers (`SLSTMCell`).

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
        """Draw the parameters: one Glorot uniform kernel for each leaf, side by side, and zeros."""
        sources, targets = self._sizes()
        size = sum(sources)
        draw = jax.nn.initializers.glorot_uniform()
        keys = jax.random.split(key, len(targets))
        kernels = [draw(k, (size, t)) for k, t in zip(keys, targets, strict=True)]
        return {"kernel": jnp.concatenate(kernels, axis=1), "bias": jnp.zeros(sum(targets))}

    def __call__(self, params: Params, carry: Carry) -> Carry:
        """The target's carry.

        Args:
            params: as `init` returns them.
            carry: of the source, every leaf ``(*batch, size)``.
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
        """Of the leaves of both carries."""
        source, target = (vector_sizes("a Bridge joins", c) for c in (self.source, self.target))
        return source, target
