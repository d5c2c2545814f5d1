"""The questions about single layers: all libraries compute the same, and the reports tell it."""

import argparse
import dataclasses
import functools
import math
import os

import numpy as np
import pytest
from jax.experimental import rnn

from benchmarks import layers as script
from benchmarks.questions import jax_layers, layer_peers, layers, lengths, steps
from benchmarks.questions.jax_layers import Shape
from benchmarks.reports import Outcome, Report, Result

# Those on other backends of Keras need a process each, and are compared where the benchmark runs.
CONTENDERS = {
    contender.name: contender
    for contender in layer_peers.contenders()
    if contender.environment.get("KERAS_BACKEND", "jax") == "jax"
}
QUESTION = layers.question(layers.Settings())


def first_value(name: str, shape: Shape, backward: bool) -> float:
    contender = CONTENDERS[name]
    if "keras" in contender.packages:
        os.environ["KERAS_BACKEND"] = "jax"
    for package in contender.packages:
        pytest.importorskip(package)
    settings = layer_peers.point("", shape, backward).settings
    return next(contender.repetitions(dict(settings))).value


@functools.cache
def expected(shape: Shape, backward: bool) -> float:
    return first_value("rnnjax", shape, backward)


# Weights are laid out by the cell, whatever is computed with them, and ours for every method alike;
# those of one gate by linen alone in another way.
ORDINARY = {("lstm", True), ("gru", False)}
ROWS = [
    pytest.param(
        *(name, cell, backward),
        marks=[]
        if ((cell, backward) in ORDINARY and (cell == "lstm" or not name.startswith("rnnjax")))
        or (name, cell, backward) == ("Flax linen.RNN", "rnn", False)
        else pytest.mark.slow,
    )
    for name in CONTENDERS
    for cell in layers.CELLS
    for backward in (False, True)
]


@pytest.mark.parametrize(("name", "cell", "backward"), ROWS)
def test_every_library_computes_the_same(name, cell, backward):
    shape = Shape(cell, 1, 4, 3, 5)
    if name == "onnxruntime" and backward:
        with pytest.raises(ValueError, match="has no gradients"):
            first_value(name, shape, backward)
        return
    value = first_value(name, shape, backward)
    allowed = 1e-5 if CONTENDERS[name].tolerance is None else CONTENDERS[name].tolerance
    assert value == pytest.approx(expected(shape, backward), rel=allowed)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_every_library_steps_alike_and_keeps_its_state(cell):
    asked = steps.question(steps.Settings(((cell, 4, 3),)))
    shape = Shape(cell, 1, 4, 3, 1)
    calls = {
        "rnnjax": steps.rnnjax_step(prepared=False),
        "rnnjax, prepared": steps.rnnjax_step(prepared=True),
        "PyTorch nn": steps.torch_step,
        "onnxruntime": steps.onnxruntime_step,
    }
    assert {one.name for one in asked.contenders} == {*calls, "rnnjax, prepared, no async dispatch"}
    values = {}
    for contender in asked.contenders:
        if contender.name in calls:
            for package in contender.packages:
                pytest.importorskip(package)
            call = calls[contender.name](shape, False)
            values[contender.name] = [layer_peers.fingerprint(call()) for _ in range(3)]
    first = values.pop("rnnjax")
    assert len(set(first)) == 3
    for each in values.values():
        assert each == pytest.approx(first, rel=1e-5)


def test_swapped_gates_are_noticed(monkeypatch):
    shape = Shape("lstm", 1, 4, 3, 5)
    right = jax_layers.weights(shape)
    values = {backward: expected(shape, backward) for backward in (False, True)}

    def swapped(shape: Shape) -> list:
        gates = [np.split(right[0]["kernel"], 4, axis=-1)[gate] for gate in (0, 2, 1, 3)]
        return [{**right[0], "kernel": np.concatenate(gates, axis=-1)}]

    monkeypatch.setattr(jax_layers, "weights", swapped)
    for backward, value in values.items():
        wrong = first_value("rnnjax", shape, backward)
        assert wrong != pytest.approx(value, rel=10 * layer_peers.TOLERANCE)


def test_the_fingerprint_is_of_the_outputs_or_of_the_gradients_but_for_the_biases():
    ys = np.full((2, 3, 4), 2.0)
    kernel, bias, biases = np.full((3, 4), 8.0), np.full(4, 100.0), np.full((2, 4), 100.0)
    assert layer_peers.fingerprint([ys]) == 2
    assert layer_peers.fingerprint([ys, kernel, bias, biases, kernel.T]) == pytest.approx(4)


def test_a_short_call_is_repeated(monkeypatch):
    monkeypatch.setattr(layer_peers, "LEAST_SECONDS", 0.0)
    made = []

    def build(shape: Shape, backward: bool):
        def call() -> list:
            made.append((shape, backward))
            return [np.ones((2, 2))]

        return call

    contender = layer_peers.contender("one", build, ["json"])
    shape = Shape("gru", 1, 4, 3, 5)
    repetitions = contender.repetitions(dict(layer_peers.point("", shape, True).settings))
    assert next(repetitions).value == 1
    assert made == [(shape, True)]
    monkeypatch.setattr(layer_peers, "LEAST_SECONDS", 1e-3)
    calls = next(repetitions).details["calls"]
    assert calls > 1
    assert len(made) == 2 + calls


