"""A GRU over rollouts in which episodes begin anew, as reinforcement learning has them.

Rows, steps, units and the share of resets are those of TorchRL's public benchmark
(``benchmarks/test_rnn_reset_backends_benchmark.py``), and so are its 32 features. memax's GRU has
as many features as units, so there are points with 256, too; and its reset gate acts before the
product, so rnnjax's of that kind runs as well.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from benchmarks.questions import layers
from benchmarks.questions.gradients import Call, repeated
from benchmarks.questions.jax_layers import Shape, inputs, linen_params, weights
from benchmarks.reports import Point, Report
from benchmarks.timing import Contender, Question

__all__ = ["QUICK", "Settings", "question", "remarks", "tables"]

BEFORE = "a GRU whose reset gate acts before the product: other numbers, the same sizes"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every number of features and pass is a point."""

    features: tuple[int, ...] = (32, 256)
    units: int = 256
    rows: int = 128
    time: int = 128
    share: float = 0.03
    """The share of all steps with which an episode begins."""


QUICK = Settings(features=(3, 8), units=8, rows=4, time=20, share=0.2)


def drawn(settings: dict[str, Any]) -> tuple[dict[str, Any], Any, Any]:
    """The weights by name, the inputs ``(time, rows, features)``, and where episodes begin."""
    import numpy as np

    features = settings["features"]
    shape = Shape("gru", 1, settings["units"], settings["rows"], settings["time"])
    (arrays,) = weights(shape)
    arrays["kernel"] = arrays["kernel"][:features]
    xs = np.ascontiguousarray(inputs(shape)[..., :features])
    resets = np.random.default_rng(2).random(xs.shape[:2]) < settings["share"]
    resets[0] = False  # every row begins there anyway
    return arrays, xs, resets


# ---- the layers in JAX: (settings) -> (outputs of (params, xs, resets), params)


def cell_layer(reset_after: bool, settings: dict[str, Any]) -> tuple[Any, Any]:
    """`rnnjax.unroll`."""
    import numpy as np

    import rnnjax

    arrays, _, _ = drawn(settings)
    cell = rnnjax.GRUCell(settings["units"], reset_after=reset_after)
    if reset_after:
        arrays["recurrent_bias"] = np.zeros_like(arrays["bias"])

    def outputs(params: Any, xs: Any, resets: Any) -> Any:
        return rnnjax.unroll(cell, params, xs, resets=resets)[1]

    return outputs, arrays


def linen_layer(settings: dict[str, Any]) -> tuple[Any, Any]:
    """Flax's cell in `rnnjax.linen.RNN`."""
    from rnnjax import linen as nn

    arrays, _, _ = drawn(settings)
    model = nn.RNN(nn.GRUCell(settings["units"]), time_major=True)

    def outputs(params: Any, xs: Any, resets: Any) -> Any:
        return model.apply({"params": {"cell": params}}, xs, resets=resets)

    return outputs, linen_params("gru", arrays)


def scanned_layer(settings: dict[str, Any]) -> tuple[Any, Any]:
    """Flax's cell under ``nn.scan``, with resets by hand, as in PureJaxRL."""
    import jax.numpy as jnp

    from experiments.cookbook.common.agents import ScannedRNN

    arrays, _, _ = drawn(settings)
    units, rows = settings["units"], settings["rows"]

    def outputs(params: Any, xs: Any, resets: Any) -> Any:
        carry = jnp.zeros((rows, units))
        return ScannedRNN(units).apply({"params": {"GRUCell_0": params}}, carry, (xs, resets))[1]

    return outputs, linen_params("gru", arrays)


def memax_layer(settings: dict[str, Any]) -> tuple[Any, Any]:
    """A GRU of memax's on Equinox, mapped over the rows; its z is what ours calls 1 - z."""
    import equinox
    import jax
    import jax.numpy as jnp
    from memax.equinox.set_actions.gru import GRU

    units = settings["units"]
    if settings["features"] != units:
        raise ValueError("memax's GRU has as many features as units")
    arrays, _, _ = drawn(settings)
    gates = {name: jnp.split(jnp.asarray(a), 3, axis=-1) for name, a in arrays.items()}
    gates = {name: [r, -z, n] for name, (r, z, n) in gates.items()}
    new = [k.T for k in gates["kernel"] + gates["recurrent_kernel"]] + gates["bias"]
    layer = GRU(units, jax.random.key(0))

    def places(layer: Any) -> list[Any]:
        cell = layer.algebra.algebra  # within what resets it
        inner, outer = (cell.W_r, cell.W_z, cell.W_h), (cell.U_r, cell.U_z, cell.U_h)
        return [m.weight for m in (*inner, *outer)] + [m.bias for m in inner]

    params, static = equinox.partition(equinox.tree_at(places, layer, new), equinox.is_array)

    def outputs(params: Any, xs: Any, resets: Any) -> Any:
        layer = equinox.combine(params, static)

        def row(xs: Any, resets: Any) -> Any:
            return layer(layer.initialize_carry(), (xs, resets))[1]

        return jax.vmap(row, 1, 1)(xs, resets)

    return outputs, params


