"""Olmo Hybrid beside transformers."""

import re
from pathlib import Path
from typing import Any

import language_model_helpers as helpers
import numpy as np
import pytest

from experiments.language_models import folders
from rnnjax.interop.torch import load_state_dict

transformers = pytest.importorskip("transformers")

CONFIGS: dict[str, dict[str, Any]] = {
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
}  # fmt: skip
FIRST, *REST = CONFIGS
ALL = [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]


def made(name: str, folder: Path, **options: Any) -> helpers.Pair:
    config = transformers.OlmoHybridConfig(
        vocab_size=helpers.VOCABULARY, pad_token_id=0, eos_token_id=1, **CONFIGS[name]
    )
    return helpers.pair(transformers.OlmoHybridForCausalLM, config, folder, **options)


def in_files(pair: helpers.Pair, named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What public files hold of arrays by the names that modules have."""
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


@pytest.fixture(scope="module", params=ALL)
def pair(request: Any, tmp_path_factory: Any) -> helpers.Pair:
    return made(request.param, tmp_path_factory.mktemp("olmo_hybrid"))


def test_a_prompt_equals_the_peers(pair: helpers.Pair) -> None:
    helpers.check_prompt(pair, renamed=lambda named: in_files(pair, named))


def test_public_files_and_those_of_transformers_are_read(
    pair: helpers.Pair, tmp_path: Path
) -> None:
    """transformers cuts taps into equal parts, and gives norms behind attention another name."""
    state = {name: x.detach().numpy() for name, x in pair.module.named_parameters()}
    public = in_files(pair, state)
    assert pair.model.params.keys() == public.keys()
    files = [load_state_dict(pair.folder / "model.safetensors")]
    assert files[0].keys() != public.keys()
    folders.write(tmp_path, pair.model)
    files.append(load_state_dict(tmp_path / "model.safetensors"))
    for name, x in public.items():
        np.testing.assert_array_equal(x, pair.model.params[name])
        np.testing.assert_array_equal(x, files[1][name])


def test_float32_is_near_float64(pair: helpers.Pair) -> None:
    helpers.check_float64(pair)


def test_it_may_be_cut_anywhere(pair: helpers.Pair) -> None:
    helpers.check_cuts(pair)


def test_documents_are_apart(pair: helpers.Pair) -> None:
    helpers.check_resets(pair)


def test_greedy_text_is_the_peers(pair: helpers.Pair) -> None:
    helpers.check_greedy(pair)


def test_what_is_saved_is_read_by_the_peer(pair: helpers.Pair, tmp_path: Path) -> None:
    helpers.check_saved(pair, tmp_path, transformers.OlmoHybridForCausalLM)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_is_as_near_as_the_peers(name: str, tmp_path: Path) -> None:
    helpers.check_bfloat16(made(name, tmp_path, dtype="bfloat16"))
