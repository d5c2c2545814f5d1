"""The base class of the methods that run a cell over time."""

import abc
import contextlib
import dataclasses
from typing import Any, Literal, get_args

import jax

from rnnjax.cells.base import Carry, Cell, Params
from rnnjax.checks import brief
from rnnjax.engine.core.custom_primitive import context_precision
from rnnjax.engine.core.masking import Steps, held_outputs, last_valid
from rnnjax.errors import InvalidInputError
from rnnjax.meshes import LOCAL, MeshAxis

Precision = Literal["default", "high", "highest"]

# How products of float32 operands are computed, as XLA does on each platform (`jax.lax.Precision`).
_TF32 = "in TF32 where the card has it"
_GPU = {"default": _TF32, "high": _TF32, "highest": "in float32"}
_ARITHMETIC = {
    "tpu": {
        "default": "in one pass of bfloat16",
        "high": "in three passes of bfloat16",
        "highest": "in six passes of bfloat16, as exact as float32",
    },
    "cuda": _GPU,
    "rocm": _GPU,
    "gpu": _GPU,
}


# The names that JAX lowers for, and the names of the devices of the second and third.
_PLATFORMS = "cpu", "cuda", "rocm", "gpu", "tpu"


def known_platform(platform: Any) -> str:
    """Return ``platform``, or for None the platform of JAX's first device, JAX's default.

    Raises:
        InvalidInputError: no platform has that name.
    """
    if platform in _PLATFORMS:
        return platform
    device = jax.local_devices()[0]
    here = device.platform  # perhaps that of a plugin
    if here == "gpu":
        here = "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"
    if platform is not None and platform != here:
        raise InvalidInputError(
            f"platform must be one of {', '.join(_PLATFORMS)}, or None for that of this machine, "
            f"{here}, but is {brief(platform)}"
        )
    return here


@dataclasses.dataclass(frozen=True, repr=False)
class Method(abc.ABC):
    """A method of running one cell over a sequence. Its options are its fields.

    Every method takes the same parameters and gives the same numbers.

    Args:
        precision: the precision of products of float32 operands, forward and in all derivatives:
            ``"default"``, ``"high"`` or ``"highest"`` (float32 on every platform). By default that
            of the context, ``jax.default_matmul_precision``. A CPU always computes in float32. By
            default a TPU rounds the operands to bfloat16 and a GPU to TF32; `rnnjax.explain` says
            which.
    """

    precision: Precision | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        known = isinstance(self.precision, str) and self.precision in get_args(Precision)
        if self.precision is not None and not known:
            raise InvalidInputError(
                f'precision must be "default", "high" or "highest", or None for that of '
                f"jax.default_matmul_precision, but is {brief(self.precision)}"
            )

    def __repr__(self) -> str:
        shown = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                text = repr(value) if isinstance(value, str) else getattr(value, "__name__", value)
                shown.append(f"{field.name}={text}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def precisely(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which products are traced with the precision of this method."""
        if self.precision is None:
            return contextlib.nullcontext()
        return jax.default_matmul_precision(self.precision)

    def arithmetic(self, platform: str) -> list[str]:
        """Say how products of float32 operands are computed, unless always in float32."""
        asked = self.precision or context_precision() or "default"
        if platform not in _ARITHMETIC:
            return []
        how = _ARITHMETIC[platform].get(asked, f"as jax.default_matmul_precision {asked!r} says")
        return [f"products of float32 operands {how}, precision {asked!r}"]

    @property
    def along(self) -> MeshAxis:
        """The mesh axis over which the steps are sharded."""
        return LOCAL

    def held(
        self, ys: jax.Array, valid: jax.Array, resets: jax.Array | None, reverse: bool
    ) -> jax.Array:
        """Replace the output of masked steps by that of the last valid step, in running order."""
        return held_outputs(ys, valid, resets, reverse)

    def last(self, ys: jax.Array, valid: jax.Array | None, reverse: bool) -> jax.Array:
        """Return each row's output of its last valid step, in running order."""
        if self.along.name is not None:
            raise InvalidInputError(
                f"{self} divides the steps over devices, and the last output of this cell would "
                "have to be looked for on all of them; take all outputs"
            )
        return last_valid(ys, valid, reverse)

    @abc.abstractmethod
    def refusal(self, cell: Cell) -> str | None:
        """Return why this method cannot run ``cell``, as the end of a sentence; else None."""

    @abc.abstractmethod
    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Carry, reverse: bool, steps: Steps
    ) -> tuple[Carry, jax.Array]:
        """Run ``cell`` over ``xs (time, *batch, features)``; the arguments have been checked."""

    @abc.abstractmethod
    def explain(
        self, cell: Cell, params: Params, shape: tuple[int, ...], platform: str
    ) -> list[str]:
        """Say in a few phrases how ``cell`` would run over inputs of that shape, and why."""


def why_no_equation(cell: Cell) -> str | None:
    """Return why a cell declares no equation, so that only its own step runs; else None."""
    return "it declares no carry and update, but a step" if cell.carry is None else None


def check_method(cell: Cell, method: Method) -> None:
    """Raise unless a method can run a cell."""
    reason = method.refusal(cell)
    if reason:
        raise InvalidInputError(
            f"{method} cannot run {brief(cell)}, because {reason}; use method=Scan() or "
            "method=Auto()"
        )
