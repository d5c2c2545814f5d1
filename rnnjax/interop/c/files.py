"""The two files of a program: its functions in C, and their header."""

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
from rnnjax.interop.c import int8, loops
from rnnjax.interop.c.equations import Equations
from rnnjax.interop.c.operations import FUNCTIONS
from rnnjax.interop.c.program import KEYWORDS, Program, of_cell, of_model
from rnnjax.interop.c.values import Known, Stored, kind_of, literals, places_of
from rnnjax.interop.files import check_path, write_whole
from rnnjax.interop.model import Model, check_model

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
    arrays are in the header.

    The step is what `Cell.step` computes, in float32: wider or narrower parameters are rounded.
    What depends on parameters alone is computed now. ``tanh`` and the logistic function are a
    quotient of polynomials within 1e-6. Dropout and noise are left out, as for prediction.

    Of a model every layer must run forward in time: recurrent layers, dense ones, embeddings,
    normalisations, activations, and causal convolutions, whose state is the steps before. It is run
    over a few steps, at once and one by one, and refused if that differs. Ids are ``int32_t``. At a
    step that a mask leaves out recurrent layers keep their state, and the outputs say nothing.

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
    write_whole(path, source.encode())
    write_whole(path.with_suffix(".h"), header.encode())


def written(program: Program, name: str, data: Any = None) -> tuple[str, str]:
    """The text of ``name.c`` and of ``name.h``; with ``data``, weights of 8 bits."""
    writer = Equations(loops.multiply if data is None else int8.multiply)
    notes = ["Parameters were rounded to float32."] * program.rounded
    notes += [] if data is None else [int8.error(program, data)]
    state = [Stored(f"s->{key}", places_of(*v.shape)) for key, v in program.state.items()]
    for leaf, (key, start) in zip(state, program.state.items(), strict=True):
        writer.label = key
        writer.assign(leaf, Known(start, f"start of {key}"))
    reset, writer.statements = writer.statements, []
    inputs, outputs = (
        [Stored(key, places_of(*x.shape), kind_of(x.dtype)) for key, x in arrays.items()]
        for arrays in (program.inputs, program.outputs)
    )
    given: list[Any] = [
        *(Known(array, key) for key, array in program.params.items()),
        *state,
        *inputs,
    ]
    results = writer.run(program.jaxpr.jaxpr, program.jaxpr.consts, given)
    after, ys = results[: len(state)], results[len(state) :]
    for into, y in zip(outputs, ys, strict=True):
        writer.assign(into, y)
    # Every new array is there before the first old one is overwritten.
    new = [writer.apart(value) for value in after]
    for leaf, value in zip(state, new, strict=True):
        writer.label = "the new state"
        writer.assign(leaf, value)
    steps, scratch = placed(in_place(writer.statements), writer.buffers)
    return _files(program, name, writer.constants, reset, steps, scratch, notes)


_LAST = re.compile(r"(s->\w+)\[([^\]]*)\] = (\$\d+)\[\2\];$")
"""A statement that copies an array to the state, entry by entry."""


def in_place(statements: list[str]) -> list[str]:
    """Let what becomes the new state be computed there, where nothing reads the old one after.

    >>> in_place(["$0[i] = s->h[i] * 2;", "y[i] = $0[i];", "s->h[i] = $0[i];"])
    ['s->h[i] = s->h[i] * 2;', 'y[i] = s->h[i];']
    """
    for copy in statements[::-1]:
        found = _LAST.search(copy)
        if not found or copy not in statements:  # it copies what is another part of the state
            continue
        leaf, index, buffer = found.groups()
        array = re.compile(re.escape(buffer) + r"\b")
        uses = [i for i, one in enumerate(statements) if array.search(one) and one != copy]
        first, rest = statements[uses[0]], statements[uses[0] + 1 :]
        late = any(re.search(rf"{leaf}\b", one) for one in rest if one != copy)
        # The loop that fills it may read the old entry that it replaces, and no other.
        read = re.findall(rf"{leaf}\b(?:\[([^\]]*)\])?", first)
        whole = copy.splitlines()[1:-1] == first.splitlines()[1:-1]
        fills = f"{buffer}[{index}] = " in first
        if whole and fills and not late and all(place == index for place in read):
            statements = [array.sub(leaf, one) for one in statements if one != copy]
    return statements


