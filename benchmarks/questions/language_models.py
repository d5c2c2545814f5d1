"""A language model of each family beside its peer: a prompt, each further token, a training step.

Each contender reads the same folder of random weights, which is made once in the temporary folder.
"""

import contextlib
import dataclasses
import functools
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.questions import layers
from benchmarks.questions.memory import MEGABYTE, peak_of_process, start_of_peak
from benchmarks.reports import Outcome, Point, Report, markdown, short
from benchmarks.timing import Contender, Question

__all__ = ["QUICK", "VARIANTS", "Settings", "question", "remarks", "tables"]

# Their own rounding of a whole model, and RWKV-7's package reads in its own order.
TOLERANCE = 1e-3
HEAD = 64


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every family, and what is timed of it."""

    families: tuple[str, ...] = (
        "mamba",
        "mamba2",
        "recurrent_gemma",
        "rwkv7",
        "xlstm",
        "gated_delta",
        "olmo_hybrid",
    )
    parts: tuple[str, ...] = ("prompt", "token", "training")
    width: int = 512
    layers: int = 4
    vocabulary: int = 1000
    prompt: int = 512
    rows: int = 4
    """The rows of a training step, each as long as the prompt."""
    patience: float = 100
    """Seconds after which a contender is given up: a slow form of Mamba takes a minute a step."""


QUICK = Settings(("mamba2",), width=64, layers=2, vocabulary=16, prompt=6, rows=2)
# A process for each: a peak is that of the first call, before which nothing large was freed.
VARIANTS = {"language_models": (Settings(), QUICK)} | {
    f"language_models_memory_{family}": (
        Settings((family,), ("training",), prompt=4096, rows=1, patience=400),
        dataclasses.replace(QUICK, families=(family,), parts=("training",)),
    )
    for family in Settings().families
    if family != "rwkv7"
}
"""By the name on the command line: the settings, and those of the quick mode."""


def peer(family: str, settings: Settings) -> Any:
    """A model of transformers with random weights."""
    import torch
    import transformers

    width, heads = settings.width, max(1, settings.width // HEAD)
    sizes: dict[str, Any] = {
        "vocab_size": settings.vocabulary,
        "hidden_size": width,
        "num_hidden_layers": settings.layers,
    }
    inner = {"intermediate_size": 3 * width, "num_attention_heads": heads}
    delta = {
        **inner,
        "num_key_value_heads": max(1, heads // 4),
        "linear_num_key_heads": heads,
        "linear_num_value_heads": heads,
        "linear_key_head_dim": HEAD,
        "linear_value_head_dim": HEAD,
    }
    forms: dict[str, tuple[str, dict[str, Any]]] = {
        "mamba": ("Mamba", {}),
        "mamba2": ("Mamba2", {"num_heads": 2 * heads, "head_dim": HEAD, "n_groups": 1}),
        "recurrent_gemma": ("RecurrentGemma", {**inner, "num_key_value_heads": 1}),
        "xlstm": (
            "xLSTM",
            {"num_heads": max(1, heads // 2), "autocast_kernel_dtype": "float32"},
        ),
        "gated_delta": ("Qwen3_5", {**delta, "head_dim": HEAD}),
        "olmo_hybrid": ("OlmoHybrid", {**delta, "pad_token_id": None, "eos_token_id": 0}),
    }
    name, more = forms[family]
    config = getattr(transformers, f"{name}{'Text' * (name == 'Qwen3_5')}Config")
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config(**sizes, **more)).eval()


def folder_of(family: str, settings: Settings) -> Path:
    """The folder, or file, of a family's weights, made where it is not yet there."""
    sizes = f"{settings.width}-{settings.layers}-{settings.vocabulary}"
    path = Path(tempfile.gettempdir(), f"rnnjax-benchmark-{os.getuid()}", f"{family}-{sizes}")
    if family == "rwkv7":
        path = path.with_suffix(".pth")
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        new = path.with_name(f"{path.name}.new-{os.getpid()}")
        if family == "rwkv7":
            _write_rwkv7(new, settings)
        else:
            peer(family, settings).save_pretrained(new)
        with contextlib.suppress(OSError):  # another contender was sooner
            new.rename(path)
    return path


def _write_rwkv7(path: Path, settings: Settings) -> None:
    import torch

    from experiments.language_models import rwkv7

    width, rng = settings.width, np.random.default_rng(0)
    config = rwkv7.Config(
        settings.vocabulary, width, HEAD, settings.layers, 4 * width, (64, 64, 32, 128)
    )
    tensors = {}
    for name, shape in rwkv7.shapes(config).items():
        value = rng.standard_normal(shape) / math.sqrt(shape[-1])
        value = np.ones(shape) if "ln" in name and name.endswith("weight") else value
        tensors[name] = torch.tensor(value, dtype=torch.float32)
    torch.save(tensors, path)


def tokens_of(settings: Settings, rows: int) -> np.ndarray:
    """Random tokens ``(time, rows)``."""
    shape = settings.prompt, rows
    return np.random.default_rng(1).integers(0, settings.vocabulary, shape).astype(np.int32)


def timed(call: Callable[[], float], build_began: float) -> Iterator[Outcome]:
    """Call again and again; a short call is repeated for a tenth of a second.

    The first outcome says by how many megabytes its call raised the peak of the process.
    """
    before = start_of_peak()
    value = call()
    raised = (peak_of_process() - before) / MEGABYTE
    yield Outcome(perf_counter() - build_began, value, {"raised": raised})
    began = perf_counter()
    call()
    count = max(1, math.ceil(0.1 / (perf_counter() - began)))
    while True:
        began = perf_counter()
        for _ in range(count):
            call()
        yield Outcome((perf_counter() - began) / count, value)


