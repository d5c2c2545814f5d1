"""The contenders of the benchmarks' questions, at tiny shapes: they run, and compute the same."""

import dataclasses
import functools
import itertools
import mmap
import os

import pytest

from benchmarks.questions import (
    compile_time,
    import_time,
    memory,
    train_step,
    train_step_types,
    writing,
)
from benchmarks.questions.variants import variants
from benchmarks.reports import Outcome, Report, Result

LAYERS = compile_time.Settings("lstm", 1, 3, 2, 4)
BOOK = {"layers": 2, "hidden_size": 5, "vocabulary_size": 7, "batch_size": 2}


def outcomes(question, name: str, settings, number: int = 2) -> list[Outcome]:
    """The first outcomes of a contender, or a skip."""
    (contender,) = (one for one in question.contenders if one.name == name)
    if "keras" in contender.packages:
        os.environ["KERAS_BACKEND"] = "jax"
    for package in contender.packages:
        pytest.importorskip(package)
    return list(itertools.islice(contender.repetitions(dataclasses.asdict(settings)), number))


def names(question, but: tuple[str, ...] = ()) -> list[str]:
    """Of the contenders that this process can be: a process has one Keras backend."""
    return [
        one.name
        for one in question.contenders
        if one.environment.get("KERAS_BACKEND", "jax") == "jax" and one.name not in but
    ]


@functools.cache
def expected_by(module, settings) -> float:
    """The first value of the baseline."""
    question = module.question(settings)
    return outcomes(question, question.baseline, settings, 1)[0].value


def agrees(module, name: str, value: float, settings) -> bool:
    """Whether a value is within what the question allows of the baseline's."""
    question, expected = module.question(settings), expected_by(module, settings)
    (contender,) = (one for one in question.contenders if one.name == name)
    scale = abs(expected) if question.relative else 1
    return abs(value - expected) <= question.allowed(contender) * scale


@pytest.mark.slow
@pytest.mark.parametrize("name", names(compile_time.question(LAYERS)))
def test_everyone_compiles_the_same_gradient_anew_each_time(name):
    first, second = outcomes(compile_time.question(LAYERS), name, LAYERS)
    assert agrees(compile_time, name, first.value, LAYERS)
    assert second.details["instructions"] == first.details["instructions"] > 10
    assert second.details["compile"] > 0.01  # nothing was left in a cache
    assert sum(second.details[phase] for phase in compile_time.PHASES) == pytest.approx(
        second.amount
    )


@pytest.mark.parametrize(
    "name",
    [  # more than there are steps are not kept either way
        pytest.param(name, marks=pytest.mark.slow if name.endswith(("=32)", "=100)")) else [])
        for name in names(memory.question(LAYERS))
    ],
)
def test_everyone_takes_memory_for_the_same_gradient(name):
    first, second = outcomes(memory.question(LAYERS), name, LAYERS)
    assert agrees(memory, name, first.value, LAYERS)
    assert 0 < first.amount <= second.amount < second.details["process"]
    if name != "PyTorch nn.LSTM":
        assert second.details["arguments"] > 0


def test_what_needs_too_much_memory_is_not_run(monkeypatch):
    monkeypatch.setattr(memory, "MOST", 10)
    with pytest.raises(MemoryError, match="temporary, and more than 0 are not tried"):
        outcomes(memory.question(LAYERS), "rnnjax", LAYERS)


def test_a_peak_is_seen():
    before = memory.start_of_peak()
    # Pages of its own: an array might lie in memory that the process has already.
    with mmap.mmap(-1, 20_000_000) as block:
        block.write(b"x" * len(block))
    assert memory.peak_of_process() - before > 15_000_000


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    settings = writing.Settings(**BOOK, weights=str(tmp_path_factory.mktemp("w") / "weights.npz"))
    writing.write_weights(settings)
    return settings.weights


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        pytest.param(texts, name, marks=[] if texts > 1 else pytest.mark.slow)
        for texts in (1, 3)
        for name in names(
            writing.question(dataclasses.replace(writing.QUICK, batch_size=texts)),
            but=(writing.LIMIT,),
        )
    ],
)
def test_everyone_reads_the_same_nats_and_writes(name, texts, weights):
    shape = BOOK | {"batch_size": texts}
    settings = writing.Settings(**shape, length=6, weights=weights)
    first, second = outcomes(writing.question(settings), name, settings)
    assert agrees(writing, name, first.value, settings)
    assert second.amount > 0


def test_the_limit_of_the_bandwidth_is_in_bytes_per_second(weights):
    settings = writing.Settings(**(BOOK | {"batch_size": 1}), length=6, weights=weights)
    _, second = outcomes(writing.question(settings), writing.LIMIT, settings)
    assert second.amount == min(second.details["tall"], second.details["wide"])
    assert second.details["GB/s"] > 0


