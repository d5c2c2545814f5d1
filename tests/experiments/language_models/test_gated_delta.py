"""Qwen3.5's dense text models beside transformers."""

from pathlib import Path
from typing import Any

import language_model_helpers as helpers
import pytest

transformers = pytest.importorskip("transformers")

CONFIGS: dict[str, dict[str, Any]] = {
    "shared keys of both kinds": {
        "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 12, "full_attention_interval": 2,
    },
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
}  # fmt: skip
FIRST, *REST = CONFIGS
ALL = [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]


def made(name: str, folder: Path, **options: Any) -> helpers.Pair:
    config = transformers.Qwen3_5TextConfig(vocab_size=helpers.VOCABULARY, **CONFIGS[name])
    return helpers.pair(transformers.Qwen3_5ForCausalLM, config, folder, **options)


@pytest.fixture(scope="module", params=ALL)
def pair(request: Any, tmp_path_factory: Any) -> helpers.Pair:
    return made(request.param, tmp_path_factory.mktemp("gated_delta"))


def test_a_prompt_equals_the_peers(pair: helpers.Pair) -> None:
    # The peer's gradients of decays are sums that cancel: its own rounding is up to 5e-3 of them.
    helpers.check_prompt(pair, of_own=2e-2)


def test_float32_is_near_float64(pair: helpers.Pair) -> None:
    helpers.check_float64(pair)


def test_it_may_be_cut_anywhere(pair: helpers.Pair) -> None:
    helpers.check_cuts(pair)


def test_documents_are_apart(pair: helpers.Pair) -> None:
    helpers.check_resets(pair)


def test_greedy_text_is_the_peers(pair: helpers.Pair) -> None:
    helpers.check_greedy(pair)


def test_what_is_saved_is_read_by_the_peer(pair: helpers.Pair, tmp_path: Path) -> None:
    helpers.check_saved(pair, tmp_path, transformers.Qwen3_5ForCausalLM)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_is_as_near_as_the_peers(name: str, tmp_path: Path) -> None:
    helpers.check_bfloat16(made(name, tmp_path, dtype="bfloat16"))


def test_a_model_that_also_sees_is_read_without_its_eyes(tmp_path: Path) -> None:
    """The layout of the public folders: read, trained by a step, and written with all tensors."""
    text = {"vocab_size": helpers.VOCABULARY, **CONFIGS[FIRST]}
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
