"""The text of a file of C and of its header, of a program."""

import hashlib
import itertools
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from rnnjax.errors import InvalidInputError
from rnnjax.interop.c import int8
from rnnjax.interop.c.forms import BYTES, FUNCTIONS, TYPES, kind_of, literals
from rnnjax.interop.c.program import Program
from rnnjax.interop.c.writer import Value, Writer, placed
from rnnjax.interop.jaxprs import numbers


def written(
    program: Program, name: str, data: Any = None, apart: bool = False
) -> tuple[str, str, list[np.ndarray]]:
    """The text of ``name.c`` and of ``name.h``, and the constants; with ``data``, of 8 bits.

    With ``apart`` constants are no text but pointers, which ``name_bind`` sets to their addresses:
    a compiler reads 2 million numbers for 7 seconds, and makes the same machine code without them.
    """
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
    results = writer.written(closed, [*state, *itertools.starmap(_array, program.inputs.items())])
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
    source = _source(program, name, constants, [*map(str, reset)], steps, signature, apart)
    own = {f"{name}_{one}" for one in re.findall(r"@(\w+)", source)}
    if taken := own & {*program.inputs, *program.outputs}:
        raise InvalidInputError(
            f"the file would call an array or a function {min(taken)!r:.80}, as the model calls an "
            "input or an output; give the file another name"
        )
    weights = sum(array.nbytes for array, _ in constants.values())
    header = _header(program, name, weights, scratch, signature, notes)
    # The header of another save, or of one that was cut off, has a state of other sizes.
    both = "0x" + hashlib.sha256(f"{source}{header}".encode()).hexdigest()[:8]
    source, header = (one.replace("@@", both) for one in (source, header))
    source, header = (re.sub(r"@(\w)", rf"{name}_\1", one) for one in (source, header))
    return source, header, [array for array, _ in constants.values()]


def _source(
    program: Program, name: str, constants: dict[str, tuple[np.ndarray, str]], reset: list[str],
    steps: list[str], signature: str, apart: bool,
) -> str:  # fmt: skip
    called = "\n".join(steps)
    unused = [f"  (void){key};" for key in ("s", *program.inputs)
              if not re.search(rf"\b{key}(\[|->)", called)]  # fmt: skip
    functions: list[str] = []
    for key, text in reversed([*FUNCTIONS.items()]):  # each before those that call it
        if f"@{key}(" in called:
            functions, called = [text, *functions], called + text
    listed = []
    for key, (array, what) in constants.items():
        told = f"*{key}" if apart else f"{key}[{array.size}] = {_numbers(array)}"
        listed.append(f"/* {what}, {list(array.shape)} */\nstatic const {_type(array)} {told};")
    return "\n".join([
        f"/* {program.title}, written by rnnjax; {name}.h says how to call it. */",
        "#include <math.h>", f'#include "{name}.h"', f"#if {name.upper()}_FILES != @@",
        f'#error "{name}.h is of another {name}.c; copy both, or save both again"', "#endif",
        "#ifdef __cplusplus",
        "#define restrict __restrict", "#endif", "", *listed, "", *functions, "",
        "void @reset(struct @state *s) {", *(reset or ["  (void)s;"]), "}", "",
        f"{signature} {{", *unused, *steps, "}", "",
        *(_driven(program, constants) if apart else ()),
    ])  # fmt: skip


def _driven(program: Program, constants: dict[str, tuple[np.ndarray, str]]) -> list[str]:
    """Functions for a process that loads the code: constants by address, and steps in a loop."""
    binds = [f"  {key} = (const {_type(array)} *)at[{i}];"
             for i, (key, (array, _)) in enumerate(constants.items())]  # fmt: skip
    arrays = [
        f"({const}{_type(one)} *){name}[{k}] + i * {math.prod(one.shape)}"
        for const, name, them in (("const ", "x", program.inputs), ("", "y", program.outputs))
        for k, one in enumerate(them.values())
    ]
    return [
        "void @bind(const void **at) {", *(binds or ["  (void)at;"]), "}", "",
        "long @words(void) { return (long)(sizeof(struct @state) / sizeof(float)); }", "",
        "void @resets(struct @state *s, long rows) { while (rows--) @reset(s++); }", "",
        "void @run(struct @state *s, const void **x, void **y, long steps, long rows) {",
        "  for (long i = 0; i < steps * rows; i++)",
        f"    @step(s + i % rows, {', '.join(arrays)});", "}", "",
    ]  # fmt: skip


def _array(name: str, one: Any) -> Value:
    return Value.of(name, numbers(one.shape), kind_of(one.dtype))


def _type(array: Any) -> str:
    return TYPES[kind_of(array.dtype)]


def _numbers(array: np.ndarray) -> str:
    texts = literals(array)
    rows = [", ".join(texts[i : i + 8]) for i in range(0, array.size, 8)]
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
