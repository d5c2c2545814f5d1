"""A step of a trained cell or model as a file of C, for where no Python runs.

It needs no package, and no compiler.
"""

import hashlib
import itertools
import math
import os
import pathlib
import re
import textwrap
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from rnnjax.cells.base import Cell, Params
from rnnjax.checks import check_instance
from rnnjax.errors import InvalidInputError
from rnnjax.interop.c import int8
from rnnjax.interop.c.forms import BYTES, FUNCTIONS, TYPES, kind_of, literals
from rnnjax.interop.c.program import KEYWORDS, Program, of_cell, of_model
from rnnjax.interop.c.writer import Value, Writer, numbers, placed
from rnnjax.interop.files import check_path, write_whole
from rnnjax.interop.model import Model, check_model

__all__ = ["save"]
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
    if len(what) == 2:
        check_model(what[0])
        program = of_model(what[0])
    else:
        check_instance("cell", what[0], Cell, "a Cell such as rnnjax.LSTMCell(50), before params")
        program = of_cell(what[0], what[1], input_size)
    if weights not in ("float32", "int8") or (weights == "int8") != (data is not None):
        raise InvalidInputError(
            f"weights should be 'float32', or 'int8' with data= on which the error is measured, "
            f"but are {weights!r} with{'out' if data is None else ''} data; give both or none"
        )
    source, header = written(program, name, data)
    write_whole(path.with_suffix(".h"), header.encode())
    write_whole(path, source.encode())


def written(program: Program, name: str, data: Any = None) -> tuple[str, str]:
    """The text of ``name.c`` and of ``name.h``; with ``data``, weights of 8 bits."""
    closed, names = program.lowered()
    notes = ["Parameters were rounded to float32."] * program.rounded
    if data is not None:
        exact, (closed, names) = closed, program.lowered(product=int8.product)
        given = list(program.state.values()), list(program.inputs.values())
        notes.append(int8.error(exact, closed, *given, data))
    writer = Writer(names)
    state = [_array(f"s->{key}", start) for key, start in program.state.items()]
    for into, (key, start) in zip(state, program.state.items(), strict=True):
        writer.assign(into, writer.constant(start, name=f"start of {key}"), label=key)
    reset, writer.loops = writer.loops, []
    results = writer.run(closed, [*state, *itertools.starmap(_array, program.inputs.items())])
    for (key, shape), y in zip(program.outputs.items(), results[len(state) :], strict=True):
        writer.assign(_array(key, shape), y)
    # Every new array is there before the first old one is overwritten.
    new = [(into, y) for into, y in zip(state, results, strict=False) if y is not into]
    new = [(into, writer.stored(y, lambda leaf: leaf.name[0] in "$@")) for into, y in new]
    memory, scratch = placed(writer.loops, writer.buffers, new)
    for into, y in new:
        if memory.get(y.name) != into.name:
            writer.assign(into, y, label="the new state")
    steps = [re.sub(r"\$\d+", lambda one: memory[one[0]], str(loop)) for loop in writer.loops]
    leaves = [leaf for loop in (*reset, *writer.loops) for leaf in loop.leaves]
    used = {name for leaf in leaves for name in (leaf.name, leaf.table)}
    constants = {key: one for key, one in writer.constants.items() if key in used}
    arrays = [f"const {_type(x)} *{key}" for key, x in program.inputs.items()]
    arrays += [f"{_type(x)} *{key}" for key, x in program.outputs.items()]
    signature = f"void @step(struct @state *s, {', '.join(arrays)})"
    source = _source(program, name, constants, [*map(str, reset)], steps, signature)
    own = {f"{name}_{one}" for one in re.findall(r"@(\w+)", source)}
    if taken := own & {*program.inputs, *program.outputs}:
        raise InvalidInputError(
            f"the file would call an array or a function {min(taken)!r:.80}, as the model calls an "
            "input or an output; give the file another name"
        )
    weights = sum(array.size * BYTES[_type(array)] for array, _ in constants.values())
    header = _header(program, name, weights, scratch, signature, notes)
    # The header of another save, or of one that was cut off, has a state of other sizes.
    both = "0x" + hashlib.sha256(f"{source}{header}".encode()).hexdigest()[:8]
    source, header = (one.replace("@@", both) for one in (source, header))
    return re.sub(r"@(\w)", rf"{name}_\1", source), re.sub(r"@(\w)", rf"{name}_\1", header)


