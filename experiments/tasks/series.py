"""Series that an equation makes, and echo state networks that predict them.

Time comes first, as the library reads it. Echo states are computed in float64, because a readout
without a penalty sees the rounding of float32.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax


def mackey_glass(
    rng: Any, steps: int, rows: int = 1, *, tau: int = 17, substeps: int = 10, washout: int = 1000
) -> np.ndarray:
    r"""Series of the Mackey-Glass equation, one unit of time a step, ``(steps, rows)``.

    .. math::
        \dot{y}(t) = 0.2 \, y(t - \tau) / (1 + y(t - \tau)^{10}) - 0.1 \, y(t)

    It is solved by Euler's method with ``substeps`` steps a unit of time. With ten of them it is
    the series of Jaeger (2001) and of Voelker et al. (2019), before both squash it by ``tanh(y -
    1)``. Each row has another history, uniform between 1.1 and 1.3. The first ``washout`` steps are
    left out.
    """
    history = rng.uniform(1.1, 1.3, (tau * substeps, rows))
    now, series = np.full(rows, 1.2), np.empty((washout + steps, rows))
    for step in range(washout + steps):
        for i in range(step * substeps, (step + 1) * substeps):
            delayed = history[i % len(history)].copy()
            history[i % len(history)] = now
            now = now + (0.2 * delayed / (1 + delayed**10) - 0.1 * now) / substeps
        series[step] = now
    return series[washout:]


def narma10(rng: Any, steps: int, washout: int = 100) -> tuple[np.ndarray, np.ndarray]:
    r"""Random inputs, and the nonlinear moving average that they drive, each ``(steps,)``.

    .. math::
        y_{t+1} = 0.3 y_t + 0.05 y_t \textstyle\sum_{i=0}^{9} y_{t-i} + 1.5 u_{t-9} u_t + 0.1

    with :math:`u` uniform between 0 and 0.5. At step t :math:`u_t` is given and :math:`y_{t+1}` is
    asked. The recursion may diverge: a series that exceeds 1 is drawn again.
    """
    while True:
        u, y = rng.uniform(0, 0.5, washout + steps), np.zeros(washout + steps + 1)
        for t in range(9, washout + steps):
            past = y[t - 9 : t + 1]
            y[t + 1] = 0.3 * y[t] + 0.05 * y[t] * past.sum() + 1.5 * u[t - 9] * u[t] + 0.1
        if np.isfinite(y).all() and y.max() < 1:
            return u[washout:], y[washout + 1 :]


# ---- echo states


class Run(NamedTuple):
    """A reservoir that reads a series: the states, and how it goes on with its own output.

    Attributes:
        states: of the series that was given, ``(time, rows, units)``.
        free: ``(weights, steps) -> outputs (steps, rows)``: each is read as the next input.
    """

    states: np.ndarray
    free: Callable[[np.ndarray, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reservoir:
    """What a reservoir is drawn from.

    Attributes:
        units: how many.
        leak: of each unit.
        radius: the largest absolute eigenvalue of the recurrent weights.
        density: the share of recurrent weights that are not 0.
        scale: of the weights of the input, uniform between it and its opposite.
        bias: half of the units have a bias of this size, of either sign.
    """

    units: int
    leak: float
    radius: float
    density: float
    scale: float
    bias: float

    def biases(self, seed: int) -> np.ndarray:
        """The bias of each unit."""
        return self.bias * np.random.default_rng(seed).choice([0, 0, 1, -1], self.units)

    def draw(self, seed: int) -> tuple[rnnjax.Cell, Any]:
        """A cell of the library, and parameters for one input."""
        rng, shape = np.random.default_rng((seed, 1)), (self.units, self.units)
        weights = rng.normal(size=shape) * (rng.random(shape) < self.density)
        weights *= self.radius / np.abs(np.linalg.eigvals(weights)).max()
        kernel = rng.uniform(-self.scale, self.scale, (1, self.units))
        params = {"kernel": kernel, "recurrent_kernel": weights, "bias": self.biases(seed)}
        cell = rnnjax.LeakyRNNCell(self.units, leak=self.leak, param_dtype=np.float64)
        return cell, jax.tree.map(jnp.asarray, params)

    def run(self, xs: np.ndarray, seed: int) -> Run:
        """Read series ``(time, rows)`` by `rnnjax.unroll`."""
        with jax.enable_x64(True):
            cell, params = self.draw(seed)
            carry, states = rnnjax.unroll(cell, params, jnp.asarray(xs)[..., None])

        def free(weights: np.ndarray, steps: int) -> np.ndarray:
            def step(state: Any, _: Any) -> Any:
                carry, y = state
                output = y @ weights[:-1] + weights[-1]
                return cell.step(params, carry, output[:, None]), output

            with jax.enable_x64(True):
                return np.asarray(jax.lax.scan(step, (carry, states[-1]), None, steps)[1])

        return Run(np.asarray(states), free)

    def run_by_reservoirpy(self, xs: np.ndarray, seed: int) -> Run:
        """Compute it by `reservoirpy`, which draws its own weights of the same kind."""
        weights = importlib.import_module("reservoirpy.mat_gen")
        node = importlib.import_module("reservoirpy.nodes").Reservoir(
            self.units, lr=self.leak, sr=self.radius, rc_connectivity=self.density,
            Win=weights.uniform(low=-self.scale, high=self.scale), input_connectivity=1.0,
            bias=self.biases(seed), seed=seed,
        )  # fmt: skip

        def after(row: np.ndarray) -> np.ndarray:
            if node.initialized:
                node.reset()
            return np.asarray(node.run(row[:, None]))

        def free(weights: np.ndarray, steps: int) -> np.ndarray:
            outputs = np.empty((steps, xs.shape[1]))
            for i, row in enumerate(xs.T):
                y = after(row)[-1]
                for step in range(steps):
                    outputs[step, i] = y @ weights[:-1] + weights[-1]
                    y = node.step(outputs[step, i : i + 1])
            return outputs

        return Run(np.stack([after(row) for row in xs.T], axis=1), free)


def least_squares(features: np.ndarray, targets: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """The weights of features ``(time, n)`` and of 1 that predict targets, ``(n + 1,)``.

    By an orthogonal factorisation: equations of the squares of states would lose half of the
    digits. ``ridge`` penalises the square of each weight but the last.
    """
    ones, penalty = np.ones((len(features), 1)), np.sqrt(ridge) * np.eye(features.shape[1])
    rows = np.block([[features, ones], [penalty, 0 * penalty[:, :1]]])
    wanted = np.concatenate([targets, np.zeros(len(penalty))])
    return np.asarray(np.linalg.lstsq(rows, wanted, rcond=None)[0])


def ridge_of_reservoirpy(features: np.ndarray, targets: np.ndarray, ridge: float) -> np.ndarray:
    """Compute it by `reservoirpy`."""
    node = importlib.import_module("reservoirpy.nodes").Ridge(ridge=ridge)
    node.fit(features, targets[:, None])
    return np.concatenate([node.Wout[:, 0], np.ravel(node.bias)])
