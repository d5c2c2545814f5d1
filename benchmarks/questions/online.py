"""Learning online, beside braintrace and backpropagation through stored sequences."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.questions import layers
from benchmarks.questions.gradients import VALUE_NAME, Call, repeated
from benchmarks.reports import Outcome, Point, Report, short
from benchmarks.timing import Contender, Question

__all__ = ["QUICK", "Settings", "question", "remarks", "tables"]

RULES = {
    "DiagonalLSTM, RTRL": ("DiagonalLSTMCell", "RTRL", "D_RTRL"),
    "GRU, SnAp-1": ("GRUCell", "SnAp1", "SnAp"),
}
"""The cell, and what the rule is called by rnnjax and by braintrace."""
BYTES = "temporary bytes"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every rule, number of units and rows is a point."""

    shapes: tuple[tuple[int, int], ...] = ((32, 1), (64, 8), (128, 8))
    features: int = 32
    time: int = 100


QUICK = Settings(shapes=((6, 2),), features=3, time=5)


def drawn(settings: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """A cell, its parameters, of which none is zero, inputs and targets."""
    import jax

    import rnnjax

    units, rows = settings["shape"]
    keys = jax.random.split(jax.random.key(0), 3)
    cell = getattr(rnnjax, RULES[settings["rule"]][0])(units)
    params = {
        name: array + 0.1 * jax.random.normal(jax.random.key(i), array.shape)
        for i, (name, array) in enumerate(cell.init(keys[0], settings["features"]).items())
    }
    xs = jax.random.normal(keys[1], (settings["time"], rows, settings["features"]))
    targets = jax.random.normal(keys[2], (settings["time"], rows, units))
    return cell, params, xs, targets


def online(settings: dict[str, Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The gradients of all steps, one after the other."""
    import jax
    import jax.numpy as jnp

    import rnnjax.online

    cell, params, xs, targets = drawn(settings)
    learner = getattr(rnnjax.online, RULES[settings["rule"]][1])(cell)

    def gradients(params: Any, xs: Any, targets: Any) -> Any:
        def step(both: Any, at: Any) -> Any:
            (state, total), (x, target) = both, at
            state, y, pull = learner.step(params, state, x)
            return (state, jax.tree.map(jnp.add, total, pull(y - target))), None

        begin = learner.init(params, xs.shape[1:-1]), jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(step, begin, (xs, targets))[0][1]

    return gradients, (params, xs, targets)


def through_time(settings: dict[str, Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The gradient of all steps at once, of a sequence that is stored."""
    import jax
    import jax.numpy as jnp

    import rnnjax

    cell, *arguments = drawn(settings)

    def loss(params: Any, xs: Any, targets: Any) -> Any:
        return jnp.sum((rnnjax.unroll(cell, params, xs)[1] - targets) ** 2) / 2

    return jax.grad(loss), tuple(arguments)


def by_braintrace(settings: dict[str, Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Build the cell for braintrace's compiler, whose products have as many units as the state."""
    import brainstate
    import braintrace
    import jax
    import jax.numpy as jnp

    cell, params, xs, targets = drawn(settings)
    units, rows = settings["shape"]
    gates = cell.gates

    class Net(brainstate.nn.Module):  # type: ignore[misc]  # brainstate is skipped by mypy
        def __init__(self) -> None:
            super().__init__()
            for name, array in params.items():
                parts = array if array.shape[-1] == units else jnp.split(array, len(gates), -1)
                for gate, part in zip(gates, parts, strict=True):
                    setattr(self, f"{name}_{gate}", brainstate.ParamState(part))

        def init_state(self, batch_size: Any = None, **_: Any) -> None:
            self.h = brainstate.HiddenState(jnp.zeros((rows, units)))
            if cell.recurrent is None:
                self.c = brainstate.HiddenState(jnp.zeros((rows, units)))

        def own(self, name: str, gate: str) -> Any:
            return getattr(self, f"{name}_{gate}").value

        def update(self, x: Any) -> Any:
            product, h = braintrace.matmul, self.h.value
            sums = {g: product(x, self.own("kernel", g), self.own("bias", g)) for g in gates}
            if cell.recurrent is None:
                own = {g: braintrace.element_wise(self.own("recurrent_kernel", g)) for g in gates}
                i, f, g, o = (sums[gate] + own[gate] * h for gate in gates)
                c = jax.nn.sigmoid(f) * self.c.value + jax.nn.sigmoid(i) * jnp.tanh(g)
                self.c.value = c
                self.h.value = jax.nn.sigmoid(o) * jnp.tanh(c)
                return self.h.value
            back = {
                g: product(h, self.own("recurrent_kernel", g), self.own("recurrent_bias", g))
                for g in gates
            }
            r, z = (jax.nn.sigmoid(sums[gate] + back[gate]) for gate in "rz")
            self.h.value = (1 - z) * jnp.tanh(sums["n"] + r * back["n"]) + z * h
            return self.h.value

    rule = getattr(braintrace, RULES[settings["rule"]][2])
    options: dict[str, Any] = {"n": 1} if rule.__name__ == "SnAp" else {}
    if cell.recurrent is None:
        # Its default counts twice what c does to the output: by itself, and as a part of h.
        options["vjp_method"] = "multi-step"
    learner = braintrace.compile(Net(), rule, xs[0], batch_size=rows, **options)

    def loss(x: Any, target: Any) -> Any:
        return jnp.sum((learner(x) - target) ** 2) / 2

    def gradients(xs: Any, targets: Any) -> Any:
        return learner.etrace_grad(xs, targets, step_fn=loss, reduction="sum")

    # As a function of its states, which are as they were when it was compiled: all zeros.
    pure = brainstate.transform.StatefulFunction(gradients)
    states = [state.value for state in pure.get_states(xs, targets)]
    return lambda *arguments: pure.jaxpr_call(*arguments)[1], (states, xs, targets)


def counted(build: Callable[..., Any]) -> Callable[[dict[str, Any]], Iterator[Outcome]]:
    """The contender that calls it compiled, whose temporaries the compiler counts."""

    def repetitions(settings: dict[str, Any]) -> Iterator[Outcome]:
        import jax

        sizes = []

        def compiled(settings: dict[str, Any]) -> Call:
            gradients, arguments = build(settings)
            function = jax.jit(lambda *args: (gradients(*args),)).lower(*arguments).compile()
            analysis = function.memory_analysis()
            assert analysis is not None
            sizes.append(analysis.temp_size_in_bytes)
            return function, arguments

        for outcome in repeated(compiled)(settings):
            yield dataclasses.replace(outcome, details={**outcome.details, BYTES: sizes[0]})

    return repetitions


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    points = [
        Point(
            f"{rule}, ({units}, {rows})",
            {
                "rule": rule,
                "shape": (units, rows),
                "features": settings.features,
                "time": settings.time,
            },
        )
        for rule in RULES
        for units, rows in settings.shapes
    ]
    return Question(
        "online",
        f"The gradients of {settings.time} steps of {settings.features} features, one step after "
        "the other, at several (H, batch), beside the same rule of braintrace and backpropagation "
        "through the stored sequence; a repetition is as many calls as take 0.1 s.",
        [
            Contender("rnnjax", counted(online), ["rnnjax", "jax"]),
            Contender("braintrace", counted(by_braintrace), ["braintrace", "jax"]),
            Contender(
                "backpropagation",
                counted(through_time),
                ["rnnjax", "jax"],
                note="of which SnAp-1 leaves parts out",
                tolerance=float("inf"),
            ),
        ],
        baseline="rnnjax",
        value_name=VALUE_NAME,
        tolerance=1e-3,
        relative=True,
        points=points,
    )


def tables(report: Report) -> str:
    """A row a rule and shape."""
    return layers.peer_table(report, report.points, ["rule, (H, batch)"], lambda one: [one.name])


def remarks(report: Report) -> list[str]:
    """Who was not measured, and what each keeps in memory."""
    said = layers.remarks(report)
    for point in report.points:
        sizes = {
            name: result.first.details[BYTES]
            for name, result in report.at(point).items()
            if result.first
        }
        said.append(
            f"{point.name}, {BYTES}: "
            + ", ".join(f"{name} {short(size / 1e6)} MB" for name, size in sizes.items())
            + "."
        )
    return said
