"""Trained parameters, from a run's folder or a single file."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from rnnjax.checks import brief, check_instance, check_known, is_integer
from rnnjax.errors import CheckpointError, InteropError, InvalidInputError
from rnnjax.training.checkpoints import Checkpoints, fitted, is_plain, nested
from rnnjax.training.processes import from_first
from rnnjax.training.state import dtype_of

_TREE = "rnnjax.tree"  # the entry of a file's metadata that holds the structure


def load_params(
    path: str | os.PathLike[str], like: Any = None, *, step: int | Literal["best", "last"] = "best"
) -> Any:
    """Read the parameters that a run of `fit` learned, or that `save_params` wrote.

    It needs neither the optimiser nor the loss. It writes nothing, so the run may still train. A
    version reads the parameters of earlier ones, even if it cannot resume their runs.

    Args:
        path: the ``run_dir`` of `fit`, a folder of `Checkpoints`, or a ``.safetensors`` file.
        like: a tree of the same structure, possibly abstract (``jax.eval_shape``). By default the
            parameters come back in dicts and tuples; lists become tuples. A carry needs it:
            ``like=cell.initial_carry((1,))``.
        step: which checkpoint: "best" for the lowest validation loss (the last without validation),
            "last", or its number.

    Returns:
        the parameters, on one device.

    Raises:
        CheckpointError: there is no such run or checkpoint, it is damaged, or the parameters do not
            match ``like``, or are of 64 bits, which JAX narrows without ``jax_enable_x64``.
        InvalidInputError: ``step`` is none of these, or is given for a file.

    >>> import tempfile, optax
    >>> from rnnjax.training import Silent, fit
    >>> run = tempfile.mkdtemp()
    >>> result = fit(
    ...     lambda params, batch, key: ((params["w"] - batch) ** 2).sum(), {"w": np.zeros(2)},
    ...     optax.sgd(0.1), np.ones((5, 2)), 3, key=jax.random.key(0), run_dir=run,
    ...     hooks=[Silent()])
    >>> params = load_params(run)
    >>> bool((params["w"] == result.params["w"]).all())
    True
    """
    if not is_integer(step) and step not in ("best", "last"):
        raise InvalidInputError(
            f'step must be "best", "last" or a whole number, but is {step!r}; leave it out for the '
            "best"
        )
    check_instance("path", path, str | os.PathLike, "the run_dir of a fit, or a .safetensors file")
    path = Path(path)
    if not from_first(path.is_file):
        below = path / "checkpoints"
        checkpoints = Checkpoints(below if from_first(below.is_dir) else path)
        if step == "last":  # where there is none, `best` says so
            return (checkpoints.latest() or checkpoints.best()).params(like)
        return (checkpoints.best() if step == "best" else checkpoints.at(step)).params(like)
    if step != "best":
        raise InvalidInputError(f"{path} is a file, and has no step {step!r}; leave step out")
    return _from_file(path, like)


def save_params(path: str | os.PathLike[str], params: Any) -> None:
    """Write parameters to one ``.safetensors`` file, which `load_params` reads.

    Args:
        path: the path of the file. An existing file is replaced atomically.
        params: a pytree of arrays, parameters or a carry. Each array is stored under its path:
            ``cell.kernel``.

    Raises:
        InteropError: the file cannot be written, or the package safetensors is missing.
        InvalidInputError: the name of the file does not end in ``.safetensors``, two paths have the
            same spelling, or a leaf is not an array of numbers.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "cell.safetensors")
    >>> ones = jax.numpy.ones
    >>> save_params(path, {"cell": {"kernel": ones((3, 8))}, "layers": (ones(1),)})
    >>> jax.tree.map(np.shape, load_params(path))
    {'cell': {'kernel': (3, 8)}, 'layers': ((1,),)}
    """
    from rnnjax.interop.torch.files import DTYPES, write_arrays

    check_instance("path", path, str | os.PathLike, "the first of save_params(path, params)")
    check_known("params", params, "save what the compiled function returns")
    leaves, structure = jax.tree.flatten_with_path(params)
    arrays: dict[str, np.ndarray] = {}
    for keys, leaf in leaves:
        name = _name(keys)
        dtype = dtype_of(leaf)
        if dtype not in DTYPES.values() or name == "__metadata__":
            came = f"{name} is {dtype}" if name else f"are {brief(params)}"
            advice = "cast it, or rename it" if name else "of a result of fit give result.params"
            raise InvalidInputError(
                f"params must be arrays of numbers of a type that safetensors has, but {came}; "
                f"{advice}"
            )
        if name in arrays:
            raise InvalidInputError(f"two arrays of params have the path {name}; rename a key")
        arrays[name] = np.asarray(leaf, order="C")
    names = jax.tree.unflatten(structure, arrays)
    metadata = {_TREE: json.dumps(names)} if is_plain(names) else {}
    from_first(lambda: write_arrays(path, arrays, metadata))


def _from_file(path: Path, like: Any) -> Any:
    from rnnjax.interop.files import opened
    from rnnjax.interop.torch.files import read_arrays

    def read() -> tuple[dict[str, np.ndarray], dict[str, str]]:
        with opened(path) as file:
            arrays, metadata = read_arrays(file)
            return jax.tree.map(np.array, arrays), metadata

    try:
        arrays, metadata = from_first(read)
        names = json.loads(metadata.get(_TREE, "null"))
        like = nested(str(path), arrays, names) if like is None else like
    except InteropError as error:
        raise CheckpointError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); save it again") from error
    return fitted(str(path), arrays, like, _name)


def _name(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator=".")
