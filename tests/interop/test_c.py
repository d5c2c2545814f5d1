"""Cells and models as C: what a compiled step gives, beside the step of JAX."""

import concurrent.futures
import dataclasses
import functools
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from c_helpers import STRICT, Stream, compiler, library, parts_of
from cell_table import CELLS, UserCell, begun, grid
from interop_helpers import distance
from test_gallery import names

import rnnjax
from rnnjax import LSTMCell
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop import c

STEPS, FEATURES = 500, 2


def drawn(cell: rnnjax.Cell, features: int, random_like: Callable[..., Any]) -> Any:
    """Parameters no two of which are alike."""
    begin = jax.device_get(begun(cell, features))
    return jax.tree.map(lambda a, b: a + np.float32(0.1) * b, begin, random_like(begin, 1))


def expected(cell: rnnjax.Cell, params: Any, xs: np.ndarray, space: tuple[int, ...]) -> np.ndarray:

    @jax.jit
    def run(xs: Any) -> Any:
        start = cell.start(params, space)
        return jax.lax.scan(lambda s, x: cell.step(params, s, x), start, xs)[1]

    return np.asarray(run(xs)).reshape(len(xs), -1)


def gallery() -> dict[str, Any]:
    """The cells of the gallery, with the number of features of their inputs."""
    sizes = {"BlockGRUCell": (8, 3), "ImputeCell": (4, 16)}
    found: dict[str, Any] = {}
    for page in ("gated", "linear", "matrix", "dynamics", "time"):
        for name, value in names(page).items():
            own = isinstance(value, type) and value.__module__ == page
            if own and issubclass(value, rnnjax.Cell) and name not in ("VectorCell", "MatrixCell"):
                units, features = sizes.get(name, (4, 5))
                found[f"{page}_{name}"] = value(units), features, ()
    return found


def table() -> dict[str, Any]:
    return {name: (cell, FEATURES, grid(name)) for name, cell in CELLS.items()}


def check(
    rows: dict[str, Any], folder: Path, random_like: Any, *options: str, by: str = "gcc"
) -> None:
    """Each cell over many steps beside its step in JAX, all compiled by one call.

    By few steps, and of all states: test_leaving.py; of all options: test_options.py.
    """
    rng, wanted = np.random.default_rng(0), {}
    for row, (cell, features, space) in rows.items():
        params, name = drawn(cell, features, random_like), row.replace("-", "_")
        c.save(cell, params, folder / f"{name}.c", input_size=(*space, features))
        xs = rng.uniform(0.1, 1, (STEPS, *space, features)).astype(np.float32)
        if not cell.raw:  # gaps and marks are positive
            xs *= rng.choice([-1, 1], xs.shape)
        wanted[name] = cell, xs, expected(cell, params, xs, space)
    lib = library(folder, *options, by=by)
    for name, (cell, xs, ys) in wanted.items():
        stream = Stream(lib, folder, name)
        got = np.stack([stream.step(*parts_of(cell, x)) for x in xs])
        assert distance(got, ys) < 1e-5, name


@pytest.mark.slow
def test_every_cell_of_the_gallery_is_its_step(tmp_path: Path, random_like: Any) -> None:
    rows = gallery()
    assert len(rows) > 45
    check(rows, tmp_path, random_like)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "options"),
    [("clang-14", ""), ("g++", ""), ("gcc", "-O3 -march=native -ffp-contract=fast")],
    ids=["clang", "c++", "fast"],
)
def test_other_compilers_agree(by: str, options: str, tmp_path: Path, random_like: Any) -> None:
    compiler(by)
    check(table(), tmp_path, random_like, *options.split(), by=by)


ARM = "-mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16 --specs=rdimon.specs"
WAYS = {
    "sanitizers": ("gcc", "-g -fsanitize=address,undefined -fno-sanitize-recover=all", ""),
    "valgrind": ("gcc", "-g", "valgrind -q --error-exitcode=9"),
    "cortex-m4": ("arm-none-eabi-gcc", ARM, "qemu-arm -cpu cortex-m4"),
}


