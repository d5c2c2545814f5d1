"""The networks of a run outside of Python: as ONNX, and as C."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

import rnnjax
from experiments.forecast import model
from rnnjax.cells.step import split_raw
from rnnjax.interop import Model, c, onnx


@dataclasses.dataclass(frozen=True)
class Networks(rnnjax.Stack):
    """Networks side by side, whose output is the mean of their quantiles."""

    horizon: int = 1
    columns: int = 0

    @property
    def raw(self) -> dict[str, int]:
        """What is known of the next times, if anything."""
        return {"later": self.horizon * self.columns} if self.columns else {}

    @property
    def output_size(self) -> int:
        """Three quantiles of each step."""
        return 3 * self.horizon

    def unroll_layers(self, run: Any, params: Any, xs: Any, carry: Any, key: Any) -> Any:
        """Run each network over the same inputs."""
        xs, raw = split_raw(self, xs)
        later = raw["later"].reshape(*xs.shape[:-1], self.horizon, -1) if raw else None
        carries, found = [], []
        for cell, own, before in zip(self.cells, params, carry, strict=True):
            after, ys = run(cell, own["cell"], xs, before)
            carries.append(after)
            found.append(model.quantiles(own["head"], ys, later))
        return (*carries,), (sum(found) / len(found)).reshape(*xs.shape[:-1], -1)


def write(params: Any, path: Path) -> str:
    """Write parameters ``(networks, ...)`` as ONNX and C, and say how both are fed."""
    count, horizon = len(params["bias"]), params["bias"].shape[-1] // 3
    columns = params["later"]["known"].shape[-2] if "later" in params else 0
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(count)]
    cell = Networks([model.CELL] * count, horizon=horizon, columns=columns)
    whole = Model.of(cell, tuple({"cell": own.pop("cell"), "head": own} for own in each), "network")
    onnx.save(whole, path.with_suffix(".onnx"))
    c.save(whole, path.with_name(path.name.replace("-", "_")).with_suffix(".c"))
    begin = "tanh(static @ W) with the W of its own" if "static" in params else "zeros"
    return (
        f"{path}.onnx and .c take the {params['cell']['kernel'].shape[-2]} features of Steps.xs in "
        f"features.py at each time, as multiples of a series' own changes, and the {columns} "
        f"columns of Steps.later for each of {horizon} next steps; their states are those of "
        f"{count} networks, which begin with {begin}; they give the lower, middle and upper "
        "quantile y of each next step, whose value is Steps.base + Steps.size * y on the scale of "
        "result.json, before its factors widen the interval"
    )
