"""Families of language models beside transformers: the same checks of each, from a table.

RWKV-7 beside the package of its authors, and its gradients beside those in float64. Those of its
memory are held against a loop in tests/test_functions.py.
"""

import functools
import math
import re
import types
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import language_model_helpers as helpers
import numpy as np
import pytest

from experiments.language_models import folders, rwkv7
from rnnjax import InvalidInputError
from rnnjax.interop.torch import load_state_dict

torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))

# What all configs of a family have.
MAMBA = {"hidden_size": 32, "num_hidden_layers": 2}
SIZES: dict[str, dict[str, Any]] = {
    "Mamba": MAMBA,
    "FalconMamba": MAMBA,
    "Mamba2": MAMBA | {"chunk_size": 16},
    "OlmoHybrid": {"pad_token_id": 0, "eos_token_id": 1},
    # Its cache fits keys and values of multiples of 64 alone. The type of its kernels is for the
    # package xlstm, which it takes if that is installed.
    "xLSTM": {
        "hidden_size": 64, "num_hidden_layers": 2, "chunk_size": 16, "qk_dim_factor": 1.0,
        "autocast_kernel_dtype": "float32",
    },
}  # fmt: skip
# An ordinary run has the first of each.
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "Mamba": {
        "plain": {"state_size": 8},
        "a head, biases": {
            "state_size": 16, "tie_word_embeddings": False, "use_bias": True, "expand": 3,
        },
        "no bias": {
            "state_size": 4, "use_conv_bias": False, "conv_kernel": 3, "time_step_rank": 5,
            "residual_in_fp32": False,
        },
    },
    "FalconMamba": {
        "a head": {"state_size": 8, "tie_word_embeddings": False},
        "tied": {"state_size": 16, "time_step_rank": 7},
        "biases": {"state_size": 4, "use_bias": True, "mixer_rms_eps": 1e-2, "conv_kernel": 2},
    },
    "Mamba2": {
        "groups": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 2},
        "tied, biases, a limit of the step": {
            "num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 1, "use_bias": True,
            "tie_word_embeddings": True, "time_step_limit": (0.01, 0.9),
        },
        "a group a head, no bias": {
            "num_heads": 2, "head_dim": 48, "state_size": 4, "n_groups": 2, "use_conv_bias": False,
            "expand": 3, "conv_kernel": 3, "residual_in_fp32": False,
        },
    },
    "Qwen3_5": {
        "shared keys of both kinds": helpers.QWEN,
        "a key for each head, biases, tied": {
            "hidden_size": 48, "num_hidden_layers": 3, "intermediate_size": 32,
            "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 24,
            "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
            "linear_value_head_dim": 16, "linear_conv_kernel_dim": 3, "attention_bias": True,
            "tie_word_embeddings": True,
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
            "rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 1.0},
        },
        "one key for all heads": {
            "hidden_size": 40, "num_hidden_layers": 4, "intermediate_size": 64,
            "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8,
            "linear_num_value_heads": 3, "linear_num_key_heads": 1, "linear_key_head_dim": 24,
            "linear_value_head_dim": 8, "linear_conv_kernel_dim": 2, "rms_norm_eps": 1e-3,
        },
    },
    "OlmoHybrid": {
        "without positions, shared keys": {
            "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48,
            "num_attention_heads": 4, "num_key_value_heads": 2, "linear_num_key_heads": 2,
            "linear_key_head_dim": 8, "linear_value_head_dim": 12, "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "default", "rope_theta": None},
        },
        "rotated, biases, tied, beta below 1": {
            "hidden_size": 48, "num_hidden_layers": 3, "intermediate_size": 32,
            "num_attention_heads": 2, "attention_bias": True, "tie_word_embeddings": True,
            "linear_conv_kernel_dim": 3, "linear_allow_neg_eigval": False,
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        },
        "one key for all heads": {
            "hidden_size": 36, "num_hidden_layers": 4, "intermediate_size": 64,
            "num_attention_heads": 3, "num_key_value_heads": 1, "linear_num_key_heads": 1,
            "linear_key_head_dim": 24, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 2,
        },
    },
    "RecurrentGemma": {
        "shared keys and a window": {
            "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48, "lru_width": 48,
            "num_attention_heads": 4, "num_key_value_heads": 1, "attention_window_size": 10,
        },
        "a key for each head, biases, not tied": {
            "hidden_size": 48, "num_hidden_layers": 4, "intermediate_size": 64, "conv1d_width": 3,
            "num_attention_heads": 2, "attention_window_size": 33, "attention_bias": True,
            "block_types": ["attention", "recurrent"], "tie_word_embeddings": False,
            "logits_soft_cap": 5.0,
            "rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 1.0},
        },
        "a window longer than the prompt": {
            "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 34, "conv1d_width": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "attention_window_size": 2048,
            "block_types": ["recurrent", "attention"], "rms_norm_eps": 1e-3,
        },
    },
    "xLSTM": {
        # The stabilizer is seen in eps alone, and eps where the norm after it does not cancel it.
        "four heads": {
            "num_heads": 4, "ffn_round_up_to_multiple_of": 8, "eps": 1e-3, "norm_eps": 1e-3,
        },
        "biases, larger caps": {
            "num_heads": 2, "use_bias": True, "gate_soft_cap": 40.0, "output_logit_soft_cap": 90.0,
            "ffn_proj_factor": 1.5, "norm_eps": 1e-4,
        },
        "one head, larger values": {"num_heads": 1, "v_dim_factor": 2.0},
    },
}  # fmt: skip
RWKV7 = {
    "two layers": rwkv7.Config(helpers.VOCABULARY, 128, 64, 2, 160, (16, 24, 40, 8)),
    "one layer, one head": rwkv7.Config(helpers.VOCABULARY, 64, 64, 1, 256, (8, 8, 16)),
    "values of the first layer twice": rwkv7.Config(
        helpers.VOCABULARY, 192, 64, 3, 96, (32, 8, 16, 16), unread=True
    ),
}
PEERS, OURS = (
    [
        pytest.param((kind, name), id=f"{kind}, {name}", marks=pytest.mark.slow if i else ())
        for kind, configs in table.items()
        for i, name in enumerate(configs)
    ]
    for table in (CONFIGS, {"RWKV7": RWKV7})
)
ALL = [*PEERS, *OURS]


