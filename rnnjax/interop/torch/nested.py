"""The state dict in a checkpoint, which holds an optimizer, an epoch and more besides."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rnnjax.errors import InteropError, InvalidInputError

RECURRENT_KEY = re.compile(
    r"(?:(?P<prefix>.*)\.)?(?P<array>weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)"
    r"(?P<place>_l(?:0|[1-9][0-9]{0,3})(?:_reverse)?)?",
    re.DOTALL,
)
_DEEPEST = 6  # dicts in dicts, the outermost counted; longer paths would be memory for nothing
_MOST_STATES = 1000  # that are looked at
_WRAPPERS = ("module.", "_orig_mod.")  # of nn.DataParallel and torch.compile


def find_state(tree: Any, at: str | None) -> tuple[Mapping[Any, Any], list[str]]:
    """The one state dict in it, and where others are that have no recurrent module.

    ``at`` is the keys that lead to it, with ``/`` between them, where it is told.

    >>> import numpy as np
    >>> state = {"lstm.weight_ih_l0": np.ones((20, 3))}
    >>> find_state({"model": state, "epoch": 3}, None) == (state, [])
    True
    """
    if at is not None:
        for keys, state in _mappings(tree):
            if _path(keys) == at:
                return state, []
        known = [_path(keys) for keys, _ in itertools.islice(_mappings(tree), 13) if keys]
        raise InvalidInputError(
            f"at should lead to a dict, as {_list(known) or 'nothing here'} does, but is {at!r}"
        )
    candidates = ((_path(keys), s) for keys, s in _mappings(tree) if _has_parameters(s))
    found = list(itertools.islice(candidates, _MOST_STATES))
    chosen = [held for held in found if any(map(is_recurrent_key, held[1]))] or found
    if not chosen and isinstance(tree, Mapping):
        return tree, []
    if not chosen:
        raise InteropError("it holds no dict, and so no state dict; save model.state_dict()")
    path, state = chosen[0]
    if len(chosen) > 1:
        raise InteropError(
            f"it holds {len(chosen)} state dicts, {_list([path for path, _ in chosen])}; say which "
            f"one, as in at={path!r}"
        )
    return state, [other for other, held in found if held is not state]


def wrapper_of(keys: Sequence[str]) -> str:
    """What every key begins with where the module was wrapped.

    >>> wrapper_of(["module.lstm.weight_ih_l0", "module.head.bias"])
    'module.'
    """
    prefix = ""
    for _ in range(4):  # a hostile name may hold millions
        fitting = [w for w in _WRAPPERS if keys and all(k.startswith(prefix + w) for k in keys)]
        prefix += fitting[0] if fitting else ""
    return prefix


def is_recurrent_key(key: Any) -> bool:
    """Whether it is of an array of an RNN, LSTM or GRU, or of a cell of these."""
    return isinstance(key, str) and RECURRENT_KEY.fullmatch(key) is not None


def _path(keys: tuple[Any, ...]) -> str:
    return "/".join(str(key)[:60] for key in keys)


def _mappings(tree: Any) -> Iterator[tuple[tuple[Any, ...], Mapping[Any, Any]]]:
    """Every dict once, the outer ones first, with the keys that lead to it first."""
    level: list[tuple[tuple[Any, ...], Any]]
    level = [((), tree)] if isinstance(tree, Mapping | list | tuple) else []
    seen = {id(tree)}
    for _ in range(_DEEPEST):
        inner = []
        for keys, value in level:
            if isinstance(value, Mapping):
                yield keys, value
            for key, held in value.items() if isinstance(value, Mapping) else enumerate(value):
                if isinstance(held, Mapping | list | tuple) and id(held) not in seen:
                    seen.add(id(held))
                    # No text: two million paths in a hostile file would have gigabytes.
                    inner.append(((*keys, key), held))
        level = inner


def _has_parameters(state: Mapping[Any, Any]) -> bool:
    return any(
        isinstance(key, str)
        and key.rpartition(".")[2].startswith(("weight", "bias"))
        and hasattr(value, "shape")
        for key, value in state.items()
    )


def _list(paths: Sequence[str]) -> str:
    return ", ".join(f"{path[:60]!r}" for path in paths[:12]) + ", ..." * (len(paths) > 12)
