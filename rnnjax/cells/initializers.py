"""Initialisers of biases, eigenvalues and step sizes that set how long a state remembers."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.checks import check_size
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True)
class Chrono:
    r"""The chrono initialiser of a bias: memories of all lengths (Tallec & Ollivier, 2018).

    .. math::
        b_f \sim \log U(1, T - 1), \qquad b_i = -b_f

    where :math:`f` holds the old state, as an LSTM's forget gate or a GRU's :math:`z` does, and
    :math:`i` lets the new one in. Other gates begin at zero. Use it as ``bias_init`` of `LSTMCell`
    and its variants, `GRUCell` and `DiagonalLSTMCell`, which know their gates.

    Args:
        longest: :math:`T`, the longest range of dependencies, in steps.
        signs: for each gate 1, -1 or 0, the factor of the logarithm; the cell fills it in.

    Raises:
        InvalidInputError: ``longest`` is below 2, or the cell does not say which gates remember.

    >>> import rnnjax
    >>> cell = rnnjax.LSTMCell(4, bias_init=rnnjax.cells.Chrono(longest=1000))
    >>> i, f, g, o = cell.init(jax.random.key(0), input_size=3)["bias"].reshape(4, 4)
    >>> bool((i == -f).all()), bool((f >= 0).all()), float(o.sum())
    (True, True, 0.0)
    """

    longest: float
    signs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if (
            not isinstance(self.longest, int | float | np.number)
            or not 2 <= self.longest < math.inf
        ):
            raise InvalidInputError(f"longest must be 2 steps or more, but is {self.longest!r}")

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """Sample the bias; ``shape`` is ``(gates * hidden_size,)``."""
        if not self.signs:
            raise InvalidInputError(
                "Chrono needs a cell that says which gates remember, such as rnnjax.LSTMCell or "
                "rnnjax.GRUCell; give another bias_init, or signs, as in Chrono(100, (-1, 1, 0))"
            )
        # f = sigmoid(log u) = u / (1 + u) gives the time constant 1 / (1 - f) = 1 + u steps,
        # uniform between 2 and T. And i = sigmoid(-log u) = 1 - f: where the products are 0, the
        # new state is a weighted mean of the old one and the candidate.
        units = shape[-1] // len(self.signs)
        length = jax.random.uniform(key, (units,), dtype, 1, self.longest - 1)
        return jnp.concatenate([sign * jnp.log(length) for sign in self.signs])


def remembering(params: dict[str, Any], signs: tuple[int, ...]) -> dict[str, Any]:
    """Tell a bias that `Chrono` initialises which gates it has; return the parameters."""
    # The two biases of a gate are added, so the second one begins at 0.
    for name, own in (("bias", signs), ("recurrent_bias", (0,) * len(signs))):
        if name in params and isinstance(params[name].init, Chrono):
            init = dataclasses.replace(params[name].init, signs=own)
            params[name] = params[name]._replace(init=init)
    return params


@dataclasses.dataclass(frozen=True)
class Ring:
    r"""Eigenvalues sampled uniformly from a ring in the complex plane (Orvieto et al., 2023).

    For :math:`\lambda = \exp(-e^\nu + i e^\theta)` the rows are :math:`\nu`, :math:`\theta` and
    :math:`\log \gamma = \log \sqrt{1 - |\lambda|^2}`: the ``ring (3, state_size)`` of an `LRUCell`.

    Args:
        r_min: the smallest :math:`|\lambda|`.
        r_max: the largest; near 1 the state remembers long.
        max_phase: the largest angle; a small one favours slow oscillations.

    Raises:
        InvalidInputError: not 0 <= r_min < r_max <= 1, or ``max_phase`` is not above 0.

    >>> nu, theta, log_gamma = Ring(0.9, 0.99)(jax.random.key(0), (3, 100), jnp.float32)
    >>> sizes = jnp.exp(-jnp.exp(nu))
    >>> bool(sizes.min() > 0.899), bool(sizes.max() < 0.991)
    (True, True)
    """

    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * math.pi

    def __post_init__(self) -> None:
        values = self.r_min, self.r_max, self.max_phase
        real = all(isinstance(value, int | float | np.number) for value in values)
        if not (real and 0 <= self.r_min < self.r_max <= 1 and 0 < self.max_phase < math.inf):
            raise InvalidInputError(
                "a Ring must have 0 <= r_min < r_max <= 1 and max_phase > 0, but has "
                f"{self.r_min!r}, {self.r_max!r} and {self.max_phase!r}"
            )

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """Sample the ring; ``shape`` is ``(3, state_size)``."""
        # The area within a radius grows with its square: |lambda|^2 is uniform, not |lambda|.
        radius, phase = jax.random.uniform(key, (2, *shape[1:]), dtype)
        square = radius * (self.r_max**2 - self.r_min**2) + self.r_min**2
        square = jnp.clip(square, 1e-6, 1 - 1e-6)  # whose logarithms are finite
        phase = jnp.maximum(phase * self.max_phase, 1e-6)
        # |lambda| = exp(-e^nu) gives nu = log(-log |lambda|). With white inputs of variance 1 the
        # state has the variance gamma^2 (1 + |lambda|^2 + |lambda|^4 + ...) = gamma^2 /
        # (1 - |lambda|^2), which is to be 1. log1p, because 1 - |lambda|^2 rounds a small |lambda|.
        nu, log_gamma = jnp.log(-0.5 * jnp.log(square)), 0.5 * jnp.log1p(-square)
        return jnp.stack([nu, jnp.log(phase), log_gamma])


@dataclasses.dataclass(frozen=True)
class LegS:
    r"""The eigenvalues of HiPPO-LegS's normal part (Gu et al., 2022; Smith et al., 2023).

    It gives the eigenvalues with a positive imaginary part; all have the real part -1/2. The rows
    are :math:`\log 1/2` and :math:`\operatorname{Im} \lambda`: the ``eigenvalue (2, state_size)``
    of an `S5Cell`.

    Args:
        blocks: the number of equal blocks on the diagonal; each has the same eigenvalues.

    Raises:
        InvalidInputError: ``blocks`` is not 1 or more, or does not divide the states.

    >>> print(LegS()(jax.random.key(0), (2, 2), jnp.float32)[1].round(2))
    [0.56 4.6 ]
    """

    blocks: int = 1

    def __post_init__(self) -> None:
        check_size("blocks", self.blocks)

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """Compute the eigenvalues; ``shape`` is ``(2, state_size)``."""
        states, rest = divmod(shape[-1], self.blocks)
        if rest:
            raise InvalidInputError(
                f"blocks of LegS must divide the {shape[-1]} states, but are {self.blocks}"
            )
        # LegS is A[n, k] = -2 r[n] r[k] below the diagonal, with r[n] = sqrt(n + 1/2), and -(n + 1)
        # on it. Adding the outer product of r with itself leaves -r[n] r[k] below, -1/2 on the
        # diagonal and r[n] r[k] above: -1/2 plus an antisymmetric matrix, whose eigenvalues are
        # +- i w. Times i it is Hermitian with the eigenvalues w, sorted: the upper half is above 0.
        root = np.sqrt(np.arange(2 * states) + 0.5)
        above = np.triu(np.outer(root, root), 1)
        frequencies = np.linalg.eigvalsh(1j * (above - above.T))[states:]
        imag = jnp.asarray(np.tile(frequencies, self.blocks), dtype)
        return jnp.stack([jnp.full_like(imag, math.log(0.5)), imag])


def log_steps(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Sample log step sizes, uniform between those of 0.001 and 0.1 (Gu et al., 2022)."""
    return jax.random.uniform(key, shape, dtype, math.log(1e-3), math.log(1e-1))


def softplus_steps(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Sample the numbers whose softplus are the steps of `log_steps` (Gu & Dao, 2023).

    >>> steps = jax.nn.softplus(softplus_steps(jax.random.key(0), (100,), jnp.float32))
    >>> bool(steps.min() > 0.0009), bool(steps.max() < 0.11)
    (True, True)
    """
    # log(1 + e^x) = s has the solution x = log(e^s - 1) = s + log(1 - e^-s). The second form does
    # not overflow for a large s, and expm1 keeps the digits of a small one.
    steps = jnp.exp(log_steps(key, shape, dtype))
    return steps + jnp.log(-jnp.expm1(-steps))
