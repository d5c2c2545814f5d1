"""Which options of a cell or a layer a format deals with; others would be lost in silence."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from rnnjax.cells import Cell
from rnnjax.checks import brief
from rnnjax.errors import InteropError
from rnnjax.interop.layers import Dense, Dropout, Embedding, Layer, Recurrent
from rnnjax.layers import Bidirectional, Regularized, Stack
from rnnjax.layers import Dropout as DropoutRate

KNOWN: Mapping[type, tuple[str, ...]] = {
    Cell: ("hidden_size", "use_bias", "use_recurrent_bias"),  # which the arrays tell
    Recurrent: ("cell", "reverse", "keep_order", "return_sequences", "masked_outputs"),
    Dense: ("size", "activation", "use_bias"), Embedding: ("vocabulary_size", "size", "mask_zero"),
    Layer: ("name",), Dropout: ("dropout",), DropoutRate: ("rate", "per"),
    Stack: ("cells", "dropout"), Bidirectional: ("forward", "backward", "merge"),
    Regularized: ("cell", "input_dropout", "recurrent_dropout", "weight_drop"),  # off in prediction
}  # fmt: skip
"""By a class, the fields that every format deals with; each adds those that it has of a cell."""


def options_beyond(made: Any, known: Collection[str]) -> list[Any]:
    """Return the fields of a cell or a layer that a format does not deal with.

    These are not at their default, nor known to the format, nor read by `init` alone.

    >>> import rnnjax
    >>> [one.name for one in options_beyond(rnnjax.LSTMCell(5, activation="relu"), ["dtype"])]
    ['activation']
    """
    always = {name for kind in type(made).__mro__ for name in KNOWN.get(kind, ())}
    free = {*known, *always, "param_dtype", "unit_forget_bias"}
    told = (one for one in dataclasses.fields(made) if not one.name.endswith("_init"))
    return [x for x in told if x.name not in free and getattr(made, x.name) != x.default]


def check_options(made: Any, known: Collection[str], where: str, framework: str) -> None:
    """Raise InteropError for the first of `options_beyond`, by its name."""
    for one in options_beyond(made, known):
        value, kind = getattr(made, one.name), type(made).__name__
        usual = "" if one.default is dataclasses.MISSING else f"; set {one.name}={one.default!r}"
        raise InteropError(
            f"{where} is a {kind} of {one.name}={getattr(value, '__name__', brief(value))}, which "
            f"{framework} has not{usual}"
        )
