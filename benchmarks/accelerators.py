"""What is compiled for a TPU and a GPU, on a machine that has neither, and does it stay as it was?

``python -m benchmarks.accelerators [--target v5e|h100|cpu] [--only WORD] [--keep]``

Every cell by every method that runs it, forward and backward, with lengths, a mask and resets, the
train step, and gradients over four devices are compiled ahead of time, and held to the committed
table: with the same compiler no more instructions a step, and no more messages. For the target cpu
it is what the devices of a CPU send each other in a step of data-parallel training. It fails where
that is not so. Nothing runs on an accelerator, so nothing here is a time.
"""

import argparse
import csv
import functools
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

import rnnjax
from benchmarks.compiled import TOPOLOGIES, Compiled, Target
from rnnjax import Fused, Parallel, Scan
from rnnjax.training import Sharding, TrainState, make_train_steps

TABLE = Path(__file__).parent / "accelerators.csv"
# The same compiler schedules the same program alike; what is more than rounding is a change.
TOLERANCE = 1.01
HEADER = "a step", "messages"
SIZE = 128
CELLS: dict[str, rnnjax.Cell] = {
    "SimpleRNNCell": rnnjax.SimpleRNNCell(SIZE),
    "LeakyRNNCell": rnnjax.LeakyRNNCell(SIZE, leak=0.5),
    "LSTMCell": rnnjax.LSTMCell(SIZE),
    "GRUCell": rnnjax.GRUCell(SIZE),
    "GRUCell, reset before": rnnjax.GRUCell(SIZE, reset_after=False),
    "PeepholeLSTMCell": rnnjax.PeepholeLSTMCell(SIZE),
    "ProjectionLSTMCell": rnnjax.ProjectionLSTMCell(SIZE, proj_size=SIZE // 2),
    "LayerNormLSTMCell": rnnjax.LayerNormLSTMCell(SIZE),
    "LayerNormGRUCell": rnnjax.LayerNormGRUCell(SIZE),
    "MGUCell": rnnjax.MGUCell(SIZE),
    "MinGRUCell": rnnjax.MinGRUCell(SIZE),
    "MinLSTMCell": rnnjax.MinLSTMCell(SIZE),
    "LRUCell": rnnjax.LRUCell(SIZE),
    "S5Cell": rnnjax.S5Cell(SIZE),
    "RGLRUCell": rnnjax.RGLRUCell(SIZE),
    "TemporalConvCell": rnnjax.TemporalConvCell(SIZE),
    # This and the matrix memories small: the chip fills the last axis of their state up to 128, and
    # compiling takes long.
    "S6Cell": rnnjax.S6Cell(16, state_size=4),
    "DiagonalLSTMCell": rnnjax.DiagonalLSTMCell(SIZE),
    "SLSTMCell": rnnjax.SLSTMCell(SIZE, heads=2),
    "MLSTMCell": rnnjax.MLSTMCell(16, heads=2),
    "Mamba2Cell": rnnjax.Mamba2Cell(16, heads=2, state_size=8),
    "GatedDeltaNetCell": rnnjax.GatedDeltaNetCell(16, heads=2),
    "LSTMCell(50)": rnnjax.LSTMCell(50),
}
# Where the methods are compared: the shape of the layers in `docs/benchmarks.md`.
COMPARED: dict[str, rnnjax.Cell] = {
    "LSTMCell(256)": rnnjax.LSTMCell(256),
    "GRUCell(256)": rnnjax.GRUCell(256),
    "MinGRUCell(256)": rnnjax.MinGRUCell(256),
    "Mamba2Cell(256)": rnnjax.Mamba2Cell(256),
}
Programs = Iterator[tuple[str, Callable[[], Compiled]]]


def main() -> None:
    """Compile, print the table, and compare it with the committed one or take its place."""
    parser = argparse.ArgumentParser("python -m benchmarks.accelerators", description=__doc__)
    parser.add_argument("--target", choices=[*TOPOLOGIES, "h100", "cpu"], default="v5e")
    parser.add_argument("--only", default="", help="programs whose name has this in it")
    parser.add_argument("--keep", action="store_true", help="take the place of the table")
    options = parser.parse_args()
    target, found, failed = Target(options.target), dict[str, Compiled](), list[str]()
    print(f"{'program, ' + options.target:48} {unit(target)} a step  messages")
    for name, compiled in programs(target):
        if options.only in name:
            try:
                found[name] = compiled()
            except Exception as error:  # the others are of interest all the more
                print(f"{name:48} {type(error).__name__}: {error}", file=sys.stderr)
                failed.append(f"{name}: it could not be compiled")
                continue
            a_step, messages = found[name]
            print(f"{name:48} {a_step:14}  {messages:8}", flush=True)
    kept = read()
    if options.keep:
        others = [row for row in kept if row[0] != options.target or row[1] not in found]
        by = compiler(options.target)
        write([*others, *((options.target, name, *row, by) for name, row in found.items())])
        sys.exit("\n".join(failed) or 0)
    worse = [*failed, *regressions(options.target, found, kept, complete=not options.only)]
    print("\n".join(worse) or f"as in {TABLE.name}, or better: {len(found)} programs")
    sys.exit(bool(worse))


def compiler(target: str) -> str:
    """What compiled, which is what the numbers hold for."""
    package = "jaxlib" if target in ("h100", "cpu") else "libtpu"
    return f"jax {jax.__version__}, {package} {version(package)}"


def unit(target: Target) -> str:
    """What is counted."""
    return {"h100": "launches", "cpu": "bytes"}.get(target.kind, "bundles")


def programs(target: Target) -> Programs:
    """Each program's name, and a function that compiles it."""
    if target.kind == "cpu":
        for devices in (1, 2, 4, 8):
            name = f"train step, 64 rows over {devices} device{'s' * (devices > 1)}"
            yield name, functools.partial(data_parallel, target, devices)
        return
    # Compiling for a GPU takes longer, and of the other cells a TPU's programs say the same.
    for name, cell in ({} if target.kind == "h100" else CELLS).items():
        yield from each_way(target, name, cell, (8, 8, SIZE), [Fused(), Parallel()])
    for name, cell in COMPARED.items():
        methods = [Scan(), Fused(), Parallel()]
        yield from each_way(target, name, cell, (100, 32, 256), methods, marked=False)
    yield "train step, 2 x LSTMCell", functools.partial(train_step, target)
    if target.kind == "h100":
        return
    yield "gradient over 4 devices", functools.partial(over_devices, target)
    for backward in (False, True):
        which = "gradient" if backward else "forward"
        yield f"steps over 4 devices, {which}", functools.partial(over_steps, target, backward)


def each_way(
    target: Target,
    name: str,
    cell: rnnjax.Cell,
    shape: tuple[int, int, int],
    methods: list[rnnjax.Method],
    marked: bool = True,
) -> Programs:
    """A layer, and its gradient, by each of the methods that runs it."""
    for method in [each for each in methods if not each.refusal(cell)]:
        for backward in (False, True):
            label = f"{name}, {'gradient' if backward else 'forward'}, {method}"
            yield label, functools.partial(layer, target, cell, backward, shape, method, marked)


def layer(
    target: Target,
    cell: rnnjax.Cell,
    backward: bool,
    shape: tuple[int, int, int],
    method: rnnjax.Method,
    marked: bool,
) -> Compiled:
    """One layer, forward or with the gradient of everything."""
    xs, marks = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:2], bool)
    lengths = jax.ShapeDtypeStruct(shape[1:2], jnp.int32)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), shape[-1]))

    def run(params: Any, xs: Any, mask: Any, resets: Any, lengths: Any) -> Any:
        given = {"mask": mask, "resets": resets, "lengths": lengths} if marked else {}
        return rnnjax.unroll(cell, params, xs, method=method, **given)[1]

    def loss(*arguments: Any) -> Any:
        return (run(*arguments) ** 2).sum()

    function = jax.grad(loss, (0, 1)) if backward else run
    return target.compile(function, params, xs, marks, marks, lengths)


