"""A law of versions: what the writers do not know of the installed JAX, these tests name.

JAX adds operations, and changes the names of parameters. The writers refuse what they do not know,
so that a cell that leaves with one version of JAX would not with the next.
"""

import contextlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from c_helpers import Stream, library
from jax import lax
from jax.extend.core import Primitive, primitives
from jax.interpreters import batching
from onnx_helpers import by_reference

from rnnjax import InteropError
from rnnjax.interop import Activation, Dense, Model, Sequential, c, onnx
from rnnjax.interop.c import lowering
from rnnjax.interop.c.forms import FORMS
from rnnjax.interop.jaxprs import MOVES, SAME
from rnnjax.interop.onnx.primitives import PRIMITIVES, RULES

KNOWN = {
    "C": {*lowering.RULES, *SAME, *MOVES, "convert_element_type"}.union(*FORMS.values()),
    "ONNX": {*PRIMITIVES, *RULES, *SAME},
}
REFUSED = {
    "functions that neither has": """bessel_i0e bessel_i1e digamma erf_inv igamma igamma_grad_a
        igammac lgamma nextafter polygamma regularized_incomplete_beta zeta""",
    "those that JAX 0.12.1 brought": """acospi asinpi atan2pi atanpi cospi exp2m1 fma fmuladd log2p1
        sinpi tanpi""",
    "complex numbers": "complex conj imag real",
    "bits": """bitcast_convert_type clz population_count shift_left shift_right_arithmetic
        shift_right_logical""",
    "random numbers": "random_bits random_fold_in random_seed random_split threefry2x32",
    "orders by which JAX sorts": "eq_to le_to lt_to",
}
MORE = {"C": "xor", "ONNX": "atan2 cbrt reduce_precision"}
BY_TYPE = {
    "C": "abs of i, max of bb, min of bb, sign of i, square of i",
    "ONNX": """and of ii, ge of bb, gt of bb, le of bb, lt of bb, max of bb, min of bb, not of i,
        or of ii, xor of ii""",
}
"""What a writer has of other types: b for booleans, i for int32, f for float32."""
PARAMETERS = {
    "scan": """jaxpr length reverse unroll linear num_consts num_carry _split_transpose ft_in
        ft_out""",
    "while": "cond_jaxpr cond_nconsts body_jaxpr body_nconsts",
    "cond": "branches linear",
}


def elementwise() -> dict[str, Primitive]:
    """The public ones that JAX vectorises by a call: an entry follows from those at its place."""
    public = [one for one in vars(primitives).values() if isinstance(one, Primitive)]
    rules, probe, ways = batching.fancy_primitive_batchers, Primitive("probe"), []
    for define in (batching.defvectorized, batching.defbroadcasting):
        define(probe)
        ways.append(rules.pop(probe).func)
    found = {p.name: p for p in public if getattr(rules.get(p), "func", None) in ways}
    assert {"add", "tanh", "integer_pow"} <= found.keys()
    return found


@pytest.mark.parametrize("writer", KNOWN)
def test_each_elementwise_operation_is_known_or_refused_on_purpose(writer: str) -> None:
    refused = {*" ".join(REFUSED.values()).split(), *MORE[writer].split()}
    assert elementwise().keys() <= KNOWN[writer] | refused
    assert not KNOWN[writer] & refused


@pytest.mark.parametrize("name", PARAMETERS)
def test_loops_and_branches_have_the_parameters_that_are_known(name: str) -> None:
    x = np.ones(3, np.float32)
    made: dict[str, Any] = {
        "scan": lambda x: lax.scan(lambda a, b: (a + b + x[0], a), x[0], x),
        "while": lambda x: lax.while_loop(lambda a: a.sum() < x[0], lambda a: a + x, x),
        "cond": lambda x: lax.cond(x[0] > 0, lambda a: a + x, lambda a: a, x),
    }
    equations = {e.primitive.name: e for e in jax.make_jaxpr(made[name])(x).eqns}
    assert equations[name].params.keys() <= {*PARAMETERS[name].split()}


