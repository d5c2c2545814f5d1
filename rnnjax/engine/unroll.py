"""`unroll`: check the arguments, choose the method, run the cell over the sequence; `explain`."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells.base import (
    Carry,
    Cell,
    CompositeCell,
    Inputs,
    Params,
    as_inputs,
    at_least_float32,
)
from rnnjax.engine.fused import Fused
from rnnjax.engine.method import Method
from rnnjax.engine.scan import Scan
from rnnjax.errors import InvalidInputError


@dataclasses.dataclass(frozen=True)
class Auto(Method):
    """Choose for each layer: `Fused` where it can serve the cell, else `Scan`.

    A sequence of one step has nothing to take out of the loop, so it runs on `Scan`, which then
    needs no loop: at LSTM(50), batch 1, forward and backward, this compiles and runs in 0.93 of the
    time.
    """

    def refusal(self, cell: Cell) -> str | None:
        """Nothing is refused."""
        return None

    def choose(self, cell: Cell, num_steps: int = 2) -> Method:
        """Return the method that runs ``cell`` over so many steps.

        >>> from rnnjax import GRUCell
        >>> Auto().choose(GRUCell(4)) == Fused()
        True
        >>> Auto().choose(GRUCell(4, reset_after=False))
        Scan()
        """
        return Scan() if num_steps == 1 or Fused().refusal(cell) else Fused()

    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` by the method chosen."""
        return self.choose(cell, len(xs)).run(cell, params, xs, carry, reverse)

    def explain(self, cell: Cell, params: Params, shape: tuple[int, ...]) -> list[str]:
        """Which method is chosen, why, and how that would run."""
        chosen = self.choose(cell, shape[0])
        reason = Fused().refusal(cell)
        if reason:
            why = f"Scan(), because {reason}"
        elif shape[0] == 1:
            why = "Scan(), because a single step has nothing to take out of a loop"
        else:
            why = "Fused(), because the cell's step splits"
        return [f"chose {why}", *chosen.explain(cell, params, shape)]


def unroll(
    cell: Cell,
    params: Params,
    xs: Inputs,
    carry: Carry | None = None,
    *,
    reverse: bool = False,
    method: Method = Auto(),
) -> tuple[Carry, jax.Array]:
    """Run a cell, or a stack of them, over a sequence.

    Equal to this loop, in outputs and gradients, whatever the method::

        for t in range(len(xs)):              # from the last step to the first with reverse
            carry, ys[t] = cell.step(params, carry, xs[t])

    State goes in and comes out. Feeding the carry back is Keras's ``stateful=True``; leaving it out
    is ``reset_states()``; ``jax.lax.stop_gradient`` on it truncates backpropagation through time.

    Args:
        cell: what one time step computes.
        params: the cell's parameters, as ``cell.init`` returns them.
        xs: ``(time, *batch, input_size)``, time first; usually one batch axis. One-hot vectors can
            be given as ``rnnjax.OneHot(ids, input_size)``.
        carry: the state before the first step; left out, ``cell.initial_carry(batch)`` in float32
            or the parameters' type if that is wider.
        reverse: run from the last step to the first. ``ys[t]`` still belongs to ``xs[t]``.
        method: how to run: ``Scan()``, ``Fused()`` or ``Auto()``. All give the same numbers; one
            that is named either runs or raises.

    Returns:
        the carry after the last step that ran, and ``ys (time, *batch, output_size)``.

    Raises:
        InvalidInputError: an argument has the wrong rank, features, structure or batch, or the
            named method cannot run this cell.

    >>> import rnnjax
    >>> cell = rnnjax.LSTMCell(hidden_size=5)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> xs = jnp.ones((10, 8, 3))
    >>> carry, ys = rnnjax.unroll(cell, params, xs)
    >>> carry.hidden.shape, ys.shape
    ((8, 5), (10, 8, 5))
    >>> carry, first = rnnjax.unroll(cell, params, xs[:4])
    >>> carry, second = rnnjax.unroll(cell, params, xs[4:], carry)
    >>> bool(jnp.allclose(ys, jnp.concatenate([first, second])))
    True
    """
    xs, carry = _checked(cell, params, xs, carry, method)
    return _unroll(cell, params, xs, carry, reverse, method)


