"""Networks of published tables that are trained: a Legendre memory, and a GRU over 40 numbers."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg

import rnnjax
from rnnjax.training import Silent, fit, minibatches

# ---- Mackey-Glass, as Voelker et al. (2019) predict it


@functools.cache
def legendre(order: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    r"""One step of the memory of the last ``theta`` steps: :math:`m' = m A + u B`.

    The Legendre delay of Voelker et al. (2019), held over a step: the exponential of ``[[A, B], [0,
    0]]`` has both. :math:`A` is returned transposed, as rows are multiplied with it.
    """
    i = np.arange(order)
    signs = np.where(i[:, None] < i, -1.0, (-1.0) ** (i[:, None] - i + 1))
    a, b = (2 * i[:, None] + 1) * signs / theta, (2 * i + 1) * (-1.0) ** i / theta
    both = np.zeros((order + 1, order + 1))
    both[:order] = np.concatenate([a, b[:, None]], axis=1)
    held = scipy.linalg.expm(both)
    return held[:order, :order].T.astype(np.float32), held[:order, order].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class LMUCell(rnnjax.Cell[rnnjax.LSTMCarry]):
    r"""Legendre memory unit (Voelker, Kajic & Eliasmith, 2019).

    .. math::
        u &= x e_x + h e_h + m e_m + b_u \\
        m' &= A m + B u, \qquad h' = \tanh(x W + h U + m' V + b)

    A memory of ``order`` numbers, the cell's second leaf, holds what :math:`u` was in the last
    ``theta`` steps. :math:`e_x`, :math:`e_h` are the last columns of ``kernel`` and
    ``recurrent_kernel``.
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    order: int = 4
    theta: float = 4.0

    carry = rnnjax.LSTMCarry
    gates = ("h",)
    coupling = rnnjax.Coupling.ANY
    carry_shapes = property(lambda self: {"hidden": (self.hidden_size,), "cell": (self.order,)})
    loop = property(lambda self: {"memory_kernel": (self.order, self.hidden_size)})

    def parameters(self, input_size: int) -> dict[str, rnnjax.Param]:
        """One column more for :math:`u`, drawn with the rest; the memory is not in it at first."""
        params, units = super().parameters(input_size), self.hidden_size
        glorot, lecun = jax.nn.initializers.glorot_normal(), jax.nn.initializers.lecun_uniform()

        def wider(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            keys, rows = jax.random.split(key), shape[0]
            parts = glorot(keys[0], (rows, units), dtype), lecun(keys[1], (rows, 1), dtype)
            return jnp.concatenate(parts, axis=1)

        for name in ("kernel", "recurrent_kernel"):
            shape = (*params[name].shape[:1], units + 1)
            params[name] = params[name]._replace(shape=shape, init=wider)
        params["memory_kernel"] = params["memory_kernel"]._replace(init=glorot)
        params["bias"] = params["bias"]._replace(shape=(units + 1,))
        return {**params, "memory_encoder": rnnjax.Param((self.order,), "zeros")}

    def update(self, params: Any, x: jax.Array, carry: rnnjax.LSTMCarry) -> rnnjax.LSTMCarry:
        """Compute the new memory, and from it the new state."""
        a, b = (jnp.asarray(each, x.dtype) for each in legendre(self.order, self.theta))
        u = x[..., -1:] + (carry.cell * params["memory_encoder"]).sum(-1, keepdims=True)
        memory = (carry.cell[..., None] * a).sum(-2) + u * b
        hidden = jnp.tanh(x[..., :-1] + memory @ params["memory_kernel"])
        return rnnjax.LSTMCarry(hidden, memory)


def predict_ahead(
    layers: list[rnnjax.Cell], series: dict[str, np.ndarray], ahead: int, updates: int, seed: int
) -> float:
    """Train layers to say where each series is ``ahead`` steps later: the NRMSE of the test part.

    All training series are in each update, as in Voelker et al. (2019), where Adam stays at 0.001.
    Here it begins at 0.005 and falls to 0, which takes fewer updates. The parameters with the
    lowest validation loss, of every tenth update, are tested.

    Args:
        layers: the cells, from the input to a linear readout.
        series: ``train``, ``validation`` and ``test``, each ``(time, rows)``.
        ahead: steps.
        updates: of the parameters.
        seed: of them.
    """
    stack, keys = rnnjax.Stack(layers), jax.random.split(jax.random.key(seed))

    def outputs(params: Any, xs: jax.Array) -> jax.Array:
        ys = rnnjax.unroll(stack, params["cell"], xs[:-ahead, :, None])[1]
        return (ys @ params["kernel"])[..., 0] + params["bias"]

    def loss_fn(params: Any, xs: jax.Array, key: Any = None) -> jax.Array:
        return jnp.square(outputs(params, xs) - xs[ahead:]).mean()

    measured, parts = jax.jit(loss_fn), {k: jnp.asarray(v, jnp.float32) for k, v in series.items()}
    glorot = jax.nn.initializers.glorot_uniform()
    params = {
        "cell": stack.init(keys[0], 1), "kernel": glorot(keys[1], (stack.output_size, 1)),
        "bias": jnp.zeros(()),
    }  # fmt: skip
    each, rate = min(10, updates), optax.cosine_decay_schedule(5e-3, updates)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    found = fit(
        loss_fn, params, adam, lambda _: iter([parts["train"]] * each),
        updates // each,
        key=keys[1], hooks=[Silent()], steps_per_dispatch=1,
        evaluate=lambda params: {"validation_loss": measured(params, parts["validation"])},
    ).params  # fmt: skip
    targets = series["test"][ahead:]  # the error in root mean squares of what is asked
    return float(np.sqrt(measured(found, parts["test"]) / np.square(targets).mean()))


# ---- MNIST-1D (Greydanus & Kobak, 2024; first in 2020)

LENGTH, NUMBERS = 12, 40  # of a template, and of what is made of it


def digits_1d(rng: Any, templates: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers ``(40, count)`` made of templates ``(classes, 12)``, and of which each is made.

    As the paper describes it: a template gets 36 to 60 zeros behind it, is stretched to 72 numbers,
    multiplied by 0.8 to 1.2 and moved by up to 48 places, round the end. Where it is 0 comes noise
    of a standard deviation of 0.25, smoothed over two places, and everywhere 0.02 of noise; then a
    slope of up to 0.375, and 40 numbers are read off. All together have mean 0 and deviation 1.
    """
    labels, made = np.arange(count) % len(templates), []
    nearby = np.arange(-8, 9)
    smooth = np.exp(-(nearby**2) / 8) / np.exp(-(nearby**2) / 8).sum()
    for label in labels:
        padded = np.concatenate([templates[label] + 1e-8, np.zeros(rng.integers(36, 61))])
        places = LENGTH + 60
        x = _stretched(padded, places) * rng.uniform(0.8, 1.2)
        x = np.roll(x, rng.integers(0, 48))
        noise = np.convolve(np.pad(0.25 * rng.normal(size=places), 8, "symmetric"), smooth, "valid")
        x = np.where(x == 0, noise, x) + 0.02 * rng.normal(size=places)
        x = x - rng.uniform(-0.375, 0.375) * np.linspace(-0.5, 0.5, places)
        made.append(_stretched(x, NUMBERS))
    xs, order = np.stack(made, axis=1), rng.permutation(count)
    return ((xs - xs.mean()) / xs.std())[:, order].astype(np.float32), labels[order]


def _stretched(x: np.ndarray, places: int) -> np.ndarray:
    return np.interp(np.linspace(0, 1, places), np.linspace(0, 1, len(x)), x)


def classify_1d(units: int, parts: dict[str, Any], updates: int, seed: int) -> float:
    """Train a GRU of both directions: the share of right answers in the test part, in per cent.

    The authors' network and training: a linear readout of the outputs of all 40 steps, batches of
    100, Adam at 0.01 for 6,000 updates, of which the last is tested.

    Args:
        units: of each direction; theirs has 6.
        parts: ``train`` and ``test``, each numbers ``(40, rows)`` and labels ``(rows,)``.
        updates: of the parameters.
        seed: of them, and of the batches.
    """
    cell, keys = rnnjax.Bidirectional(rnnjax.GRUCell(units)), jax.random.split(jax.random.key(seed))

    def logits(params: Any, xs: jax.Array) -> jax.Array:
        ys = rnnjax.unroll(cell, params["cell"], xs[..., None])[1]
        return jnp.einsum("tru,tuc->rc", ys, params["kernel"]) + params["bias"]

    def loss_fn(params: Any, batch: Any, key: Any) -> jax.Array:
        found = logits(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(found, batch[1]).mean()

    lecun, inputs = jax.nn.initializers.lecun_uniform(), NUMBERS * cell.output_size
    params = {
        "cell": cell.init(keys[0], 1), "bias": jnp.zeros(10),
        "kernel": lecun(keys[1], (inputs, 10)).reshape(NUMBERS, cell.output_size, 10),
    }  # fmt: skip
    batches = minibatches(parts["train"], 100, axis=(1, 0), seed=seed)
    epochs = updates * 100 // len(parts["train"][1])
    found = fit(loss_fn, params, optax.adam(1e-2), batches, epochs, key=keys[1], hooks=[Silent()])
    xs, labels = parts["test"]
    return float(100 * (logits(found.params, jnp.asarray(xs)).argmax(axis=-1) == labels).mean())