@pytest.mark.parametrize(
    "name",
    sorted({*names(train_step.question(train_step.QUICK)),
            *names(train_step_types.question(train_step.QUICK))}),
)  # fmt: skip
def test_everyone_takes_the_same_training_step(name, weights):
    settings = train_step.Settings(**(BOOK | {"layers": 1}), time=4, steps=2, weights=weights)
    module = train_step_types
    if name not in names(module.question(settings)):
        module = train_step
    if name == "PyTorch nn.LSTM, bfloat16 autocast":
        cpu = pytest.importorskip("torch").backends.cpu.get_cpu_capability()
        if cpu in ("DEFAULT", "AVX2"):
            with pytest.raises(RuntimeError, match=f"AVX-512; here PyTorch found {cpu}"):
                outcomes(module.question(settings), name, settings)
            return
    first, second = outcomes(module.question(settings), name, settings)
    assert agrees(module, name, first.value, settings)
    assert second.amount > 0


def test_an_import_is_timed_in_a_new_interpreter():
    (outcome,) = itertools.islice(import_time.importing("json")({"imports": 2}), 1)
    assert 0 < outcome.amount < 5
    assert outcome.value > 10


@pytest.mark.parametrize("module", [compile_time, memory, writing])
def test_the_variants_of_a_question_are_kept_apart(module):
    found = variants(module)
    assert found.keys() == module.VARIANTS.keys()
    for settings in ("Settings", "QUICK"):
        asked = [
            variant.question(variant.Settings() if settings == "Settings" else variant.QUICK)
            for variant in found.values()
        ]
        assert len({question.name for question in asked}) == len(asked)
        for question in asked:
            assert question.baseline in [one.name for one in question.contenders]
    writes = [hasattr(variant, "write_weights") for variant in found.values()]
    assert all(writes) == any(writes) == (module is writing)


def report_of(question, settings, **details) -> Report:
    """As if the contenders had taken 1, 2, 3, ... in both of two rounds."""
    machine = {"cpu": "a CPU", "cores": 2, "python": "3", "load_before": 0.0}
    results = [
        Result(one.name, first=Outcome(number, 0, details), later=[Outcome(number, 0, details)] * 2)
        for number, one in enumerate(question.contenders, 1)
    ]
    results[1].problem = "failed"
    return Report(
        question.name, question.title, question.baseline, question.value_name,
        dataclasses.asdict(settings), machine, results,
    )  # fmt: skip


def test_the_remarks_on_writing():
    report = report_of(writing.question(writing.QUICK), writing.QUICK, **{"GB/s": 8.0})
    assert writing.remarks(report) == [
        "rnnjax: 1 characters per second, 600% of the bandwidth limit.",
        "PyTorch nn.LSTM: 0 characters per second, 200% of the bandwidth limit.",
        "PyTorch nn.LSTM, bfloat16: 0 characters per second, 75% of the bandwidth limit.",
        "Keras, jax: 0 characters per second, 120% of the bandwidth limit.",
        "The bandwidth limit: all weights are read once in 6000 ms, at 8.00 GB/s.",
    ]


def test_the_remarks_on_compiling():
    details = {"trace": 0.25, "lower": 0.25, "compile": 0.5, "instructions": 1234}
    report = report_of(compile_time.question(LAYERS), LAYERS, **details)
    said = compile_time.remarks(report)
    assert len(said) == 4
    assert said[0] == (
        "rnnjax: trace 0.250 s, lower 0.250 s, compile 0.500 s; 1,234 instructions of optimised "
        "HLO; in a fresh process 0.333 of Flax linen.RNN's time."
    )


def test_the_remarks_on_memory():
    details = {"temporary": 5.0, "arguments": 1.0, "outputs": 1.0, "process": 300, "seconds": 0.5}
    said = memory.remarks(report_of(memory.question(LAYERS), LAYERS, **details))
    assert len(said) == len(memory.question(LAYERS).contenders) - 1
    assert said[0] == (
        "rnnjax: compiled program: temporary 5.00 MB, arguments 1.00 MB, outputs 1.00 MB; peak of "
        "the process 300 MB; a call 0.500 s, 1.00 of rnnjax's."
    )


def test_the_remarks_on_imports():
    settings = import_time.QUICK
    said = import_time.remarks(report_of(import_time.question(settings), settings))
    assert said[0] == "import rnnjax.linen: 33% of it is jax; the rest takes 2.00 s."
    assert not any("torch" in sentence for sentence in said)


def test_the_remarks_on_training():
    report = report_of(train_step_types.question(train_step.QUICK), train_step.QUICK)
    assert train_step_types.remarks(report)[0] == "rnnjax: 20 characters per second."