def placed(
    statements: Sequence[str], buffers: Sequence[tuple[int, str]]
) -> tuple[list[str], dict[str, tuple[int, str]]]:
    """Give arrays that are never needed together one memory; also return the sizes of all."""
    uses: dict[int, list[int]] = {}
    for i, statement in enumerate(statements):
        for number in re.findall(r"\$(\d+)", statement):
            uses.setdefault(int(number), []).append(i)
    slots: list[list[Any]] = []  # of each the size, the kind, and the last statement that needs it
    chosen = {}
    for number in sorted(uses, key=lambda n: uses[n]):
        size, kind = buffers[number]
        free = [i for i, s in enumerate(slots) if s[1] == kind and s[2] < uses[number][0]]
        if not free:
            free = [len(slots)]
            slots.append([0, kind, 0])
        # The smallest that is large enough, else the one that grows least.
        best = min(free, key=lambda i: (slots[i][0] < size, abs(slots[i][0] - size)))
        slots[best] = [max(slots[best][0], size), kind, uses[number][-1]]
        chosen[number] = f"s->scratch_{best}"
    written = [re.sub(r"\$(\d+)", lambda m: chosen[int(m[1])], one) for one in statements]
    return written, {f"scratch_{i}": (size, kind) for i, (size, kind, _) in enumerate(slots)}


def _files(
    program: Program, name: str, constants: Any, reset: Sequence[str], steps: Sequence[str],
    scratch: dict[str, tuple[int, str]], notes: Sequence[str],
) -> tuple[str, str]:  # fmt: skip
    called = "\n".join(steps)
    functions: dict[str, str] = {}
    while more := [f for f in FUNCTIONS if f"@{f}(" in called and f not in functions]:
        functions = {f: FUNCTIONS[f] for f in more} | functions
        called += "\n".join(functions.values())
    listed = [
        f"/* {what}, {list(array.shape)} */\n"
        f"static const {kind} @{key}[{array.size}] = {_numbers(array)};"
        for (kind, *_), (key, array, what) in constants.items()
    ]
    arrays = [f"const {kind_of(x.dtype)} *{key}" for key, x in program.inputs.items()]
    arrays += [f"{kind_of(x.dtype)} *{key}" for key, x in program.outputs.items()]
    signature = f"void @step(struct @state *s, {', '.join(arrays)})"
    named = ["s", *program.inputs]
    unused = [f"  (void){key};" for key in named if not re.search(rf"\b{key}\b", called)]
    texts = "\n\n".join(functions.values())
    both = re.sub("^(?=float|int32_t|void)", "static ", texts, flags=re.MULTILINE)
    source = "\n".join([
        f"/* {program.title}, written by rnnjax; {name}.h says how to call it. */",
        "#include <math.h>", f'#include "{name}.h"', "", *listed, "", both, "",
        "void @reset(struct @state *s) {", *(reset or ["  (void)s;"]), "}", "",
        f"{signature} {{", *unused, *steps, "}", "",
    ])  # fmt: skip
    weights = sum(array.size * _BYTES[kind] for (kind, *_), (_, array, _) in constants.items())
    header = _header(program, name, weights, scratch, signature, notes)
    return re.sub(r"@(\w)", rf"{name}_\1", source), re.sub(r"@(\w)", rf"{name}_\1", header)


_BYTES = {"float": 4, "int32_t": 4, "int8_t": 1}


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
    between = sum(_BYTES[kind] * size for size, kind in scratch.values())
    sizes = {
        **{f"SIZE_OF_{key}": math.prod(one.shape)
           for key, one in (program.inputs | program.outputs).items()},
        "WEIGHT_BYTES": weights, "STATE_BYTES": state, "SCRATCH_BYTES": between,
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
