"""The state dict in a checkpoint, which holds an optimizer, an epoch and more besides."""

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
_WRAPPERS = ("module.", "_orig_mod.")  # of nn.DataParallel and torch.compile


def find_state(tree: Any, at: str | None) -> tuple[Mapping[Any, Any], list[str]]:
    """The one state dict in it, and where others are that have no recurrent module.

    Args:
        tree: dicts, lists and tuples, in each other.
        at: the keys that lead to the state dict, with ``/`` between them, where it is told.

    Raises:
        InteropError: there is more than one, or ``tree`` is no dict and there is none.
        InvalidInputError: ``at`` leads nowhere.

    >>> import numpy as np
    >>> state = {"lstm.weight_ih_l0": np.ones((20, 3))}
    >>> find_state({"model": state, "epoch": 3}, None) == (state, [])
    True
    """
    held = dict(_mappings(tree))
    if at is not None and at not in held:
        raise InvalidInputError(
            f"at should lead to a dict, as {_list([*filter(None, held)]) or 'nothing here'} does, "
            f"but is {at!r}"
        )
    if at is not None:
        return held[at], []
    # By the first path to each: two may lead to one.
    paths = {id(state): path for path, state in reversed(held.items()) if _has_parameters(state)}
    found = [*reversed(paths.values())]
    recurrent = [path for path in found if _is_recurrent(held[path])]
    chosen = recurrent or found or [path for path in held if not path]
    if not chosen:
        raise InteropError("it holds no dict, and so no state dict; save model.state_dict()")
    if len(chosen) > 1:
        raise InteropError(
            f"it holds {len(chosen)} state dicts, {_list(chosen)}; say which one, as in "
            f"at={chosen[0]!r}"
        )
    return held[chosen[0]], [path for path in found if path not in chosen]


def wrapper_of(keys: Sequence[str]) -> str:
    """What every key begins with where the module was wrapped.

    >>> wrapper_of(["module.lstm.weight_ih_l0", "module.head.bias"])
    'module.'
    """
    prefix = ""
    while more := [w for w in _WRAPPERS if keys and all(k.startswith(prefix + w) for k in keys)]:
        prefix += more[0]
    return prefix


def _mappings(tree: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Every dict with the keys that lead to it, the outer ones first; each is searched once."""
    level, seen = [("", tree)], set()
    for _ in range(_DEEPEST):
        inner = []
        for path, value in level:
            if isinstance(value, Mapping):
                yield path, value
            if id(value) in seen or not isinstance(value, Mapping | list | tuple):
                continue
            seen.add(id(value))
            for key, held in value.items() if isinstance(value, Mapping) else enumerate(value):
                if isinstance(held, Mapping | list | tuple):
                    inner.append((f"{path}/{str(key)[:60]}".removeprefix("/"), held))
        level = inner


def _has_parameters(state: Mapping[Any, Any]) -> bool:
    return any(
        isinstance(key, str)
        and key.rpartition(".")[2].startswith(("weight", "bias"))
        and hasattr(value, "shape")
        for key, value in state.items()
    )


def _is_recurrent(state: Mapping[Any, Any]) -> bool:
    return any(isinstance(key, str) and RECURRENT_KEY.fullmatch(key) for key in state)


def _list(paths: Sequence[str]) -> str:
    return ", ".join(f"{path[:60]!r}" for path in paths[:12]) + ", ..." * (len(paths) > 12)