def rnnjax_repetitions(given: dict[str, Any]) -> Iterator[Outcome]:
    """The program of `experiments/language_models`."""
    import jax
    import jax.numpy as jnp
    import optax

    from experiments.language_models import folders

    settings, family, part = _split(given)
    model = folders.read(folder_of(family, settings))
    params = {name: jnp.asarray(x) for name, x in model.params.items()}
    tokens = jnp.asarray(tokens_of(settings, settings.rows if part == "training" else 1))
    began = perf_counter()
    apply = functools.partial(model.family.apply, model.config)
    carry = model.family.begin(model.config, tokens.shape[1], 2 * settings.prompt)
    if part == "training":

        def loss(params: Any) -> jax.Array:
            logits = apply(params, tokens[:-1], carry)[1]
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:]).mean()

        step = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
        return timed(lambda: float(jax.block_until_ready(step(params))[0]), began)

    @jax.jit
    def read(params: Any, tokens: jax.Array, carry: Any) -> Any:
        carry, logits = apply(params, tokens, carry)
        return carry, logits[-1]

    if part == "prompt":
        return timed(lambda: _size(jax.block_until_ready(read(params, tokens, carry))[1]), began)
    after, _ = read(params, tokens[:-1], carry)
    last = tokens[-1:]
    return timed(lambda: _size(jax.block_until_ready(read(params, last, after))[1]), began)


def torch_repetitions(given: dict[str, Any]) -> Iterator[Outcome]:
    """Transformers, or for RWKV-7 the package of its authors, which has no gradient."""
    import torch

    settings, family, part = _split(given)
    rows = settings.rows if part == "training" else 1
    ids = torch.tensor(tokens_of(settings, rows).T.astype(np.int64))
    path = folder_of(family, settings)
    if family == "rwkv7":
        return _rwkv_repetitions(path, ids[0].tolist(), part)
    module = peer(family, settings)
    began = perf_counter()
    if part == "training":
        module.train()

        def step() -> float:
            module.zero_grad(set_to_none=True)
            logits = module(ids, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            return float(loss.detach())

        return timed(step, began)
    name = "past_key_values" if family == "gated_delta" else "cache"
    with torch.inference_mode():
        if part == "prompt":
            return timed(_inferred(lambda: _size(module(ids).logits[0, -1])), began)
        given_cache = {}
        if family == "recurrent_gemma":  # which returns no cache, and has states in the module
            from transformers import DynamicCache

            given_cache = {name: DynamicCache(config=module.config)}
            module.model._setup_cache(module.config, 1, ids.device, torch.float32)
        read = module(ids[:, :-1], use_cache=True, **given_cache)
        more = given_cache or {name: getattr(read, name)}
        # The cache goes on from call to call, so only the first is of the last token.
        return timed(
            _inferred(lambda: _size(module(ids[:, -1:], use_cache=True, **more).logits[0, -1])),
            began,
        )


def _inferred(call: Callable[[], float]) -> Callable[[], float]:
    def run() -> float:
        import torch

        with torch.inference_mode():
            return call()

    return run


def _rwkv_repetitions(path: Path, ids: list[int], part: str) -> Iterator[Outcome]:
    os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
    from rwkv.model import RWKV

    began = perf_counter()
    model = RWKV(str(path.with_suffix("")), "cpu fp32")
    if part == "prompt":
        return timed(lambda: _size(model.forward(ids, None)[0]), began)
    _, state = model.forward(ids[:-1], None)

    def one() -> float:
        return _size(model.forward(ids[-1:], [x.clone() for x in state])[0])

    return timed(one, began)


def _size(logits: Any) -> float:
    """The root of the mean square of the logits after the last token."""
    return float(np.sqrt(np.mean(np.square(np.asarray(logits, np.float64)))))


def _split(given: dict[str, Any]) -> tuple[Settings, str, str]:
    family, part = given["family"], given["part"]
    sizes = {field.name: given[field.name] for field in dataclasses.fields(Settings)}
    return Settings(**sizes), family, part


def question(settings: Settings) -> Question:
    """What is asked, and of whom."""
    points = [
        Point(f"{family}, {part}", {"family": family, "part": part})
        for family in settings.families
        for part in settings.parts
        if (family, part) != ("rwkv7", "training")
    ]
    return Question(
        "language_models",
        f"{settings.layers} layers of {settings.width}, {settings.vocabulary} tokens known: a "
        f"prompt of {settings.prompt}, one further token, and the gradient of {settings.rows} rows "
        "as long; float32, the same random weights.",
        [
            Contender("rnnjax", rnnjax_repetitions, ["rnnjax", "jax", "safetensors"]),
            Contender("PyTorch", torch_repetitions, ["torch", "transformers", "rwkv"]),
        ],
        baseline="rnnjax",
        value_name="the loss, or the root of the mean square of the logits after the last token",
        tolerance=TOLERANCE,
        relative=True,
        patience=settings.patience,
        points=points,
    )


def tables(report: Report) -> str:
    """A row a family and part, and below them the memory of the first call."""
    rows = [["family", *(f"{name}, MB" for name in dict.fromkeys(r.name for r in report.results))]]
    rows.append(["---"] * len(rows[0]))
    for point in report.points:
        found = report.at(point).values()
        raised = [result.first.details["raised"] if result.first else None for result in found]
        rows.append([point.name, *("–" if size is None else short(size) for size in raised)])
    times = layers.peer_table(report, report.points, ["family"], lambda point: [point.name])
    return f"{times}\n\n{markdown(rows)}"


remarks = layers.remarks