def in_jax(layer: Callable[[dict[str, Any]], tuple[Any, Any]], settings: dict[str, Any]) -> Call:
    """The outputs, or the gradients of half their squares' sum: of the inputs, and of all weights.

    Of both the inputs' gradient comes first, which has the same numbers whichever way a library
    keeps its weights.
    """
    import jax
    import jax.numpy as jnp

    outputs, params = layer(settings)
    _, xs, resets = drawn(settings)
    args = jax.tree.map(jnp.asarray, (xs, params, resets))
    if not settings["backward"]:
        return jax.jit(lambda xs, params, resets: (outputs(params, xs, resets),)), args

    def loss(xs: Any, params: Any, resets: Any) -> Any:
        return 0.5 * jnp.sum(outputs(params, xs, resets) ** 2)

    return jax.jit(jax.grad(loss, (0, 1))), args


def in_torch(padded: bool, settings: dict[str, Any]) -> Call:
    """``nn.GRU`` over episodes of their own, cut at the resets: padded to the longest, or packed.

    Cutting and putting together again is counted, as in TorchRL's benchmark: an update has new
    resets. The first is what TorchRL does on a CPU; the second what PyTorch has for it.
    """
    import torch
    from torch.nn.utils import rnn

    arrays, given, marks = drawn(settings)
    module = torch.nn.GRU(settings["features"], settings["units"])
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    module.load_state_dict(
        {
            "weight_ih_l0": tensors["kernel"].T,
            "weight_hh_l0": tensors["recurrent_kernel"].T,
            "bias_ih_l0": tensors["bias"],
            "bias_hh_l0": torch.zeros_like(tensors["bias"]),
        }
    )
    whole, resets = torch.from_numpy(given), torch.from_numpy(marks)
    time, rows, _ = given.shape

    def outputs(xs: Any) -> Any:
        begins = resets.T.clone()  # row after row
        begins[:, 0] = True
        starts = begins.reshape(-1).nonzero()[:, 0]
        lengths = torch.diff(starts, append=torch.tensor([time * rows]))
        episodes = torch.split(xs.transpose(0, 1).reshape(time * rows, -1), lengths.tolist())
        if padded:
            ys = module(rnn.pad_sequence(episodes))[0].transpose(0, 1)
            ys = ys[torch.arange(ys.shape[1]) < lengths[:, None]]
        else:
            packed = module(rnn.pack_sequence(episodes, enforce_sorted=False))[0]
            ys = torch.cat(rnn.unpack_sequence(packed))
        return ys.reshape(rows, time, -1).transpose(0, 1)

    def forward() -> tuple[Any, ...]:
        with torch.inference_mode():
            return (outputs(whole),)

    def gradients() -> tuple[Any, ...]:
        loss = 0.5 * outputs(whole).square().sum()
        return torch.autograd.grad(loss, [whole, *module.parameters()])

    if settings["backward"]:
        whole.requires_grad_()
    return gradients if settings["backward"] else forward, ()


# ---- the question


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    points = [
        Point(
            f"{features} features, {name}",
            {**dataclasses.asdict(settings), "features": features, "backward": backward},
        )
        for features in settings.features
        for name, backward in (("forward", False), ("gradient", True))
    ]

    def contender(name: str, layer: Any, *packages: str, note: str = "") -> Contender:
        build = functools.partial(in_jax, layer)
        other = math.inf if note else None
        return Contender(name, repeated(build), [*packages, "jax"], note=note, tolerance=other)

    before = functools.partial(cell_layer, False)
    torch_ways = {"PyTorch, cut and padded": True, "PyTorch, cut and packed": False}
    return Question(
        "resets",
        f"A GRU({settings.units}) over {settings.rows} rows of {settings.time} steps, "
        f"{settings.share:.0%} of which begin an episode: the outputs, or the gradients of all "
        "parameters and of the inputs; a repetition is as many calls as take 0.1 s.",
        [
            contender("rnnjax", functools.partial(cell_layer, True), "rnnjax"),
            contender("rnnjax.linen.RNN", linen_layer, "rnnjax"),
            contender("PureJaxRL's nn.scan", scanned_layer, "flax"),
            *(
                Contender(name, repeated(functools.partial(in_torch, padded)), ["torch", "jax"])
                for name, padded in torch_ways.items()
            ),
            contender("rnnjax, reset before", before, "rnnjax", note=BEFORE),
            contender("memax", memax_layer, "memax", "equinox", note=BEFORE),
        ],
        baseline="rnnjax",
        value_name="rms of the outputs, or of the inputs' gradient",
        tolerance=1e-3,
        relative=True,
        patience=120,
        points=points,
    )


def tables(report: Report) -> str:
    """A row for a number of features and a pass."""
    header = ["features"]
    return layers.peer_table(report, report.points, header, lambda point: [point.name])


remarks = layers.remarks