def _source(
    program: Program, name: str, constants: dict[str, tuple[np.ndarray, str]], reset: list[str],
    steps: list[str], signature: str,
) -> str:  # fmt: skip
    called = "\n".join(steps)
    unused = [f"  (void){key};" for key in ("s", *program.inputs)
              if not re.search(rf"\b{key}(\[|->)", called)]  # fmt: skip
    functions: list[str] = []
    for key, text in reversed([*FUNCTIONS.items()]):  # each before those that call it
        if f"@{key}(" in called:
            functions, called = [text, *functions], called + text
    listed = [
        f"/* {what}, {list(array.shape)} */\n"
        f"static const {_type(array)} {key}[{array.size}] = {_numbers(array)};"
        for key, (array, what) in constants.items()
    ]
    return "\n".join([
        f"/* {program.title}, written by rnnjax; {name}.h says how to call it. */",
        "#include <math.h>", f'#include "{name}.h"', f"#if {name.upper()}_FILES != @@",
        f'#error "{name}.h is of another {name}.c; copy both, or save both again"', "#endif",
        "#ifdef __cplusplus",
        "#define restrict __restrict", "#endif", "", *listed, "", *functions, "",
        "void @reset(struct @state *s) {", *(reset or ["  (void)s;"]), "}", "",
        f"{signature} {{", *unused, *steps, "}", "",
    ])  # fmt: skip


def _array(name: str, one: Any) -> Value:
    return Value.of(name, numbers(one.shape), kind_of(one.dtype))


def _type(array: Any) -> str:
    return TYPES[kind_of(array.dtype)]


def _numbers(array: np.ndarray) -> str:
    texts = literals(array)
    rows = [", ".join(texts[i : i + 8]) for i in range(0, len(texts), 8)]
    return "{\n  " + ",\n  ".join(rows) + "\n}" if len(rows) > 1 else f"{{{rows[0]}}}"


def _header(
    program: Program, name: str, weights: int, scratch: dict[str, tuple[int, str]], signature: str,
    notes: Sequence[str],
) -> str:  # fmt: skip
    def told(arrays: dict[str, Any]) -> str:
        each = ((key, [n for n in one.shape if n != 1] or [1]) for key, one in arrays.items())
        return ", ".join(f"{key} {shape}" for key, shape in each) or "none"

    members = {key: (one.size, "float") for key, one in program.state.items() if one.size}
    state = sum(4 * size for size, _ in members.values())
    between = sum(BYTES[kind] * size for size, kind in scratch.values())
    sizes = {
        **{f"SIZE_OF_{key}": math.prod(one.shape)
           for key, one in (program.inputs | program.outputs).items()},
        "WEIGHT_BYTES": weights, "STATE_BYTES": state, "SCRATCH_BYTES": between,
        "FILES": "@@",
    }  # fmt: skip
    macros = [f"#define {name.upper()}_{key.upper()} {size}" for key, size in sizes.items()]
    fields = members | scratch or {"unused": (1, "float")}
    return "\n".join([
        f"/* {program.title}, one step a call; written by rnnjax.", "",
        f"   Inputs: {told(program.inputs)}", f"   Outputs: {told(program.outputs)}",
        f"   State: {told(program.state)}", "",
        f"   {weights:,} bytes of constants, {state:,} of state, and {between:,} of scratch, which"
        " only a step", "   uses. Nothing else is written to: each state is a stream of its own.",
        *textwrap.wrap(" ".join(notes), 97, initial_indent="   ", subsequent_indent="   "), "*/",
        f"#ifndef {name.upper()}_H", f"#define {name.upper()}_H", "#include <stdint.h>", "",
        *macros, "", "#ifdef __cplusplus", 'extern "C" {', "#endif", "", "struct @state {",
        *(f"  {kind} {key}[{size}];" for key, (size, kind) in fields.items()), "};", "",
        "/* Begin a sequence. */", "void @reset(struct @state *s);", "",
        "/* Take one step; the outputs must be no memory of the inputs. */", f"{signature};", "",
        "#ifdef __cplusplus", "}", "#endif", "#endif", "",
    ])  # fmt: skip