def open_gates(config: Any) -> Any:
    """Make an xLSTM that writes a share of about 1 of each token; at first it is e^-10."""
    module = transformers.xLSTMForCausalLM(config)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "igate_preact.bias" in name:
                weight.copy_(torch.randn_like(weight))
    return module


def drawn(config: rwkv7.Config, dtype: str = "float32") -> dict[str, Any]:
    """Random tensors of a file, such that all that they do is seen in the logits."""
    rng, found = np.random.default_rng(config.layers), {}
    for name, shape in rwkv7.shapes(config).items():
        last = name.split(".")[-1]
        if last.startswith("x_") or last == "k_a":
            value = rng.uniform(0, 1, shape)
        elif last == "k_k" or ("ln" in name and last == "weight"):
            value = rng.uniform(0.5, 1.5, shape)
        elif last == "weight" and name != "emb.weight":
            value = rng.standard_normal(shape) / math.sqrt(shape[1])
        else:
            scales = {"w0": 3, "r_k": 0.3, "bias": 0.1, "a0": 1, "v0": 1, "weight": 1}
            value = rng.standard_normal(shape) * scales.get(last, 1 / math.sqrt(shape[0]))
        found[name] = torch.tensor(value).to(getattr(torch, dtype))
    return found


class RWKV7Package:
    """The model of the authors' package, with the calls of one of transformers."""

    def __init__(self, path: Path, kind: str = "fp32") -> None:
        self.path, self.kind = path, kind

    @functools.cached_property
    def model(self) -> Any:
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated
            for name in ("V7", "JIT", "CUDA"):
                patch.setenv(f"RWKV_{name}_ON", str(int(name == "V7")))
            package = pytest.importorskip("rwkv.model")
            return package.RWKV(str(self.path.with_suffix("")), f"cpu {self.kind}")

    @classmethod
    def from_pretrained(cls, folder: Path, **_: Any) -> Any:
        from safetensors.torch import load_file

        torch.save(load_file(folder / "model.safetensors"), folder / "model.pth")
        return cls(folder / "model.pth"), dict.fromkeys(helpers.PROBLEMS)

    def eval(self) -> Any:
        return self

    def float(self) -> Any:
        return RWKV7Package(self.path)

    def __call__(self, ids: Any, use_cache: bool = False) -> Any:
        rows = [self.model.forward(row.tolist(), None, full_output=True)[0] for row in ids]
        return types.SimpleNamespace(logits=torch.stack(rows))

    def generate(self, ids: Any, max_new_tokens: int, **_: Any) -> Any:
        rows, scores = ids.tolist(), []
        for row in rows:
            logits, state = self.model.forward(row, None)
            scores.append([])
            for _ in range(max_new_tokens):
                scores[-1].append(logits)
                row.append(int(logits.argmax()))
                logits, state = self.model.forward(row[-1:], state)
        each = [torch.stack(step) for step in zip(*scores, strict=True)]
        return types.SimpleNamespace(sequences=torch.tensor(rows), scores=each)