def stack() -> Any:
    """Two layers over letters, their parameters, and the loss of a batch of them."""
    cell = rnnjax.Stack([rnnjax.LSTMCell(SIZE), rnnjax.LSTMCell(SIZE)])

    def loss(params: Any, carry: Any, ids: Any, key: Any) -> Any:
        inputs = rnnjax.OneHot(ids[:-1], 64)
        carry, ys = rnnjax.unroll(cell, params["cell"], inputs, carry, method=Fused())
        logits = ys @ params["out"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids[1:])
        return losses.mean(), (carry, {})

    params = {"cell": cell.init(jax.random.key(0), 64), "out": jnp.zeros((SIZE, 64))}
    return cell, params, loss


def train_step(target: Target) -> Compiled:
    """Truncated backpropagation with AdamW, many steps in one program."""
    cell, params, loss = stack()
    optimizer = optax.adamw(1e-3)
    state = TrainState.create(
        params, optimizer, carry=cell.initial_carry((8,)), key=jax.random.key(0)
    )
    steps, batches = make_train_steps(loss, optimizer), jax.ShapeDtypeStruct((4, 17, 8), jnp.int32)
    return target.compile(lambda state, batches: steps(state, batches, 0, 4), state, batches)


def data_parallel(target: Target, devices: int) -> Compiled:
    """The batch divided over devices by a `Sharding`, as by `fit`: one sum of all gradients."""
    cell, params, loss = stack()
    optimizer, rows = optax.adamw(1e-3), 64
    state = TrainState.create(
        params, optimizer, carry=cell.initial_carry((rows,)), key=jax.random.key(0)
    )
    sharding = Sharding.over(devices, rows_axis=2)
    batches = jax.random.randint(jax.random.key(1), (4, 17, rows), 0, 64)
    train_steps = make_train_steps(loss, optimizer, sharding)
    train_steps(sharding.put_state(state), sharding.put_batches(batches), 0, 4)
    return target.sent("train_steps")