def test_every_cell_pass_and_shape_is_a_point():
    assert len(QUESTION.points) == 3 * 2 * 11
    assert len({point.name for point in QUESTION.points}) == len(QUESTION.points)


def test_the_operations_are_those_of_the_products():
    point = layer_peers.point("", Shape("lstm", 1, 128, 16, 100), backward=False)
    assert point.flops == 2 * 100 * 16 * (128 + 128) * 4 * 128
    both = layer_peers.point("", Shape("lstm", 1, 128, 16, 100), backward=True)
    assert both.flops == 3 * point.flops


def report_of(question, times: dict[str, float]) -> Report:
    """A contender's time at every point; NaN is a failure."""
    results = [
        Result(
            name,
            point=point.name,
            problem="failed: out of memory" if math.isnan(seconds) else "",
            first=Outcome(1, 1),
            later=[Outcome(seconds, 1), Outcome(seconds, 1)],
        )
        for point in question.points
        for name, seconds in times.items()
    ]
    machine = {"cpu": "a CPU", "cores": 2, "python": "3", "load_before": 0.0}
    ceilings = [
        Result("products", point=point.name, later=[Outcome(point.flops / 1e9, 0)])
        for point in question.points
    ]
    return Report(
        question.name, question.title, "rnnjax", "rms", {"rounds": 2}, machine, results,
        points=list(question.points), ceilings=ceilings,
    )  # fmt: skip


def test_the_tables_of_the_shapes():
    report = report_of(QUESTION, {"rnnjax": 2.0, "PyTorch nn": 3.0, "Keras, torch": math.nan})
    broken = report.results[1]
    broken.problem = "failed: no luck"
    text = layers.tables(report)
    assert text.count("| (700, 12) | 2000 | 50% | 1.50 | – |") == 6
    assert text.count("| (32, 1) | 2000 | 50% | – | – |") == 1
    assert "## SimpleRNN, forward\n\n| (H, batch) | rnnjax, ms | of the ceiling |" in text
    assert "| PyTorch nn | 1.50 (without 1) | 1.50 |" in text
    assert "| Keras, torch | – |" in text
    assert layers.remarks(report) == [
        "PyTorch nn: failed: no luck (SimpleRNN(32), batch 1, forward).",
        "Keras, torch: failed: out of memory (everywhere).",
    ]


def test_the_plot_of_the_shapes_has_a_panel_for_each_cell_and_pass():
    figure = layers.plot(report_of(QUESTION, {"rnnjax": 2.0, "Flax nnx.RNN": 3.0}))
    assert [axes.get_title() for axes in figure.axes[:4]] == [
        "SimpleRNN, forward",
        "LSTM, forward",
        "GRU, forward",
        "SimpleRNN, forward + backward",
    ]
    assert len(figure.axes) == 6


def test_the_lengths_are_told_by_the_step():
    report = report_of(lengths.question(lengths.Settings()), {"rnnjax": 2.0, "PyTorch nn": 3.0})
    text = lengths.tables(report)
    assert text.count("| 10,000 | 200 | 2000 | 50% | 1.50 |") == 2
    assert "## LSTM, forward + backward" in text
    figure = lengths.plot(report)
    assert len(figure.axes) == 2
    assert figure.axes[0].get_yscale() == "log"


def test_the_options_choose_cells_and_passes():
    parser = argparse.ArgumentParser()
    script.add_options(parser)
    chosen = parser.parse_args(["--cells", "gru", "--passes", "backward"])
    for name, module in script.QUESTIONS.items():
        settings = script.adjust(module.Settings(), chosen)
        if name == "steps":
            assert settings == module.Settings()
            continue
        assert (settings.cells, settings.passes) == (("gru",), ("backward",))
        assert script.adjust(module.QUICK, parser.parse_args([])) == module.QUICK
        assert dataclasses.asdict(settings)
    shapes = parser.parse_args(["--shapes", "64,16", "700,12"])
    assert script.adjust(layers.Settings(), shapes).shapes == ((64, 16), (700, 12))


def test_cudnn_is_given_the_same_weights(monkeypatch):
    """By JAX's reference for it, as there is no card to run it on."""
    shape = Shape("lstm", 2, 4, 3, 5)

    def instead(x, h, c, packed, lengths, *options):
        unpacked = rnn.unpack_lstm_weights(packed, *options[:3], options[4])
        return rnn.lstm_ref(x, h, c, *unpacked, lengths, *options)

    monkeypatch.setattr(rnn, "lstm", instead)
    outputs, params, xs = jax_layers.cudnn_layers(shape)
    ours, own, time_first = jax_layers.rnnjax_layers(shape)
    np.testing.assert_allclose(outputs(params, xs).swapaxes(0, 1), ours(own, time_first), atol=1e-6)
    with pytest.raises(ValueError, match="the LSTM alone"):
        jax_layers.cudnn_layers(Shape("gru"))
    found = {"jax_cuda12_plugin": True}
    monkeypatch.setattr(layer_peers.importlib.util, "find_spec", found.get)
    assert "cuDNN, by JAX" in {contender.name for contender in layer_peers.contenders()}