def made(family: Any, folder: Path, dtype: str = "float32", **more: Any) -> helpers.Pair:
    kind, name = family
    if kind == "RWKV7":
        path = folder / "model.pth"
        torch.save(drawn(RWKV7[name], dtype), path)
        package = RWKV7Package(path, {"float32": "fp32", "bfloat16": "bf16"}[dtype])
        pair = helpers.Pair(package, path, folders.read(path))
        assert (pair.model.config, pair.model.ends) == (RWKV7[name], [0])
        return pair
    config = getattr(transformers, f"{kind}TextConfig" if kind == "Qwen3_5" else f"{kind}Config")
    sizes = {"vocab_size": helpers.VOCABULARY, **SIZES.get(kind, {}), **CONFIGS[kind][name], **more}
    make = open_gates if kind == "xLSTM" else getattr(transformers, f"{kind}ForCausalLM")
    return helpers.pair(make, config(**sizes), folder, dtype)


def kind_of(pair: helpers.Pair) -> str:
    return type(pair.module).__name__.removesuffix("ForCausalLM")


def first(kind: str, folder: Path, **more: Any) -> helpers.Pair:
    """The pair of an ordinary run."""
    return made((kind, next(iter(CONFIGS[kind]))), folder, **more)


@pytest.fixture(scope="module", params=ALL)
def pair(request: Any, tmp_path_factory: Any) -> helpers.Pair:
    return made(request.param, tmp_path_factory.mktemp("family"))


@pytest.fixture
def exact(pair: helpers.Pair) -> Any:
    """In float64 where exponential gates enlarge the rounding of float32."""
    if kind_of(pair) != "xLSTM":
        yield pair
        return
    with helpers.doubled(pair) as found:
        yield found


def test_a_prompt_equals_the_peers(pair: helpers.Pair) -> None:
    helpers.check_prompt(pair)


@pytest.mark.parametrize("pair", PEERS, indirect=True)
def test_gradients_are_the_peers(pair: helpers.Pair) -> None:
    """Of the loss, by every tensor of a file."""
    kind = kind_of(pair)
    renamed = functools.partial(in_files, pair) if kind == "OlmoHybrid" else dict
    # Qwen's gradients of decays are sums that cancel: its own rounding is up to 5e-3 of them.
    helpers.check_gradients(pair, 2e-2 if kind == "Qwen3_5" else 1e-3, renamed)


def test_float32_is_near_float64(pair: helpers.Pair) -> None:
    if kind_of(pair) != "xLSTM":
        helpers.check_float64(pair)
        return
    with helpers.doubled(pair) as double:
        _, exact = double.apply(double.model.params, helpers.TOKENS, double.begin())
        assert exact.dtype == jnp.float64
    _, logits = pair.apply(pair.model.params, helpers.TOKENS, pair.begin())
    helpers.close(logits, exact)


def test_it_may_be_cut_anywhere(exact: helpers.Pair) -> None:
    helpers.check_cuts(exact)


def test_documents_are_apart(exact: helpers.Pair) -> None:
    helpers.check_resets(exact)


def test_greedy_text_is_the_peers(pair: helpers.Pair) -> None:
    # Mamba-2 with a cache ignores time_step_limit, so it reads the whole text for each token.
    limited = kind_of(pair) == "Mamba2" and pair.model.config.step_limit[1] < math.inf
    helpers.check_greedy(pair, **{"use_cache": False} if limited else {})


def test_what_is_saved_is_read_by_the_peer(pair: helpers.Pair, tmp_path: Path) -> None:
    helpers.check_saved(pair, tmp_path, type(pair.module))


@pytest.mark.parametrize("family", ALL)
def test_bfloat16_is_as_near_as_the_peers(family: Any, tmp_path: Path) -> None:
    # By chunks transformers 5.24 raises for xLSTM, as it multiplies float32 and bfloat16. What is
    # shorter than a chunk it runs step by step.
    more = {"chunk_size": 2 * helpers.PROMPT} if family[0] == "xLSTM" else {}
    helpers.check_bfloat16(made(family, tmp_path, "bfloat16", **more))


# ---- what one family has


def test_a_long_text_is_learned_from_in_the_memory_of_chunks(tmp_path: Path) -> None:
    """A step of Mamba over 4,096 tokens takes less than their states alone would."""
    pair = first("Mamba", tmp_path, state_size=64)
    sizes, params = pair.model.config, pair.model.params
    tokens = jnp.array(np.resize(helpers.TOKENS, (4096, 1)))
    step = jax.jit(jax.value_and_grad(functools.partial(helpers.loss_of, pair)))
    compiled = step.lower(params, tokens).compile()
    states = 4 * sizes.layers * tokens.size * sizes.channels * sizes.state_size
    assert compiled.memory_analysis().temp_size_in_bytes < states / 2
    loss, gradients = compiled(params, tokens)
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradients.values())