def over_devices(target: Target) -> Compiled:
    """The batch divided over four devices, by `jax.shard_map`: one sum of all gradients."""
    cell, params, loss = stack()
    rows, whole = PartitionSpec(None, "over"), PartitionSpec()

    def gradient(params: Any, ids: Any) -> Any:
        def of_all(params: Any) -> Any:
            carry = cell.initial_carry((ids.shape[1],))
            return jax.lax.pmean(loss(params, carry, ids, None)[0], "over")

        return jax.grad(of_all)(params)

    divided = jax.shard_map(gradient, mesh=target.mesh(4), in_specs=(whole, rows), out_specs=whole)
    ids = jax.ShapeDtypeStruct((17, 32), jnp.int32)
    found = target.compile(divided, params, ids, rows=(whole, rows), devices=4)
    if found.messages == 0:
        raise RuntimeError("the gradients over four devices are not summed")
    return found


def over_steps(target: Target, backward: bool) -> Compiled:
    """The steps divided over four devices: of each what it makes of a state goes to all others."""
    cell, whole, steps = rnnjax.MinGRUCell(SIZE), PartitionSpec(), PartitionSpec("over")
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), SIZE))
    xs, marks = (
        jax.ShapeDtypeStruct((64, 8, SIZE), jnp.float32),
        jax.ShapeDtypeStruct((64, 8), bool),
    )

    def run(params: Any, xs: Any, resets: Any) -> Any:
        method = rnnjax.Parallel(axis_name="over")
        return rnnjax.unroll(cell, params, xs, resets=resets, method=method)[1]

    divided = jax.shard_map(
        run, mesh=target.mesh(4), in_specs=(whole, steps, steps), out_specs=steps
    )
    function = (
        jax.grad(lambda *given: (divided(*given) ** 2).sum(), (0, 1)) if backward else divided
    )
    rows = whole, steps, steps
    return target.compile(function, params, xs, marks, rows=rows, devices=4)


def regressions(
    target: str, found: dict[str, Compiled], kept: list[list[str]], complete: bool
) -> Iterator[str]:
    """What is worse than in the table, one sentence each."""
    for kind, name, a_step, messages, by in kept:
        if kind != target or (name not in found and not complete):
            continue
        if name not in found:
            yield f"{name}: it stands in {TABLE.name}, but was not compiled"
            continue
        now = found[name]
        if by == compiler(target) and now.a_step > TOLERANCE * int(a_step):
            yield f"{name}: {a_step} a step before, now {now.a_step}"
        if now.messages > int(messages):
            yield f"{name}: {messages} messages between devices before, now {now.messages}"
    for name in set(found) - {row[1] for row in kept if row[0] == target}:
        yield f"{name}: it is not in {TABLE.name}; --keep writes it there"


def read() -> list[list[str]]:
    """The rows of the committed table, as `write` writes them."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.reader(file))[1:]


def write(rows: list[Any]) -> None:
    """Write the table anew."""
    with TABLE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("target", "program", *HEADER, "compiler"), *rows]
        )


if __name__ == "__main__":
    main()
