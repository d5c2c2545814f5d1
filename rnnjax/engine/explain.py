"""`explain`: what `unroll` would do, without doing it."""

import dataclasses
from typing import Any

import jax

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.cells.composite import Noise, over_layers
from rnnjax.engine.arguments import check_noise, checked
from rnnjax.engine.auto import Auto
from rnnjax.engine.method import Method, check_method
from rnnjax.engine.plan import known_platform
from rnnjax.engine.primitive import closes_over_tracers
from rnnjax.engine.steps import Steps

_PLAIN = "its plain steps, differentiated by JAX, because the cell closes over a traced value"


@dataclasses.dataclass(frozen=True)
class Explanation:
    """How each layer would run; its string is meant to be read.

    Attributes:
        layers: for each layer its cell, the shape of its inputs, and phrases on how it runs.
    """

    layers: tuple[tuple[Cell, tuple[int, ...], tuple[str, ...]], ...]

    def __str__(self) -> str:
        lines = []
        for cell, shape, phrases in self.layers:
            name = f"{type(cell).__name__}({getattr(cell, 'hidden_size', cell.output_size)})"
            lines += [f"{name} over inputs {shape}", *(f"- {phrase}" for phrase in phrases)]
        return "\n".join(lines)


def explain(
    cell: Cell,
    params: Params,
    xs: Any,
    carry: Carry | None = None,
    *,
    method: Method = Auto(),
    platform: str | None = None,
) -> Explanation:
    """Say which method and form `unroll` would run each layer by, and why; nothing is computed.

    Args:
        cell: as in `unroll`, and so are the other arguments; arrays can be given as
            ``jax.ShapeDtypeStruct``.
        params: see there.
        xs: see there.
        carry: see there.
        method: see there.
        platform: for which the program would be lowered: ``"cpu"``, ``"cuda"``, ``"rocm"``,
            ``"gpu"`` for either of these, or ``"tpu"``; None for that of JAX's first device.

    Raises:
        InvalidInputError: as `unroll` would; or ``platform`` is none that is known.

    >>> import rnnjax
    >>> cell = rnnjax.LSTMCell(hidden_size=5)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> print(explain(cell, params, jax.numpy.ones((10, 8, 3)), method=rnnjax.Scan()))
    LSTMCell(5) over inputs (10, 8, 3)
    - the cell's step at each time step, differentiated by JAX
    """
    layers, platform = [], known_platform(platform)

    def single(
        cell: Cell, params: Params, xs: Any, carry: Carry, noise: Noise, reverse: bool
    ) -> tuple[Carry, jax.Array]:
        check_method(cell, method)
        check_noise(cell, noise)

        # Traced, so that whatever `unroll` would refuse is refused here, in the same words.
        def run(params: Params, xs: Any, carry: Carry) -> tuple[Carry, jax.Array]:
            return method.run(cell, params, xs, carry, reverse, Steps())

        result = run(params, xs, carry)
        if closes_over_tracers(run, params, xs, carry):
            phrases = [_PLAIN]
        else:
            phrases = method.explain(cell, params, xs.shape, platform)
        layers.append((cell, xs.shape, (*phrases, *method.arithmetic(platform))))
        return result

    def whole(params: Params, xs: Any, carry: Carry | None) -> Any:
        xs, carry = checked(cell, params, xs, carry, None, method)
        return over_layers(single)(cell, params, xs, carry)

    jax.eval_shape(whole, params, xs, carry)
    return Explanation(tuple(layers))
