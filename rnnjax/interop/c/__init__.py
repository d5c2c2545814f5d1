"""A step of a trained cell or model as a file of C, for where no Python runs.

It needs no package, and no compiler.
"""

import os
import pathlib
import re
from typing import Any, overload

from rnnjax.cells.base import Cell, Params
from rnnjax.errors import InvalidInputError
from rnnjax.interop.c.compiled import Stream, stream
from rnnjax.interop.c.program import KEYWORDS, program_of
from rnnjax.interop.c.source import written
from rnnjax.interop.files import check_path, write_whole
from rnnjax.interop.model import Model

__all__ = ["Stream", "save", "stream"]
Path = str | os.PathLike[str]


@overload
def save(model: Model, path: Path, /, *, weights: str = "float32", data: Any = None) -> None: ...
@overload
def save(
    cell: Cell, params: Params, path: Path, /, *, input_size: Any = None,
    weights: str = "float32", data: Any = None,
) -> None: ...  # fmt: skip
def save(*what: Any, input_size: Any = None, weights: str = "float32", data: Any = None) -> None:  # noqa: D417  # the overloads name them
    """Write one step of a cell or model as ``name.c``, and how to call it as ``name.h``.

    Call it as ``save(cell, params, path)`` or ``save(model, path)``.

    It is C99, and C++11 too. It needs ``math.h`` alone, asks for no memory, and changes no global::

        struct name_state state;  // its size is known: static, on the stack, or in an object
        name_reset(&state);       // begin a sequence, as cell.start
        name_step(&state, x, y);  // one step: x in, y out

    Each state is a stream of its own, and two threads may each have one. Features that a cell takes
    as they are (``raw``) are arguments of their own, by their names. Names, shapes and bytes of all
    arrays are in the header. It compiles with the ``.c`` of the same save alone, so copy both.

    The step is what `Cell.step` computes, in float32: wider or narrower parameters are rounded, and
    what a cell computes in fewer bits is not. What depends on parameters alone is computed now.
    ``tanh`` and the logistic function are off by 2e-7 at most, so divide by no gate near 0, take no
    root of it, and no logarithm of 1 minus a gate near 1. The logarithm of ``jax.nn.sigmoid``, or
    of a part, is computed from the argument of that, so it is exact. JAX takes numbers below
    1.2e-38 for 0, and C does not. Dropout and noise are left out, as for prediction.

    Of a model every layer must run forward in time: recurrent layers, dense ones, embeddings,
    normalisations, activations, and causal convolutions, whose state is the steps before. Behind
    the last output of a recurrent layer, or ``x[:, -1]``, any layer without a state may be.
    The first that does not fit is refused by its name: each entry of what a model computes is
    followed to the steps that it comes from, however far back these are. An operation that is not
    known to keep steps apart counts as one that reads them all. Ids are ``int32_t``. At a
    step that a mask leaves out recurrent layers keep their state, and what comes out is that of the
    last valid step again, as in Keras, so padding may be fed to the end. A cell whose state does
    not hold its output is refused there.

    Args:
        cell: any cell whose step is made of operations that C is written of: those of the library,
            stacks of them, and most cells of one's own.
        params: its parameters.
        model: of layers, or a graph of ONNX.
        path: of the file, which ends in ``.c``; what is before is the name of the functions. Files
            that are there are replaced.
        input_size: the number of features, where ``params`` have no ``kernel`` that tells. A tuple
            for a cell over a grid, which has the sizes of the grid first.
        weights: ``"int8"`` for products in 8 bits: the columns of a matrix have a scale each, and
            so has every vector that it is multiplied with. States and all else stay float32.
        data: with ``"int8"``, sequences ``(time, batch, features)``, or ids ``(time, batch)``: how
            far the outputs lie from those in float32 over these is written into the header.

    Raises:
        InteropError: C is not written of an operation of the cell, which the message names with the
            line of the cell; a layer, which it names, does not take steps one by one; or a file
            cannot be written.
        InvalidInputError: the name is none that C can have, the state has integers, a parameter is
            NaN, or an argument does not fit.

    >>> import jax, tempfile, rnnjax
    >>> cell = rnnjax.LSTMCell(16)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(cell, cell.init(jax.random.key(0), 3), f"{folder}/keyword.c")
    ...     header = pathlib.Path(folder, "keyword.h").read_text()
    >>> print(re.findall("void.*;", header)[1])
    void keyword_step(struct keyword_state *s, const float *x, float *y);
    >>> print(re.findall("#define .*BYTES.*", header))  # doctest: +NORMALIZE_WHITESPACE
    ['#define KEYWORD_WEIGHT_BYTES 5120', '#define KEYWORD_STATE_BYTES 128',
     '#define KEYWORD_SCRATCH_BYTES 256']
    """
    if len(what) not in (2, 3):
        raise InvalidInputError(
            f"save takes (cell, params, path) or (model, path), but {len(what)} arguments came"
        )
    path = what[-1]
    check_path(path, ".c")
    path = pathlib.Path(path)
    name = path.stem
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or name in KEYWORDS:
        raise InvalidInputError(
            f"the name of the file should be one that C can give a function, but is {name!r}; "
            "begin it with a letter, and go on with letters, digits and _, but take no word of C"
        )
    program = program_of(what[:-1], input_size, weights, data)
    source, header, _ = written(program, name, data)
    write_whole(path.with_suffix(".h"), header.encode())
    write_whole(path, source.encode())
