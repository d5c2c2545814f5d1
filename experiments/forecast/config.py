"""The options."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.shared.runs import Positive, PositiveOrNone, Seed


@dataclasses.dataclass(frozen=True)
class Config:
    """Forecast the series of a CSV file by a GRU, with intervals, a backtest and baselines.

    Rows behind the last value of a series, whose target is empty, say what the --future columns
    are in the times to come.
    """

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """A CSV file with one row per time; by default three well-known series."""
    target: tuple[str, ...] = ()
    """The columns to forecast; by default the only numeric one."""
    by: str | None = None
    """The column that names the series of a row, if there are several."""
    time: str | None = None
    """The column of the times; by default the first one that holds dates."""
    date_form: str | None = None
    """How the times are written, in the words of strptime; needed where that has two meanings."""
    horizon: Positive = 12
    """The number of next values to forecast."""
    level: Annotated[int, (1, 100)] = 80
    """How many of 100 values are to be inside of the intervals."""
    past: tuple[str, ...] = ()
    """Columns that are known up to the time of a forecast, such as a temperature."""
    future: tuple[str, ...] = ()
    """Columns that are known of the next values too, such as holidays and prices."""
    static: tuple[str, ...] = ()
    """Columns that do not change within a series, such as the kind of a shop."""
    period: tuple[Positive, ...] = ()
    """The number of steps of each season; by default what the dates suggest."""
    unit: str = ""
    """The unit of the values, for the picture."""
    origins: PositiveOrNone = None
    """The number of rolling origins in the backtest; by default a quarter of the times."""
    calibration: Literal["adaptive", "rolling", "split", "heads"] = "adaptive"
    """How the intervals are calibrated; the page on forecasting compares them."""
    load: Path | None = None
    """The --run-dir of an earlier run, whose network forecasts without training."""
    data: str | None = None
    """A folder with the well-known files, or "made" for synthetic data."""
    run_dir: Path | None = None
    """Where the forecasts and pictures go; by default a new folder under runs/forecast."""
    seeds: Positive = 5
    """The number of networks for each part of the backtest; their mean is the forecast."""
    seed: Seed = 0
    """The seed of weights, dropout and the order of the data."""
    epochs: Positive = 60
    """At most so many; eight without a better error on unseen origins end the training."""
    export: Path | None = None
    """The --run-dir of an earlier run, whose networks are written there as ONNX and C; then nothing
    is forecast."""
