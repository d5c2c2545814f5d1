"""One question asked at several settings, as if each were a module of its own."""

from types import SimpleNamespace
from typing import Any

SHARED = ("question", "remarks", "write_weights", "tables", "plot")


def variants(module: Any) -> dict[str, Any]:
    """What ``benchmarks.command`` needs of each of a module's ``VARIANTS``, by name.

    They are not points of one question, as each begins in fresh processes: what is cold, or how
    much memory a process had at most, can be measured once in it.
    """
    shared = {name: getattr(module, name) for name in SHARED if hasattr(module, name)}
    return {name: variant(shared, *both) for name, both in module.VARIANTS.items()}


def variant(shared: dict[str, Any], full: Any, quick: Any) -> Any:
    """The shared functions, with settings in place of the defaults and of ``QUICK``."""
    return SimpleNamespace(Settings=lambda: full, QUICK=quick, **shared)
