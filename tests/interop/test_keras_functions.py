"""Every activation of Keras against the function that `rnnjax.interop.keras` takes for it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax import InteropError, LSTMCell
from rnnjax.interop.functions import get_function
from rnnjax.interop.keras.layers import Entry, cell_function, function_of, name_of

keras = pytest.importorskip("keras", reason="keras is in the group `test`")

# Around the kinks of all of them, but on none, and far out.
XS = np.concatenate([np.linspace(-8, 8, 640) + 0.0123, [-30, 30]]).astype(np.float32).reshape(-1, 6)
NEEDS_ARGUMENTS = {"threshold"}
NOT_KNOWN = {
    "glu", "sparsemax", "sparse_plus", "sparse_sigmoid", "celu", "squareplus", "soft_shrink",
    "hard_shrink", "tanh_shrink",
}  # fmt: skip
NOT_FUNCTIONS = {"deserialize", "get", "serialize"}


def keras_names() -> list[str]:
    names = {name for name in dir(keras.activations) if not name.startswith("_")}
    return sorted(names - NOT_FUNCTIONS - NEEDS_ARGUMENTS - NOT_KNOWN | {"hard_swish"})


def function_in(value: Any, version: float = 3) -> Any:
    return function_of(value, Entry("dense", "Dense", {}, version))


def ours_of(theirs: Any) -> Any:
    return function_in(keras.activations.serialize(theirs))


@pytest.fixture(scope="module")
def numbers() -> Any:
    """Values and derivatives of each function, theirs and ours, from one program."""

    @jax.jit
    def run(xs: Any) -> Any:
        def both(f: Any) -> Any:
            ys, pull = jax.vjp(f, xs)
            return ys, pull(np.random.default_rng(0).standard_normal(ys.shape).astype("f"))[0]

        theirs = {name: keras.activations.get(name) for name in keras_names()}
        return {name: (both(f), both(get_function(ours_of(f)))) for name, f in theirs.items()}

    return jax.device_get(run(XS))


@pytest.mark.parametrize("name", keras_names())
def test_equals_keras(name: str, numbers: Any) -> None:
    """Values and derivatives, and the name on the way back."""
    (expected, expected_d), (ys, d_ys) = numbers[name]
    np.testing.assert_allclose(ys, expected, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(d_ys, expected_d, rtol=1e-5, atol=1e-5)
    theirs = keras.activations.get(name)
    function = ours_of(theirs)
    assert keras.activations.get(name_of(function, "a test")) is theirs
    LSTMCell(3, activation=cell_function(function))  # a cell takes it


def test_the_hard_sigmoid_of_keras_1_and_2_is_another() -> None:
    old, new = (get_function(function_in("hard_sigmoid", version)) for version in (2, 3))
    np.testing.assert_allclose(old(jnp.array([1.0])), 0.7, rtol=1e-6)
    np.testing.assert_allclose(new(jnp.array([1.0])), 2 / 3, rtol=1e-6)
    with pytest.raises(InteropError, match="legacy_hard_sigmoid"):
        name_of("legacy_hard_sigmoid", "layer 'lstm'")


ACTIVATIONS = [("ReLU", {}), ("ReLU", {"max_value": 6}), ("LeakyReLU", {}), ("ELU", {"alpha": 0.4}),
               ("Softmax", {})]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), ACTIVATIONS)
def test_activation_layers(kind: str, options: dict[str, Any]) -> None:
    """They are layers in a model, and can stand for an activation inside of another layer."""
    theirs = getattr(keras.layers, kind)(**options)
    function = function_in(keras.saving.serialize_keras_object(theirs))
    ours = get_function(function)(XS)
    for expected in (theirs, keras.activations.get(name_of(function, "a test"))):
        np.testing.assert_allclose(ours, np.asarray(expected(XS)), rtol=2e-6, atol=2e-6)


def test_the_options_of_keras_2() -> None:
    alpha = {"type": "ndarray", "value": 0.30000001192092896}
    value = {"class_name": "LeakyReLU", "config": {"name": "leaky", "alpha": alpha}}
    function = get_function(function_in(value, 2))
    np.testing.assert_allclose(function(jnp.array([-1.0])), -0.3, rtol=1e-6)
    assert function_in({"class_name": "ReLU", "config": {"max_value": 6}}, 2) == "relu6"


NO_FUNCTIONS: list[Any] = [
    "my_function", "sparsemax", "celu", 3, ["tanh"],
    {"class_name": "function", "config": "my_function"},
    {"class_name": "PReLU", "config": {}},
    {"class_name": "ReLU", "config": {}, "registered_name": "mine>ReLU"},
    {"class_name": "LeakyReLU", "config": {"negative_slope": "much"}},
    {"class_name": "ReLU", "config": {"max_value": 2.0}},
    {"class_name": "ReLU", "config": {"threshold": 0.5}},
    {"class_name": "LeakyReLU", "config": {"negative_slope": 10**400}},
    {"class_name": "Softmax", "config": {"axis": 1}},
    {"class_name": ["ReLU"], "config": None},
]  # fmt: skip


@pytest.mark.parametrize("value", NO_FUNCTIONS)
def test_what_is_no_function_is_refused(value: Any) -> None:
    with pytest.raises(InteropError, match="layer 'dense'"):
        function_in(value)
