"""RecurrentGemma beside transformers."""

from pathlib import Path
from typing import Any

import language_model_helpers as helpers
import pytest

transformers = pytest.importorskip("transformers")

CONFIGS: dict[str, dict[str, Any]] = {
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
}  # fmt: skip
FIRST, *REST = CONFIGS
ALL = [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]


def made(name: str, folder: Path, **options: Any) -> helpers.Pair:
    config = transformers.RecurrentGemmaConfig(vocab_size=helpers.VOCABULARY, **CONFIGS[name])
    return helpers.pair(transformers.RecurrentGemmaForCausalLM, config, folder, **options)


@pytest.fixture(scope="module", params=ALL)
def pair(request: Any, tmp_path_factory: Any) -> helpers.Pair:
    return made(request.param, tmp_path_factory.mktemp("recurrent_gemma"))


def test_a_prompt_equals_the_peers(pair: helpers.Pair) -> None:
    helpers.check_prompt(pair)


def test_float32_is_near_float64(pair: helpers.Pair) -> None:
    helpers.check_float64(pair)


def test_it_may_be_cut_anywhere(pair: helpers.Pair) -> None:
    helpers.check_cuts(pair)


def test_documents_are_apart(pair: helpers.Pair) -> None:
    helpers.check_resets(pair)


def test_greedy_text_is_the_peers(pair: helpers.Pair) -> None:
    helpers.check_greedy(pair)


def test_what_is_saved_is_read_by_the_peer(pair: helpers.Pair, tmp_path: Path) -> None:
    helpers.check_saved(pair, tmp_path, transformers.RecurrentGemmaForCausalLM)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_is_as_near_as_the_peers(name: str, tmp_path: Path) -> None:
    helpers.check_bfloat16(made(name, tmp_path, dtype="bfloat16"))