def program(rows: dict[str, tuple[np.ndarray, Any]]) -> str:
    """A program that runs each cell over its inputs, and prints the last outputs of each."""
    lines = ["#include <stdio.h>", *(f'#include "{name}.h"' for name in rows)]
    calls = ["int main(void) {"]
    for name, (xs, raw) in rows.items():
        flat = ", ".join(f"{x:.9g}f" if x % 1 else f"{x:.1f}f" for x in xs.ravel().tolist())
        lines.append(f"static const float x_{name}[{xs.size}] = {{{flat}}};")
        size, stride = f"{name.upper()}_SIZE_OF_Y", xs[0].size
        starts = [0, *np.cumsum([stride - sum(raw), *raw])[:-1]]
        inputs = ", ".join(f"x_{name} + {stride} * t + {start}" for start in starts)
        calls += [
            f"  {{ struct {name}_state s; float y[{size}]; {name}_reset(&s);",
            f"  for (int t = 0; t < {len(xs)}; t++) {name}_step(&s, {inputs}, y);",
            f'  for (int i = 0; i < {size}; i++) printf("%.9g ", (double)y[i]); }}',
            '  printf("\\n");',
        ]
    return "\n".join([*lines, *calls, "  return 0;", "}", ""])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_program_runs_clean(way: str, tmp_path: Path, random_like: Any) -> None:
    """Its states begin uninitialised; on a microcontroller's core it computes the same."""
    by, options, under = WAYS[way]
    given, wanted = {}, {}
    for row, (cell, features, space) in table().items():
        params, name = drawn(cell, features, random_like), row.replace("-", "_")
        c.save(cell, params, tmp_path / f"{name}.c", input_size=(*space, features))
        given[name] = np.random.default_rng(0).normal(size=(50, *space, features)).astype("f4")
        wanted[name] = expected(cell, params, given[name], space)
    raw = {row.replace("-", "_"): [*cell.raw.values()] for row, (cell, _, _) in table().items()}
    rows = {name: (xs, raw[name]) for name, xs in given.items()}
    (tmp_path / "main.c").write_text(program(rows))
    sources = map(str, tmp_path.glob("*.c"))
    command = [compiler(by), "-std=c99", *STRICT, "-O1", *options.split(), *sources, "-lm"]
    subprocess.run([*command, "-o", str(tmp_path / "all")], check=True)
    if under:
        compiler(under.split()[0])
    done = subprocess.run([*under.split(), str(tmp_path / "all")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    for (name, ys), line in zip(wanted.items(), done.stdout.splitlines(), strict=True):
        apart = np.abs(np.array(line.split(), np.float32) - ys[-1]).max()
        assert apart < 1e-5 * np.abs(ys).max(), name


def saved(folder: Path, cell: rnnjax.Cell, features: int = 3, name: str = "cell") -> Any:
    params = begun(cell, features)
    c.save(cell, params, folder / f"{name}.c", input_size=features)
    return params, (folder / f"{name}.c").read_text(), (folder / f"{name}.h").read_text()


RAW: dict[str, Any] = {  # by a name of the file: features, what becomes of them, and arguments
    "words_of_C": ({"i": 1, "float": 2}, lambda y, i, **raw: y * i + raw["float"][..., 1:],
                   "const float *x, const float *i_, const float *float_, float *y"),
    "one_name_for_two": ({"i": 1, "i_": 1}, lambda y, i, i_: y * i + i_,
                         "const float *x, const float *i_, const float *i__, float *y"),
    # Macros are in capitals; an input that nothing reads may have the name of an operation.
    "other_cases_and_functions": (
        {"X": 2, "fabsf": 1, "uint32_t": 1, "tanh": 1},
        lambda y, X, fabsf, uint32_t, tanh: (
            y * fabsf + X.sum(-1, keepdims=True) + whole(jnp.abs(y) * 3) * whole(3 * uint32_t)),
        "*x, const float *X_, const float *fabsf_, const float *uint32_t_, const float *tanh"),
}  # fmt: skip


def raw_cell(raw: dict[str, int], does: Any) -> Any:
    def update(self: Any, params: Any, x: Any, carry: Any, **raw: Any) -> Any:
        return rnnjax.SimpleRNNCarry(does(jnp.tanh(x), **raw))

    return type("RawCell", (UserCell,), {"raw": raw, "update": update})(3)


def test_raw_features_are_arguments_by_their_names(tmp_path: Path) -> None:
    """Which are arrays of their own."""
    cells, params = {name: raw_cell(raw, does) for name, (raw, does, _) in RAW.items()}, {}
    for name, cell in cells.items():
        params[name], _, header = saved(tmp_path, cell, 2 + cell.raw_size, name)
        assert RAW[name][2] in header
    lib, rng = library(tmp_path), np.random.default_rng(0)
    for name, cell in cells.items():
        stream, carry = Stream(lib, tmp_path, name), cell.initial_carry()
        for x in rng.normal(size=(5, 2 + cell.raw_size)).astype(np.float32):
            carry, y = cell.step(params[name], carry, x)
            np.testing.assert_allclose(stream.step(*parts_of(cell, x)), y, 1e-5, 1e-6)


def test_an_input_that_is_called_as_an_array_of_the_file_is_refused(tmp_path: Path) -> None:
    """It would hide that array in silence."""
    cell = raw_cell({"file_kernel_0": 1}, lambda y, file_kernel_0: y * file_kernel_0)
    params = begun(cell, 2)
    c.save(cell, params, tmp_path / "other.c")
    with pytest.raises(InvalidInputError, match=r"would call .* 'file_kernel_0', as"):
        c.save(cell, params, tmp_path / "file.c")


OTHERS = 'cell.h is of another cell.c; copy both, or save both again"'


def said_of(folder: Path) -> str:
    """What a compiler says of a file; nothing if it takes it."""
    command = [compiler("gcc"), "-std=c99", "-fsyntax-only", str(folder / "cell.c")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert bool(done.returncode) == bool(done.stderr)
    return done.stderr


@pytest.mark.parametrize("other", [LSTMCell(8), LSTMCell(64), rnnjax.GRUCell(8)])
def test_a_header_of_another_save_does_not_compile(other: rnnjax.Cell, tmp_path: Path) -> None:
    """Nor where a save that was cut off left it, or it has no such line yet."""
    _, source, header = saved(tmp_path, LSTMCell(8, use_bias=False))
    saved(tmp_path, other)
    (tmp_path / "cell.h").write_text(header)
    for _ in range(2):
        assert OTHERS in said_of(tmp_path)
        (tmp_path / "cell.h").write_text(re.sub("#define CELL_FILES.*", "", header))
    (tmp_path / "cell.c").write_text(source)
    (tmp_path / "cell.h").write_text(header)
    assert not said_of(tmp_path)


def test_a_save_that_is_cut_off_leaves_a_pair_that_does_not_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, LSTMCell(8))
    written = []

    def killed(path: Path, content: bytes) -> None:
        assert not written, "killed"
        written.append(path.write_bytes(content))

    monkeypatch.setattr(c, "write_whole", killed)
    with pytest.raises(AssertionError, match="killed"):
        saved(tmp_path, LSTMCell(64))
    assert OTHERS in said_of(tmp_path)


def test_what_depends_on_parameters_alone_is_computed_before(tmp_path: Path) -> None:
    """A second save writes the same bytes."""
    _, source, header = saved(tmp_path, rnnjax.LRUCell(4))
    assert not {"expf", "cosf"} & {*re.findall(r"\w+", source)}
    assert saved(tmp_path, rnnjax.LRUCell(4))[1:] == (source, header)


def test_sizes_are_in_the_header_and_scratch_is_shared(tmp_path: Path) -> None:
    _, source, header = saved(tmp_path, LSTMCell(64))
    sizes = dict(re.findall(r"#define CELL_(\w+) (\d+)\n", header))
    assert sizes == {
        "SIZE_OF_X": "3", "SIZE_OF_Y": "64", "WEIGHT_BYTES": str(4 * (3 + 64 + 1) * 256),
        "STATE_BYTES": "512", "SCRATCH_BYTES": "1024",
    }  # fmt: skip
    assert len(source.splitlines()) < 200 + 68 * 256 / 8  # loops


def test_two_states_are_independent(tmp_path: Path) -> None:
    """Interleaved, and in two threads; numbers come out as in a stream alone."""
    saved(tmp_path, rnnjax.GRUCell(32))
    lib, xs = library(tmp_path), np.random.default_rng(0).normal(size=(2, 2000, 3)).astype("f4")

    def alone(x: np.ndarray) -> np.ndarray:
        stream = Stream(lib, tmp_path, "cell")
        return np.stack([stream.step(one) for one in x])

    wanted = [alone(x) for x in xs]
    a, b = Stream(lib, tmp_path, "cell"), Stream(lib, tmp_path, "cell")
    both = np.stack([(a.step(p), b.step(q)) for p, q in zip(*xs, strict=True)], 1)
    np.testing.assert_array_equal(both, wanted)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        np.testing.assert_array_equal(list(pool.map(alone, xs)), wanted)


def test_tanh_and_the_logistic_function_are_within_1e_6(tmp_path: Path) -> None:
    x = np.concatenate([np.linspace(-20, 20, 40001), [np.inf, -np.inf, np.nan]]).astype("f4")
    c.save(Elementwise(len(x)), {"kernel": np.ones((1, 1))}, tmp_path / "e.c", input_size=len(x))
    y = Stream(library(tmp_path), tmp_path, "e").step(x).reshape(2, -1)
    exact = np.tanh(x.astype("f8")), 1 / (1 + np.exp(-x.astype("f8")))
    np.testing.assert_allclose(y, exact, atol=1e-6, rtol=0)
    assert np.nanmax(np.abs(y)) == 1


def test_products_and_gates_vectorise(tmp_path: Path) -> None:
    """By gcc, and without -ffast-math."""
    _, source, _ = saved(tmp_path, LSTMCell(64))
    command = [compiler("gcc"), "-std=c99", "-O3", "-fopt-info-vec", "-c", "cell.c"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = set(map(int, re.findall(r"cell\.c:(\d+):\d+: optimized: loop vec", done.stderr)))
    lines = source.splitlines()
    gates = {i for i, line in enumerate(lines) if " = " in line and "cell_tanh(" in line}
    products = {i for i, line in enumerate(lines, 1) if "y[j] +=" in line}
    assert len(gates) == len(products) == 2
    assert gates | products <= found


@dataclasses.dataclass(frozen=True)
class Elementwise(rnnjax.Cell):
    """A cell of operations, which ``does`` computes; the state is not used."""

    hidden_size: int
    does: Any = lambda x: (jnp.tanh(x), jax.nn.sigmoid(x))
    state: Any = np.float32

    @property
    def output_size(self) -> int:
        return self.hidden_size

    def init(self, key: jax.Array, input_size: int) -> Any:
        return {"kernel": np.ones((input_size, 1), np.float32)}

    def initial_carry(self, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> Any:
        return np.zeros((*batch_shape, 1), self.state)

    def step(self, params: Any, carry: Any, x: Any) -> Any:
        y = self.does(x)
        return carry, jnp.stack(y) if isinstance(y, tuple) else y


def whole(x: Any) -> Any:
    return x.astype(jnp.int32)


LEAST = np.int32(-(2**31))
OPERATIONS = {  # besides elementwise ones, all of which test_jaxprs.py has
    "where": lambda x: jnp.where((x > 0.2) & ~(x > 1) | (x < -0.5), x, jnp.clip(x, -0.1, 0.3)),
    "cumsum": lambda x: jnp.cumsum(jax.nn.softmax(x)) + jnp.cumsum(x[::-1])[::-1],
    "reduce": lambda x: jnp.stack([x.sum(), x.max(), x.min(), x.prod(), x.mean(), x.std()]),
    "pad": lambda x: jnp.pad(x.reshape(2, -1), ((1, 2), (0, 1)), constant_values=0.5).T.ravel(),
    "interior": lambda x: jax.lax.pad(x, jnp.float32(2), [(1, 0, 2)]),
    "turned": lambda x: x.reshape(2, -1).T.reshape(-1)[::-1] * 2,
    "outer": lambda x: (x[:, None] * jnp.tanh(x)) @ x,
    "matrix": lambda x: np.arange(24.0).reshape(4, 6).astype("f4") @ x,
    "middle": lambda x: jnp.einsum("ij,jk->ki", x.reshape(2, 3), np.ones((3, 2), "f4")) @ x[:2],
    "counted": lambda x: (x > 0).sum().astype(jnp.float32) * x,
    "row": lambda x: x[None] @ np.arange(18.0).reshape(6, 3).astype("f4") + x.reshape(2, 3),
    "shifted": lambda x: (x @ np.eye(6, 4, dtype="f4") + 1.0)[None] * 2,
    "column": lambda x: (x @ np.eye(6, 4, dtype="f4"))[None] + x[:1][None] + jnp.tanh(x[1]),
    "twice": lambda x: jnp.concatenate(jnp.split(x @ np.eye(6, 4, dtype="f4"), 2)[::-1]),
    "wide": lambda x: jax.lax.conv_general_dilated(
        x.reshape(1, 6, 1), np.arange(6.0).reshape(3, 1, 2).astype("f4"), (2,), [(2, 1)],
        rhs_dilation=(2,), dimension_numbers=("NHC", "HIO", "NHC"),
    ),
    "again": lambda x: jax.checkpoint(lambda x: jnp.sin(x) * x)(jax.lax.stop_gradient(x)),
    "table": lambda x: jnp.arange(12.0).reshape(6, 2)[jnp.clip(x[0].astype(int), 0, 5)] * x[0],
    "padding": lambda x: jnp.array([[0.0, 0], [1, 2], [3, 4]])[
        jnp.clip(jnp.abs(x[0] * 2).astype(int), 0, 2)
    ] * x[1],
    "outside": lambda x: jnp.take(
        jnp.arange(12.0).reshape(6, 2), (x[0] * 4).astype(int), axis=0, mode="fill", fill_value=-7
    ) * x[1],
    "turned_table": lambda x: (
        jnp.stack([x, 2 * x, 3 * x, -x]).reshape(4, 2, 3)[::2].reshape(4, 3).T[
            jnp.clip(jnp.abs(x[0] * 2).astype(int), 0, 2)
        ]
    ),
    "neutral": lambda x: jnp.stack([jnp.zeros(6) - x, x - jnp.zeros(6), jnp.ones(6) / x, x * 1]),
    "any": lambda x: jnp.where(jnp.any(x > 1) | jnp.all(x < 0), x, -x),
    "rows": lambda x: (x.reshape(2, 3) @ np.eye(3, 6, dtype="f4")).max(0) + (
        x.reshape(3, 2) @ np.eye(2, 6, dtype="f4")
    ).min(0),
    "integers": lambda x: (jnp.rint(5 * x).astype(int) @ np.arange(18).reshape(6, 3)) * x[0],
    "far": lambda x: (x * 1e12).astype(int) * 1e-9 + (x / 0 * 0).astype(int),
    "missing": lambda x: jnp.maximum(0, x / (x > 0) * 0) + jnp.minimum(x, (x / (x < 1) * 0).max()),
    "whole": lambda x: jnp.stack([
        jax.lax.div(whole(10 * x), whole(x)), jax.lax.rem(whole(10 * x), whole(x)),
        (whole(10 * x) * 1103515245 + 12345) * 69069 - whole(x), whole(3 * x) ** 3,
        jax.lax.integer_pow(whole(3 * x), 0), jax.lax.integer_pow(whole(3 * x), 1),
        -(whole(x) + LEAST), jax.lax.div(whole(x) * 0 + LEAST, whole(x) * 0 - 1),
        whole(x) + whole(9 * x).max(), whole(x) + whole(9 * x).min(),
        whole(x) + whole(9 * x).prod(),
    ]).astype(jnp.float32),
    "running": lambda x: jnp.stack([
        jnp.cumprod(x), jax.lax.cummax(x), jax.lax.cummin(x, reverse=True),
        jnp.cumsum(whole(3 * x)).astype(jnp.float32), jnp.tile(x[:2], 3), jnp.repeat(x[:2], 3),
    ]),
    "log_gates": lambda x: jnp.stack([
        jnp.log(jax.nn.sigmoid(9 * x - 9)), jax.nn.log_sigmoid(9 * x),
        jnp.exp(0.5 * jnp.log(jax.nn.sigmoid(3 * x - 15))) * 1e3,
    ]),
    "stack": lambda x: jnp.concatenate([jnp.stack([x, x * x]).sum(0), x[:1]]),
    "fortran": lambda x: x.reshape(2, 3).ravel(order="F") * 2,
    "many_axes": lambda x: (
        (x[0] * jnp.arange(4096.0)).reshape((2,) * 12).transpose(*range(0, 12, 2), *range(1, 12, 2))
        + x[1]
    ).sum((0, 3)),
    "bits": lambda x: jnp.stack([
        jax.lax.reduce_and(whole(9 * x), (0,)) * x, jax.lax.reduce_and(x[:0] > 0, (0,)) * x,
    ]),
    "types": lambda x: x + sum(
        jax.lax.dot(whole(9 * x), np.arange(6, dtype=of), preferred_element_type="f4")
        for of in ("i4", "f4")
    ),
    "no_space": lambda x: jax.lax.conv_general_dilated(x[None], np.eye(6, dtype="f4"), (), []),
    "known_key": lambda x: x + jax.random.normal(jax.random.key(3), (6,)),
    "one_turn": lambda x: jax.lax.scan(
        lambda a, b: (jax.lax.scan(lambda a, b: (a * b, a - b), a, b[None])[0], a), x, x[None]
    )[0],
    "log_of_a_part": lambda x: jnp.log(jnp.split(jax.nn.sigmoid(9 * x - 9), 2)[0].reshape(3, 1)),
    "signed_zeros": lambda x: jnp.stack([
        jnp.arctan2(0 * jnp.abs(x), np.float32([0, -0.0] * 3)),
        1 / (jnp.abs(x) * np.float32([0, -0.0] * 3)),
    ]),
}  # fmt: skip


def test_operations(tmp_path: Path) -> None:
    cells = {name: Elementwise(6, does) for name, does in OPERATIONS.items()}
    for name, cell in cells.items():
        c.save(cell, cell.init(None, 6), tmp_path / f"of_{name}.c")
    lib, xs = library(tmp_path), np.random.default_rng(0).normal(size=(9, 6)).astype("f4")
    does = jax.jit(lambda x: {name: cell.does(x) for name, cell in cells.items()})
    wanted = [jax.device_get(does(x)) for x in xs]
    for name in cells:
        stream = Stream(lib, tmp_path, f"of_{name}")
        for x, each in zip(xs, wanted, strict=True):
            y = np.ravel(each[name])
            np.testing.assert_allclose(stream.step(x), y, rtol=1e-5, atol=1e-6, err_msg=name)


def test_integers_of_8_bits_are_cut_off_as_in_jax(tmp_path: Path) -> None:
    cell = Elementwise(6, lambda x: x.astype(jnp.int8))
    c.save(cell, cell.init(None, 6), tmp_path / "bytes.c")
    x = np.float32([300, -1e9, np.nan, np.inf, -7.9, 127])
    y = Stream(library(tmp_path), tmp_path, "bytes").step(x).view(np.int8)[:6]
    np.testing.assert_array_equal(y, cell.does(jnp.asarray(x)))


def test_weights_of_8_bits_are_as_near_as_the_header_says(tmp_path: Path) -> None:
    """Also where a column is zeros, and where inputs are. Arrays of bytes leave no gaps."""
    cell = rnnjax.Stack([rnnjax.GRUCell(15), LSTMCell(7)])
    params = begun(cell, 6)
    params[0]["kernel"] = params[0]["kernel"].at[:, 3].set(0)
    xs = np.random.default_rng(0).normal(size=(60, 2, 6)).astype(np.float32)
    xs[7] = 0
    c.save(cell, params, tmp_path / "small.c", weights="int8", data=xs)
    with (tmp_path / "small.c").open("a") as file:
        file.write("typedef char sizes_agree[sizeof(struct small_state) == SMALL_STATE_BYTES + "
                   "SMALL_SCRATCH_BYTES ? 1 : -1];")  # fmt: skip
    lib, header = library(tmp_path), (tmp_path / "small.h").read_text()
    ours = [Stream(lib, tmp_path, "small") for _ in range(2)]
    ys = np.array([[stream.step(x) for stream, x in zip(ours, row, strict=True)] for row in xs])
    exact = np.asarray(jax.jit(functools.partial(rnnjax.unroll, cell))(params, xs)[1])
    said = re.findall(r"0\.\d+", " ".join(header.split()))[:2]
    apart = np.abs(ys - exact) / np.abs(exact).max()
    # An entry between two steps of a scale may go to either, as sums round.
    np.testing.assert_allclose([apart.max(), apart.mean()], np.array(said, float), rtol=0.2)
    assert apart.max() < 0.03
    assert int(re.findall(r"WEIGHT_BYTES (\d+)", header)[0]) < 0.4 * 4 * sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )


def test_a_column_of_zeros_is_exact_in_8_bits(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32) * [1, 0, 1, 1e-30]
    cell, xs = Elementwise(6, lambda x: x @ weights.astype("f4")), np.eye(6, dtype="f4")
    c.save(cell, cell.init(None, 6), tmp_path / "zeros.c", weights="int8", data=xs[:, None])
    stream = Stream(library(tmp_path), tmp_path, "zeros")
    ys = np.stack([stream.step(x) for x in xs])
    assert not ys[:, 1].any()
    largest = np.abs(weights).max(0) + 1e-38
    np.testing.assert_allclose(ys / largest, weights / largest, rtol=0, atol=0.5 / 127)


def test_a_convolution_and_a_grid_of_8_bits(tmp_path: Path, random_like: Any) -> None:
    cell, space = CELLS["convlstm-1d"], grid("convlstm-1d")
    params = drawn(cell, 2, random_like)
    xs = np.random.default_rng(0).normal(size=(40, 1, *space, 2)).astype(np.float32)
    c.save(cell, params, tmp_path / "grid.c", input_size=(*space, 2), weights="int8", data=xs)
    stream = Stream(library(tmp_path), tmp_path, "grid")
    ys = np.stack([stream.step(x) for x in xs[:, 0]])
    assert 1e-5 < distance(ys, expected(cell, params, xs[:, 0], space)) < 0.05


def test_weights_of_8_bits_need_data(tmp_path: Path) -> None:
    cell, path = LSTMCell(4), tmp_path / "cell.c"
    params = begun(cell, 3)
    for given in ({"weights": "int8"}, {"data": np.ones((5, 2, 3))}, {"weights": "int4"}):
        with pytest.raises(InvalidInputError, match="give both or none"):
            c.save(cell, params, path, **given)
    others = np.zeros((0, 2, 3), "f4"), np.full((5, 2, 3), np.nan, "f4")
    for data in (np.ones((5, 3), "f4"), np.ones((5, 2, 4), "f4"), np.ones((5, 2, 3), int), *others):
        with pytest.raises(InvalidInputError, match=r"data should be sequences \(time, batch, 3\)"):
            c.save(cell, params, path, weights="int8", data=data)
    zeros = jax.tree.map(np.zeros_like, jax.device_get(params))
    c.save(cell, zeros, path, weights="int8", data=np.ones((5, 2, 3), "f4"))
    assert "differ by 0 of the largest" in path.with_suffix(".h").read_text()


@pytest.mark.parametrize("size", ["3", 2.5, (4, None)])
def test_the_size_of_the_inputs_is_a_number(size: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="input_size must be a positive integer, but is"):
        c.save(LSTMCell(4), begun(LSTMCell(4), 3), tmp_path / "a.c", input_size=size)


def refused(cell: Any, message: str, folder: Path, name: str = "cell", error: Any = None) -> None:
    params = {"kernel": np.ones((6, 1), np.float32)}
    with pytest.raises(error or InvalidInputError, match=message):
        c.save(cell, params, folder / f"{name}.c")
    assert not list(folder.iterdir())


REFUSED: dict[str, Any] = {  # by the operation that is named
    "convert_element_type": lambda x: (x.astype(jnp.uint8) - jnp.uint8(9)).astype(jnp.float32),
    "pure_callback": lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((6,), "f4"), x),
    "random_seed": lambda x: x + jax.random.normal(jax.random.key(x[0].astype(int)), (6,)),
    "scan": lambda x: jax.lax.fori_loop(0, 3, lambda i, a: a * x, x),
    "reduce_precision": lambda x: jax.lax.reduce_precision(x, 8, 7),
    "reduce_precision of few exponents": lambda x: jax.lax.reduce_precision(x, 5, 23),
    "conv_general_dilated": lambda x: x + jax.lax.conv_general_dilated(
        x.reshape(1, 1, 6), np.ones((1, 1, 8), "f4"), (1,), "VALID"
    ).sum(),
    "select_n": lambda x: jax.lax.select_n(x > 0, x),
    "pad": lambda x: jax.lax.conv_general_dilated(
        x.reshape(1, 1, 6), np.ones((1, 1, 2), "f4"), (1,), [(-1, 2)]
    ),
    "reduce": lambda x: jax.lax.reduce(x, 0.0, jax.lax.atan2, (0,)) * x,
    "sort": lambda x: jnp.sort(x),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_c_is_not_written_of_names_itself_and_its_line(name: str, tmp_path: Path) -> None:
    line = REFUSED[name].__code__.co_firstlineno if name == "sort" else r"\d+"
    says = rf"no {name.split()[0]} of .* that makes .*, as in test_c\.py:{line}"
    refused(Elementwise(6, REFUSED[name]), says, tmp_path, error=InteropError)


def test_what_cannot_be_written_is_refused_in_a_sentence(tmp_path: Path) -> None:
    cell = Elementwise(6)
    for name in ("step", "float", "1st", "a-b", "_x"):
        refused(cell, f"but is '{name}'; begin it with a letter", tmp_path, name)
    refused(Elementwise(6, state=np.int32), "the state of Elementwise.* is int32", tmp_path)
    whole_state = States(6, lambda carry, x: ({n: whole(a + x) for n, a in carry.items()}, x))
    refused(whole_state, r"a of States.* floating-point numbers, but is int32\(6,\)", tmp_path)
    constant = Elementwise(6, lambda x: jnp.arange(3, dtype=jnp.uint8))
    refused(constant, "y of Elementwise.* is uint8, for which C is not written", tmp_path)
    refused(None, "cell must be a Cell", tmp_path)
    with pytest.raises(InvalidInputError, match=r"params\['kernel'\] of Elementwise\(6\) has NaN"):
        c.save(cell, {"kernel": np.array([[np.nan]])}, tmp_path / "cell.c")
    with pytest.raises(InvalidInputError, match="do not tell; give input_size="):
        c.save(cell, {"other": jnp.ones(3)}, tmp_path / "cell.c")
    with pytest.raises(InvalidInputError, match=r"should end in \.c"):
        c.save(cell, {"kernel": np.ones((6, 1))}, tmp_path / "cell.cpp")


def test_parameters_of_other_types_are_rounded_and_it_is_said(tmp_path: Path) -> None:
    cell = LSTMCell(4, param_dtype=jnp.bfloat16)
    wide = jax.tree.map(lambda a: np.asarray(a, np.float32), begun(cell, 3))
    assert "rounded to float32" in saved(tmp_path, cell)[2]
    c.save(LSTMCell(4), wide, tmp_path / "wide.c")
    texts = [(tmp_path / f"{name}.c").read_text() for name in ("wide", "cell")]
    wide_source, source = (text.partition("#endif")[2] for text in texts)  # behind the header
    assert wide_source.replace("wide", "cell") == source
    assert "rounded" not in (tmp_path / "wide.h").read_text()


@dataclasses.dataclass(frozen=True)
class States(Elementwise):
    """A cell of several states by name, whose step ``does`` computes."""

    sizes: Any = (("a", 6), ("b", 6))

    def initial_carry(self, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> Any:
        return {name: np.zeros((*batch_shape, size), np.float32) for name, size in self.sizes}

    def step(self, params: Any, carry: Any, x: Any) -> Any:
        return self.does(carry, x)


MIXED = np.linspace(-1, 1, 36).reshape(6, 6).astype("f4")


def moved(carry: Any, x: Any) -> Any:
    new = jnp.cos(1.3 * carry["a"][np.array([0, 2, 1, 3, 5, 4])] + x[0])
    return {"a": new}, new


def shared(carry: Any, x: Any) -> Any:
    new = jnp.tanh(carry["a"] + carry["b"] @ MIXED + x)
    return {"a": new, "b": new}, new


def without_entries(carry: Any, x: Any) -> Any:
    new = {"a": jnp.cos(carry["a"]), "b": 0.5 * carry["b"] + x}
    return new, carry["b"] + carry["a"].sum()


def taken(carry: Any, x: Any) -> Any:
    before = 0.1 * carry["scratch_0"] @ MIXED + x
    new = jnp.tanh(before) + jnp.sin(0.1 * before @ MIXED)
    return {"scratch_0": new, "INFINITY": new[::-1]}, new + carry["INFINITY"]


STATES: dict[str, States] = {
    "moved": States(6, moved, sizes=(("a", 6),)), "shared": States(6, shared),
    "without_entries": States(6, without_entries, sizes=(("a", 0), ("b", 6))),
    "taken": States(6, taken, sizes=(("scratch_0", 6), ("INFINITY", 6))),
}  # fmt: skip


def test_states_are_arrays_of_their_own_that_are_not_overwritten_early(tmp_path: Path) -> None:
    """Also where one is moved or shared, has no entries, or a name that is taken."""
    for name, cell in STATES.items():
        c.save(cell, cell.init(None, 6), tmp_path / f"{name}.c", input_size=6)
    lib, xs = library(tmp_path), np.random.default_rng(0).normal(size=(50, 6)).astype("f4")
    for name, cell in STATES.items():
        stream, wanted = Stream(lib, tmp_path, name), expected(cell, {}, xs, ())
        got = np.stack([stream.step(x) for x in xs])
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5, err_msg=name)
