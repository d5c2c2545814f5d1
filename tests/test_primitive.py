"""The primitive with rules of its own: every transformation of JAX, against the plain function."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax.engine.core.custom_primitive import Function


@dataclasses.dataclass(frozen=True)
class Product(Function):
    """``k sin(a) b``, with a backward pass that remembers the cosine."""

    k: float

    def plain(self, a: jax.Array, b: jax.Array) -> Any:
        return {"y": self.k * (jnp.sin(a) @ b)}

    def run(self, platform: str, a: jax.Array, b: jax.Array) -> Any:
        return self.plain(a, b)

    def forward(self, platform: str, a: jax.Array, b: jax.Array) -> Any:
        return self.plain(a, b), (jnp.cos(a),)

    def backward(self, platform: str, args: Any, kept: Any, d: Any, needs_grad: Any) -> Any:
        (a, b), (cosine,), d_y = args, kept, self.k * d["y"]
        return (d_y @ b.T) * cosine, jnp.sin(a).T @ d_y if needs_grad[1] else None


def ours(a: jax.Array, b: jax.Array) -> jax.Array:
    return Product(3.0)(a, b)["y"]


def plain(a: jax.Array, b: jax.Array) -> jax.Array:
    return Product(3.0).plain(a, b)["y"]


A, B = (np.random.default_rng(0).normal(size=n).astype("float32") for n in ((4, 3), (3, 2)))
AS, BS = np.stack([A, 2 * A]), np.stack([B, -B, 3 * B])


def squares(f: Any) -> Any:
    return lambda a, b: (f(a, b) ** 3).sum()


def rows(f: Any) -> Any:
    """All rows of ``a``, which share ``b``."""
    return jax.vmap(f, (0, None))


TRANSFORMATIONS: dict[str, Callable[[Any], Any]] = {
    "call": lambda f: f(A, B),
    "grad": lambda f: jax.grad(squares(f), (0, 1))(A, B),
    "grad of one": lambda f: (jax.grad(squares(f), 0)(A, B), jax.grad(squares(f), 1)(A, B)),
    "jvp": lambda f: jax.jvp(f, (A, B), (2 * A, B)),
    "jacfwd": lambda f: jax.jacfwd(f, (0, 1))(A, B),
    "hessian": lambda f: jax.hessian(squares(f), (0, 1))(A, B),
    "reverse over reverse": lambda f: jax.jacrev(jax.grad(squares(f), (0, 1)), (0, 1))(A, B),
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(squares(f), 1), 0)(A, B),
    "linearize": lambda f: jax.linearize(f, A, B)[1](A, B),
    "its transpose": lambda f: jax.linear_transpose(jax.linearize(f, A, B)[1], A, B)(f(A, B)),
    "transpose of vmap": lambda f: jax.linear_transpose(
        jax.vmap(jax.linearize(f, A, B)[1], (0, None)), AS, B
    )(rows(f)(AS, B)),
    "transpose of many jvps": lambda f: jax.linear_transpose(
        lambda t: jax.vmap(lambda a: jax.jvp(lambda a: f(a, B), (a,), (t,))[1])(AS), A
    )(rows(f)(AS, B)),
    "transpose of a vjp": lambda f: jax.linear_transpose(jax.vjp(f, A, B)[1], f(A, B))((A, B)),
    "vmap": lambda f: (rows(f)(AS, B), jax.vmap(f, (None, 2))(A, jnp.moveaxis(BS, 0, 2))),
    "grad in vmap": lambda f: rows(jax.grad(squares(f), (0, 1)))(AS, B),
    "vmap in grad": lambda f: jax.grad(squares(rows(f)), (0, 1))(AS, B),
    "vmap in grad in vmap": lambda f: rows(jax.grad(squares(rows(f)), (0, 1)))(AS[:, None], B),
    "two vmaps in grad": lambda f: jax.grad(squares(jax.vmap(rows(f), (None, 0))), (0, 1))(AS, BS),
    "hessian of vmap": lambda f: jax.hessian(lambda b: squares(rows(f))(AS, b))(B),
    "checkpoint": lambda f: jax.grad(squares(jax.checkpoint(f)), (0, 1))(A, B),
    "scan": lambda f: jax.grad(
        lambda b: jax.lax.scan(lambda c, a: (c + f(a, b).sum(), None), 0.0, AS)[0]
    )(B),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_every_transformation(name: str, assert_close: Any) -> None:
    """Guards the gradient of what the rows of a `vmap` share."""
    run = TRANSFORMATIONS[name]
    assert_close(*jax.jit(lambda: (run(ours), run(plain)))(), 1e-5)


def test_no_residuals_are_stored_where_the_gradient_is_stopped() -> None:
    """Guards memory alone: no number shows it."""

    def stopped(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(ours(a, B)).sum() * b.sum()

    losses = squares(ours), stopped
    programs = [jax.jit(jax.grad(loss, (0, 1))).lower(A, B).as_text() for loss in losses]
    assert ["cosine" in program for program in programs] == [True, False]