# Compiled here, so that calls outside of jit compile once per shape too.
@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _unroll(
    cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, method: Method
) -> tuple[Carry, jax.Array]:
    if isinstance(cell, CompositeCell):

        def run(cell: Cell, params: Params, xs: Any, carry: Carry) -> tuple[Carry, jax.Array]:
            return _unroll(cell, params, xs, carry, reverse, method)

        return cell.unroll_layers(run, params, xs, carry)
    _check_method(cell, method)
    return method.run(cell, params, xs, carry, reverse)


def _check_method(cell: Cell, method: Method) -> None:
    reason = method.refusal(cell)
    if reason:
        raise InvalidInputError(
            f"{method} cannot run {cell}, because {reason}; use method=Scan() or method=Auto()"
        )


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
) -> Explanation:
    """Say which method and form `unroll` would run each layer by, and why; nothing is computed.

    Args:
        cell: as in `unroll`, and so are the other arguments; arrays can be given as
            ``jax.ShapeDtypeStruct``.
        params: see there.
        xs: see there.
        carry: see there.
        method: see there.

    Raises:
        InvalidInputError: as `unroll` would.

    >>> import rnnjax
    >>> cell = rnnjax.LSTMCell(hidden_size=5)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> print(explain(cell, params, jnp.ones((10, 8, 3)), method=rnnjax.Scan()))
    LSTMCell(5) over inputs (10, 8, 3)
    - the cell's step at each time step, differentiated by JAX
    """
    layers = []

    def run(cell: Cell, params: Params, xs: Any, carry: Carry) -> tuple[Carry, jax.Array]:
        if isinstance(cell, CompositeCell):
            return cell.unroll_layers(run, params, xs, carry)
        _check_method(cell, method)
        result = method.run(cell, params, xs, carry, reverse=False)  # raises what unroll would
        layers.append((cell, xs.shape, tuple(method.explain(cell, params, xs.shape))))
        return result

    def whole(params: Params, xs: Any, carry: Carry | None) -> Any:
        return run(cell, params, *_checked(cell, params, xs, carry, method))

    jax.eval_shape(whole, params, xs, carry)
    return Explanation(tuple(layers))


def _checked(
    cell: Cell, params: Params, xs: Any, carry: Carry | None, method: Method
) -> tuple[Any, Carry]:
    """The inputs as arrays, and the carry, made if there is none."""
    if not isinstance(cell, Cell):
        raise InvalidInputError(
            f"cell must be a Cell such as rnnjax.LSTMCell(50), but is {cell!r}; "
            "a class has to be called with its hidden size first"
        )
    if not isinstance(method, Method):
        raise InvalidInputError(f"method must be Scan(), Fused() or Auto(), but is {method!r}")
    xs = as_inputs(xs)
    if xs.ndim < 2:
        raise InvalidInputError(
            f"xs must be (time, batch, features), or (time, features) without a batch, but has "
            f"shape {xs.shape}; add the axes that are missing"
        )
    batch = xs.shape[1:-1]
    if carry is None:
        types = [jnp.float32, *(jnp.result_type(leaf) for leaf in jax.tree.leaves(params))]
        carry = cell.initial_carry(batch, at_least_float32(jnp.result_type(*types)))
    else:
        carry = jax.tree.map(jnp.asarray, carry)
        _check_carry(cell, carry, batch)
    return xs, carry


def _check_carry(cell: Cell, carry: Carry, batch: tuple[int, ...]) -> None:
    expected = jax.eval_shape(lambda: cell.initial_carry(batch))
    wanted: Any = jax.tree.structure(expected)
    came: Any = jax.tree.structure(carry)
    if wanted != came:
        raise InvalidInputError(
            f"carry must be shaped like {wanted}, but is {came}; start from "
            f"cell.initial_carry({batch}), or leave the carry out"
        )
    for (path, want), leaf in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(carry), strict=True
    ):
        if want.shape != leaf.shape:
            raise InvalidInputError(
                f"carry{jax.tree_util.keystr(path)} must have shape {want.shape}, for the batch "
                f"{batch} of xs, but has {leaf.shape}; start from cell.initial_carry({batch})"
            )
