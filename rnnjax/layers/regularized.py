"""Noise in the recurrence: dropout, zoneout and weight drop, all sampled before the loop."""

import dataclasses
from typing import Any

import jax

from rnnjax.cells.base import CarryT, Cell, Inputs, Params, PickLast
from rnnjax.cells.composite import CompositeCell, LayerRun, WrappedCell, beside
from rnnjax.cells.step import split_raw
from rnnjax.cells.validation import check_array, made_carry
from rnnjax.checks import brief
from rnnjax.engine.core.masking import StepMarks, Steps
from rnnjax.errors import InvalidInputError
from rnnjax.layers.dropout import Dropout, check_rate, factors


@dataclasses.dataclass(frozen=True)
class Regularized(WrappedCell[CarryT], CompositeCell[CarryT]):
    r"""A cell with noise in training, which `rnnjax.unroll` samples from its ``key``.

    Parameters and carry are those of the cell. Without a key, and in `step`, dropout and weight
    drop are off, and zoneout takes its expectation, as in its paper for prediction.

    .. math::
        h_{t-1} U &\to (m \odot h_{t-1}) \, (M \odot U) \\
        h_t &\to z_t \odot h_{t-1} + (1 - z_t) \odot h_t

    Args:
        cell: a single cell; in a `Stack`, wrap each cell separately.
        input_dropout: the dropout rate of the inputs, the same features at all steps of a call.
            Raw features, such as time gaps, are not dropped.
        recurrent_dropout: the dropout rate of the hidden state in the recurrent product, :math:`m`,
            the same units at all steps (Gal & Ghahramani, 2016).
        zoneout_hidden: the probability that a unit of ``carry.hidden`` keeps its old value,
            :math:`z_t`, sampled anew at each step (Krueger et al., 2017).
        zoneout_cell: the same for ``carry.cell``.
        weight_drop: the dropout rate of the entries of ``recurrent_kernel``, :math:`M`, sampled
            once per call for all rows (DropConnect: Wan et al., 2013; Merity et al., 2018).

    Raises:
        InvalidInputError: a rate is not in [0, 1), or the cell is a combination of cells or has no
            such carry or kernel. In `rnnjax.unroll`: the cell writes its own ``step``, or inputs to
            be dropped are a `OneHot`.

    >>> import rnnjax
    >>> cell = Regularized(rnnjax.LSTMCell(5), recurrent_dropout=0.2, zoneout_cell=0.1)
    >>> params, xs = cell.init(jax.random.key(0), input_size=3), jax.numpy.ones((10, 8, 3))
    >>> _, ys = rnnjax.unroll(cell, params, xs)  # prediction
    >>> _, noisy = rnnjax.unroll(cell, params, xs, key=jax.random.key(1))  # training
    >>> bool(jax.numpy.allclose(ys, noisy))
    False
    """

    cell: Cell[CarryT]
    _: dataclasses.KW_ONLY
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout_hidden: float = 0.0
    zoneout_cell: float = 0.0
    weight_drop: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.cell, Cell) or isinstance(self.cell, CompositeCell):
            raise InvalidInputError(
                f"Regularized needs a single cell such as rnnjax.LSTMCell(50), but got "
                f"{brief(self.cell)}; in a Stack, wrap each cell by itself"
            )
        for field in dataclasses.fields(self):
            if field.name != "cell":
                check_rate(field.name, getattr(self, field.name))
        carry = jax.eval_shape(lambda: made_carry(self.cell, ()))
        for name in self.zoneout:
            if not hasattr(carry, name):
                raise InvalidInputError(
                    f"zoneout_{name} needs a carry with a field {name!r}, but that of "
                    f"{brief(self.cell)} is {brief(carry)}; leave it out"
                )
            if name not in getattr(carry, "free", (name,)):
                raise InvalidInputError(
                    f"zoneout_{name} keeps units of a leaf that depends on others in "
                    f"{brief(self.cell)}; leave it out, and take zoneout_hidden"
                )

    @property
    def zoneout(self) -> dict[str, float]:
        """The rates of zoneout above 0, by field of the carry."""
        rates = {"hidden": self.zoneout_hidden, "cell": self.zoneout_cell}
        return {name: rate for name, rate in rates.items() if rate}

    @property
    def is_stochastic(self) -> bool:
        """Whether any rate is above 0."""
        return any(getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "cell")

    def last_output(self, carry: Any, ys: jax.Array, pick: PickLast) -> jax.Array:
        """Return the last output of the cell."""
        return self.cell.last_output(carry, ys, pick)

    def init(self, key: jax.Array, input_size: int) -> Params:
        """Initialise the parameters of the wrapped cell."""
        return self.cell.init(key, input_size)

    def step(self, params: Params, carry: CarryT, x: Inputs) -> tuple[CarryT, jax.Array]:
        """Run one step as in prediction: with the expectation of zoneout, and no other noise."""
        new, y = self.cell.step(params, carry, x)
        return Steps(leaks=self.zoneout).mask(carry, new, y, StepMarks(), self.cell.output)

    def unroll_layers(
        self, run: LayerRun, params: Params, xs: Any, carry: CarryT, key: jax.Array | None
    ) -> tuple[CarryT, jax.Array]:
        """Sample the noise, and run the cell with it."""
        if key is None:
            return run(self.cell, params, xs, carry, noise=Steps(leaks=self.zoneout))
        # Five, whatever is on: with one kind more or less the others are drawn as before. Only a
        # zoneout of the cell has another key without that of the hidden state.
        keys = iter(jax.random.split(key, 5))
        xs = self._drop_inputs(next(keys), xs)
        params = self._drop_weights(next(keys), params)
        return run(self.cell, params, xs, carry, noise=self._noise(keys, xs.shape[:-1]))

    def _drop_inputs(self, key: jax.Array, xs: Any) -> Any:
        xs, raw = split_raw(self, xs)
        if self.input_dropout:
            advice = "set ids to -1 to drop them, or give jax.nn.one_hot(ids, size)"
            check_array("input_dropout", xs, advice)
        dropped = Dropout(self.input_dropout, per="sequence").apply(key, xs)
        return beside(self.cell, dropped, raw)

    def _drop_weights(self, key: jax.Array, params: Params) -> Params:
        if not self.weight_drop:
            return params
        if "recurrent_kernel" not in params:
            raise InvalidInputError(
                f"weight_drop needs a recurrent_kernel, but the parameters of "
                f"{brief(self.cell)} are {sorted(params)}; leave it out"
            )
        # Dropped before the loop: every method, and its gradient, sees a kernel like any other.
        kernel = params["recurrent_kernel"]
        scaled = kernel * factors(key, self.weight_drop, kernel.shape).astype(kernel.dtype)
        return {**params, "recurrent_kernel": scaled}

    def _noise(self, keys: Any, steps: tuple[int, ...]) -> Steps:
        """Sample the noise for ``steps``, which is (time, *batch)."""
        carry = jax.eval_shape(lambda: self.cell.initial_carry(steps[1:]))
        key, *zoneout_keys = keys
        recurrent = None
        if self.recurrent_dropout:
            leaf = None if self.cell.carry is None else self.cell.recurrent
            units = () if leaf is None else self.cell.carry_shapes[leaf]  # none: unroll refuses
            # No axis of time: with units dropped anew at each step, (1 - rate)^n of a state would
            # pass n products.
            recurrent = factors(key, self.recurrent_dropout, (*steps[1:], *units))
        zoneout = {
            name: jax.random.bernoulli(key, rate, (steps[0], *getattr(carry, name).shape))
            for key, (name, rate) in zip(zoneout_keys, self.zoneout.items(), strict=False)
        }
        return Steps(StepMarks(zoneout=zoneout), recurrent=recurrent)