OTHER_NAMES = {"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "not": "bitwise_not"}
WITH_PARAMETERS: dict[str, list[Any]] = {
    "integer_pow": [lambda x: lax.integer_pow(x, 3), lambda x: lax.integer_pow(x, -2)],
    "polynomial": [lambda x: lax.polynomial(x, [0.5, x, 2.0])],
    "round": [lambda x: lax.round(x, lax.RoundingMethod(0)),
              lambda x: lax.round(x, lax.RoundingMethod(1))],
}  # fmt: skip
XS = np.float32([*np.arange(-4, 5) / 2, 0.3, -1.9, 0.999, -1.0001, 1e-4, 80, -80])


def cases(writer: str) -> dict[str, Any]:
    """The elementwise operations that a writer knows, of operands of each type that they take.

    The integers are odd, for nobody says what a division by 0 gives in ONNX.
    """
    some = {"f": lambda x: x, "i": lambda x: 2 * x.astype(jnp.int32) + 1, "b": lambda x: x > 0}
    found = {}

    def case(function: Any, kinds: str) -> Any:
        return lambda x: function(
            *(some[k](x) for k, x in zip(kinds, (x, x[..., ::-1]), strict=False))
        )

    for name in sorted(elementwise().keys() & KNOWN[writer]):
        public = getattr(lax, OTHER_NAMES.get(name, name), None)
        for i, function in enumerate(WITH_PARAMETERS.get(name, [public])):
            for kinds in (*"fib", "ff", "fi", "ii", "bb"):
                with contextlib.suppress(TypeError, ValueError):  # of other types, or of more
                    jax.eval_shape(case(function, kinds), XS)
                    found[f"{name} of {kinds}" + " again" * i] = case(function, kinds)
    return found


def model_of(*functions: Any) -> Model:
    identity = {"kernel": np.eye(len(XS), dtype=np.float32), "bias": np.zeros_like(XS)}

    def run(x: Any) -> Any:
        return jnp.stack([f(x).astype(jnp.float32) for f in functions])

    return Model(Sequential((Dense("x", len(XS)), Activation("f", run))), {"x": identity})


def leaving(writer: str, folder: Path, *functions: Any) -> np.ndarray:
    """What functions of the same are elsewhere; raises what the writer raises."""
    model = model_of(*functions)
    if writer == "C":
        c.save(model, folder / "each.c")
        return Stream(library(folder), folder, "each").step(XS).reshape(-1, len(XS))
    proto = onnx.to_proto(model)
    with np.errstate(all="ignore"):
        return by_reference(proto, {"xs": XS[None, None]})["ys"].reshape(-1, len(XS))


@pytest.mark.parametrize("writer", KNOWN)
def test_each_elementwise_operation_gives_the_numbers_of_jax(writer: str, tmp_path: Path) -> None:
    """Also of halves, which are rounded in two ways, and beyond the ends of domains."""
    found = cases(writer)
    for name in " ".join(BY_TYPE[writer].split()).split(", "):
        with pytest.raises(InteropError):
            leaving(writer, tmp_path, found.pop(name))
    expected = jax.jit(lambda x: [f(x) for f in found.values()])(XS)
    ys = leaving(writer, tmp_path, *found.values())
    for name, a, b in zip(found, ys, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)


CALLS: dict[str, Any] = {
    "unpacked": lambda x: jnp.concatenate([b for a in [x.reshape(*x.shape[:-1], 2, -1)]
                                           for b in jnp.moveaxis(a, -2, 0)][::-1], -1),
    "stacked": lambda x: jnp.stack([x, 2 * x], -2).sum(-2),
    "remat": jax.checkpoint(jnp.sin),
    "log2, sinc and the derivative of tanh": lambda x: (
        jnp.log2(1.5 + jnp.tanh(x)) + jnp.sinc(x) + jax.jvp(jnp.tanh, (x,), (x,))[1]
    ),
    "own derivative": jax.nn.relu,
    "composite": lambda x: lax.composite(jnp.sin, "example.sin")(x),
}  # fmt: skip


@pytest.mark.parametrize("writer", KNOWN)
def test_what_jax_makes_of_a_function_differs_by_its_version(writer: str, tmp_path: Path) -> None:
    """The function that a user calls is the same, and leaves."""
    expected = jax.jit(lambda x: [f(x) for f in CALLS.values()])(XS)
    ys = leaving(writer, tmp_path, *CALLS.values())
    np.testing.assert_allclose(ys, np.stack(expected), rtol=1e-5, atol=1e-5)


def test_a_reduction_by_a_function_is_no_call_of_it() -> None:
    """Its program is one of two numbers."""
    model = model_of(lambda x: x + lax.reduce(x, np.float32(1), lambda a, b: a * b + a, (0,)))
    with pytest.raises(InteropError, match="the operator 'reduce' of JAX, which is not written"):
        onnx.to_proto(model)
