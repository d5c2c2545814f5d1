"""The layers of a file that holds weights alone, from the names and shapes of its arrays."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rnnjax.errors import InteropError
from rnnjax.interop.keras.graph import Entry

_HELP = "give a model of the same layers as like=..."
_MOST_STEPS = 10_000


@dataclasses.dataclass(frozen=True)
class Guess:
    """A layer: how it stands in a config, and the sizes of what goes in and comes out."""

    entry: Entry  # the layer, with the options that its arrays show
    group: str  # its name in the file
    input_size: int | None  # None for an embedding, which takes ids
    output_size: int  # of its outputs


def guess_groups(groups: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> list[Guess]:
    """The layers of a file in the old layout, which states their order."""
    guesses = []
    for name, arrays in groups:
        if not arrays:
            continue
        listed = list(arrays.values())
        both = any("forward_" in key for key in arrays) and len(listed) % 2 == 0
        if both:
            half = len(listed) // 2
            guesses.append(_both(name, listed[:half], listed[half:]))
        else:
            guesses.append(_one(name, "", listed))
    return guesses


def guess_paths(arrays: Mapping[str, np.ndarray]) -> list[Guess]:
    """The layers of a file of Keras 3, put in the one order in which their sizes fit."""
    groups: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    for path, array in arrays.items():
        found = re.fullmatch(r"[^/]+/([^/]+)/(?:(.+)/)?vars/(\d{1,3})", path)
        if found is None:
            raise InteropError(f"the file has an array {path[:80]!r} of no layer; {_HELP}")
        group, place, index = found.groups()
        groups.setdefault(group, {}).setdefault(place or "", {})[int(index)] = array
    guesses = []
    for group, places in groups.items():
        parts = {place: [by[i] for i in sorted(by)] for place, by in places.items()}
        guesses.append(_of_places(group, parts))
    orders = []
    for order in _orders(guesses):
        orders.append(order)
        if len(orders) == 2:
            break
    if len(orders) != 1:
        listed = ", ".join(f"{g.group} {g.input_size or 'ids'} -> {g.output_size}" for g in guesses)
        many = "several orders fit" if orders else "no order fits"
        raise InteropError(
            f"a file of weights alone does not say in which order its layers run, and {many} "
            f"their sizes ({listed[:400] or 'there are none'}); {_HELP}"
        )
    return orders[0]


def _of_places(group: str, parts: Mapping[str, list[np.ndarray]]) -> Guess:
    base = re.sub(r"_\d+$", "", group)
    places = set(parts)
    if places == {"forward_layer/cell", "backward_layer/cell"}:
        return _both(group, parts["forward_layer/cell"], parts["backward_layer/cell"])
    if places <= {"", "layer", "cell"} and len(parts) == 1:
        (place, arrays), kind = next(iter(parts.items())), base.replace("_", "")
        guess = _one(group, kind, arrays)
        if (guess.entry.kind in ("Dense", "Embedding")) == (place == "cell"):
            raise InteropError(f"the arrays of {group[:80]!r} are at an unknown place; {_HELP}")
        return guess
    raise InteropError(
        f"the file has arrays of {group[:80]!r} at {', '.join(sorted(places))[:200]}, from which "
        f"its layer does not follow; {_HELP}"
    )


def _both(name: str, forward: Sequence[np.ndarray], backward: Sequence[np.ndarray]) -> Guess:
    one, other = _one(name, "", forward), _one(name, "", backward)
    if one.entry.kind in ("Dense", "Embedding") or one.input_size != other.input_size:
        raise InteropError(f"the arrays of {name[:80]!r} are not two directions; {_HELP}")
    config: dict[str, Any] = {
        "name": name,
        "layer": {"class_name": one.entry.kind, "config": dict(one.entry.config)},
        "backward_layer": {
            "class_name": other.entry.kind,
            "config": {**other.entry.config, "go_backwards": True},
        },
    }
    size = one.output_size + other.output_size
    return Guess(Entry(name, "Bidirectional", config), name, one.input_size, size)


def _one(name: str, kind: str, arrays: Sequence[np.ndarray]) -> Guess:
    """A layer with one unit; ``kind`` is what its name says, or empty."""
    found = _config(kind, name, arrays)
    if found is None:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise InteropError(
            f"the arrays of {name[:80]!r} have the shapes {shapes[:200]}, which are those of no "
            f"layer that is known; {_HELP}"
        )
    class_name, size, config = found
    config = {"name": name, "return_sequences": True, **config}
    entering = None if class_name == "Embedding" else int(arrays[0].shape[0])
    return Guess(Entry(name, class_name, config), name, entering, size)


def _config(
    kind: str, name: str, arrays: Sequence[np.ndarray]
) -> tuple[str, int, dict[str, Any]] | None:
    if len(arrays) in (9, 12) and arrays[1].ndim == 2:
        size = int(arrays[1].shape[0])
        return {9: "GRU", 12: "LSTM"}[len(arrays)], size, {"units": size}
    if not arrays or arrays[0].ndim != 2:
        return None
    if len(arrays) == 1:
        rows, size = map(int, arrays[0].shape)
        if "embedding" in kind or "embedding" in name:
            return "Embedding", size, {"input_dim": rows, "output_dim": size}
        return "Dense", size, {"units": size, "use_bias": False}
    second = arrays[1]
    if len(arrays) == 2 and second.ndim == 1:
        return "Dense", int(arrays[0].shape[1]), {"units": int(arrays[0].shape[1])}
    if second.ndim != 2 or second.shape[0] == 0 or len(arrays) > 3:
        return None
    size, gates = int(second.shape[0]), second.shape[1] / second.shape[0]
    config: dict[str, Any] = {"units": size, "use_bias": len(arrays) == 3}
    bias = arrays[2].shape if len(arrays) == 3 else None
    if gates == 4:
        return ("CuDNNLSTM" if bias == (8 * size,) else "LSTM"), size, config
    if gates == 3:
        if bias is not None and bias != (6 * size,):
            config["reset_after"] = len(bias) == 2
        return ("CuDNNGRU" if bias == (6 * size,) else "GRU"), size, config
    return ("SimpleRNN", size, config) if gates == 1 else None


def _orders(guesses: Sequence[Guess]) -> Iterator[list[Guess]]:
    """All orders in which each layer takes what the one before gives, equal kinds by number."""
    steps = 0

    def number(guess: Guess) -> tuple[str, int]:
        found = re.fullmatch(r"(.*?)(?:_(\d{1,6}))?", guess.group, re.DOTALL)
        assert found is not None
        return found[1], int(found[2] or 0)

    ranked = sorted(guesses, key=number)

    def extend(row: list[Guess], rest: list[Guess]) -> Iterator[list[Guess]]:
        nonlocal steps
        steps += 1
        if steps > _MOST_STEPS:
            raise InteropError(f"the file has too many layers to find their order; {_HELP}")
        if not rest:
            yield row
        started = set()
        for i, guess in enumerate(rest):
            base = number(guess)[0]
            if base in started:  # one of its kind with a lower number comes first
                continue
            started.add(base)
            if guess.input_size == (row[-1].output_size if row else guess.input_size) and (
                guess.input_size is not None or not row
            ):
                yield from extend([*row, guess], rest[:i] + rest[i + 1 :])

    return extend([], ranked) if ranked else iter(())
