"""Numbers and texts as a page holds them: few bits each, in base64 inside of JSON."""

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.text_generator.pages.symbols import symbol_of
from experiments.text_generator.reading import AnyVocabulary

UNKNOWN = 65535
"""Stands for the surprise of a character that nothing predicted."""

# A level of a unit takes half a byte: from -7 to 7, of which 7 is the unit's own 99th percentile.
_MOST = 7


def packed(array: npt.ArrayLike, dtype: str) -> str:
    """The bytes of an array in a type, in base64.

    >>> packed(np.array([1, 2]), "<u2")
    'AQACAA=='
    """
    return base64.b64encode(np.ascontiguousarray(array, dtype).tobytes()).decode("ascii")


def quantized(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States in 15 levels, 0 to 14 with zero at 7, and the value of the highest level of each unit.

    That value is the 99th percentile of the unit's absolute values: a rare outlier would make all
    else look like zero. Beyond it is the highest level.

    >>> levels, scales = quantized(np.array([[-2.0, 0.0], [1.0, 0.0], [2.0, 0.0]]))
    >>> levels[:, 0].tolist(), levels[:, 1].tolist()
    ([0, 11, 14], [7, 7, 7])
    """
    scales = np.quantile(np.abs(states), 0.99, axis=0).astype(np.float32)
    divisors = np.where(scales > 0, scales, 1)
    levels = np.clip(np.rint(states / divisors * _MOST), -_MOST, _MOST) + _MOST
    return levels.astype(np.uint8), scales


def halves(levels: np.ndarray) -> np.ndarray:
    """Levels ``(time, units)`` two to a byte, the earlier one in the lower half, unit by unit.

    >>> halves(np.array([[1], [2], [3]], np.uint8)).tolist()
    [[33, 3]]
    """
    rows = np.ascontiguousarray(levels.T)
    rows = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    return rows[:, ::2] | rows[:, 1::2] << 4


def text_data(
    ids: np.ndarray,
    surprise: np.ndarray,
    vocabulary: AnyVocabulary,
    expected: np.ndarray | None = None,
) -> dict[str, Any]:
    """A text and its surprise, in symbols numbered as they occur in it or in ``expected``.

    Args:
        ids: of the text.
        surprise: bits of each character, NaN where there are none; kept to a
            thousandth, up to 65.534.
        vocabulary: what the ids mean.
        expected: ids of the next characters expected after each, ``(len(ids), n)``.

    >>> from rnnjax.text import ByteVocabulary
    >>> data = text_data(np.array([7, 9]), np.array([np.nan, 0.25]), ByteVocabulary())
    >>> [name for _, name, _ in data["symbols"]], data["wide"]
    (['U+0007', 'tab'], False)
    >>> data["ids"] == packed([0, 1], "u1"), data["surprise"] == packed([UNKNOWN, 250], "<u2")
    (True, True)
    """
    used = np.unique(ids if expected is None else np.concatenate([ids, expected.ravel()]))
    wide = len(used) > 256
    kind = "<u2" if wide else "u1"
    thousandths = np.rint(1000 * np.nan_to_num(surprise, nan=0.0)).clip(0, UNKNOWN - 1)
    data = {
        "symbols": [list(symbol_of(int(index), vocabulary)) for index in used],
        "wide": wide,
        "ids": packed(np.searchsorted(used, ids), kind),
        "surprise": packed(np.where(np.isnan(surprise), UNKNOWN, thousandths), "<u2"),
    }
    if expected is not None:
        data["expected"] = packed(np.searchsorted(used, expected), kind)
    return data