def test_a_qwen_that_also_sees_is_read_without_its_eyes(tmp_path: Path) -> None:
    """The layout of the public folders: read, trained by a step, and written with all tensors."""
    text = {"vocab_size": helpers.VOCABULARY, **next(iter(CONFIGS["Qwen3_5"].values()))}
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4,
        "out_hidden_size": text["hidden_size"], "num_position_embeddings": 16,
    }  # fmt: skip
    config = transformers.Qwen3_5Config(text_config=text, vision_config=vision)
    seeing = transformers.Qwen3_5ForConditionalGeneration
    pair = helpers.pair(seeing, config, tmp_path / "read")
    assert pair.model.config.prefix == "model.language_model."
    assert all(name.startswith("model.visual.") for name in pair.model.left_out)
    assert pair.model.left_out
    _, logits = pair.apply(pair.model.params, helpers.TOKENS, pair.begin())
    helpers.close(logits, helpers.logits_of(pair.module, helpers.TOKENS))
    helpers.check_saved(pair, tmp_path / "written", seeing)


def in_files(pair: helpers.Pair, named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What public files of Olmo Hybrid hold of arrays by the names that modules have."""
    config, found = pair.module.config, {}
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    for name, x in named.items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if layer and config.layer_types[int(layer[1])] == "linear_attention":
            name = name.replace("input_layernorm", "attention_layer_norm")
            name = name.replace("post_attention_layernorm", "feedforward_layer_norm")
        found[name] = x
        if "conv1d" in name:
            parts = {"q": x[:keys], "k": x[keys : 2 * keys], "v": x[2 * keys :]}
            found |= {name.replace("conv1d", f"{k}_conv1d"): part for k, part in parts.items()}
            del found[name]
    return found


@pytest.mark.parametrize("family", [each for each in ALL if each.values[0][0] == "OlmoHybrid"])
def test_public_files_and_those_of_transformers_are_read(family: Any, tmp_path: Path) -> None:
    """transformers cuts taps into equal parts, and gives norms behind attention another name."""
    pair = made(family, tmp_path / "theirs")
    state = {name: x.detach().numpy() for name, x in pair.module.named_parameters()}
    public = in_files(pair, state)
    assert pair.model.params.keys() == public.keys()
    files = [load_state_dict(pair.folder / "model.safetensors")]
    assert files[0].keys() != public.keys()
    folders.write(tmp_path / "ours", pair.model)
    files.append(load_state_dict(tmp_path / "ours" / "model.safetensors"))
    for name, x in public.items():
        np.testing.assert_array_equal(x, pair.model.params[name])
        np.testing.assert_array_equal(x, files[1][name])


def test_a_carry_keeps_its_types_where_float64_is_on(tmp_path: Path) -> None:
    xlstm = first("xLSTM", tmp_path)
    with jax.enable_x64(True):
        begin = xlstm.begin()
        after, _ = jax.eval_shape(xlstm.apply, xlstm.model.params, helpers.TOKENS, begin)
    assert {x.dtype for x in jax.tree.leaves((begin, after))} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("name", "shape", "said"),  # a tensor of another shape, or none
    [
        ("blocks.1.att.r_k", None, "of an RWKV-7, such as .*, but are blocks.0.att.a0, "),
        ("emb.weight", (3,), "of an RWKV-7"),
        ("blocks.1.att.r_k", (2, 0), "of an RWKV-7"),
        ("blocks.1.ffn.x_k", None, "'blocks.1.ffn.x_k' is missing from the file; "),
        ("blocks.0.ln0.bias", None, "'blocks.0.ln0.bias' is missing from the file; "),
        ("blocks.1.ffn.s0", (3,), "'blocks.1.ffn.s0' is in the "),
        ("blocks.99.ln1.bias", (3,), "of an RWKV-7"),
        ("blocks.0.att.w1", (3, 4), r"w1' must have shape \(128, "),
    ],
)
def test_other_tensors_are_refused(name: str, shape: Any, said: str, tmp_path: Path) -> None:
    tensors = drawn(RWKV7["two layers"]) | {name: torch.zeros(shape or ())}
    if shape is None:
        del tensors[name]
    torch.save(tensors, tmp_path / "model.pth")
    with pytest.raises(InvalidInputError, match=said):
        folders.read(tmp_path / "model.pth")
