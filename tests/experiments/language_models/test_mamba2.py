"""Mamba-2 beside transformers."""

import math
from pathlib import Path
from typing import Any

import language_model_helpers as helpers
import pytest

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": helpers.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "chunk_size": 16,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "groups": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 2},
    "tied, biases, a limit of the step": {
        "num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 1, "use_bias": True,
        "tie_word_embeddings": True, "time_step_limit": (0.01, 0.9),
    },
    "a group a head, no bias": {
        "num_heads": 2, "head_dim": 48, "state_size": 4, "n_groups": 2, "use_conv_bias": False,
        "expand": 3, "conv_kernel": 3, "residual_in_fp32": False,
    },
}  # fmt: skip
FIRST, *REST = CONFIGS
ALL = [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]


def made(name: str, folder: Path, **options: Any) -> helpers.Pair:
    config = transformers.Mamba2Config(**SIZES, **CONFIGS[name])
    return helpers.pair(transformers.Mamba2ForCausalLM, config, folder, **options)


@pytest.fixture(scope="module", params=ALL)
def pair(request: Any, tmp_path_factory: Any) -> helpers.Pair:
    return made(request.param, tmp_path_factory.mktemp("mamba2"))


def test_a_prompt_equals_the_peers(pair: helpers.Pair) -> None:
    helpers.check_prompt(pair)


def test_float32_is_near_float64(pair: helpers.Pair) -> None:
    helpers.check_float64(pair)


def test_it_may_be_cut_anywhere(pair: helpers.Pair) -> None:
    helpers.check_cuts(pair)


def test_documents_are_apart(pair: helpers.Pair) -> None:
    helpers.check_resets(pair)


def test_greedy_text_is_the_peers(pair: helpers.Pair) -> None:
    # Its step with a cache ignores time_step_limit, so it reads the whole text for each token.
    helpers.check_greedy(pair, use_cache=pair.model.config.step_limit[1] == math.inf)


def test_what_is_saved_is_read_by_the_peer(pair: helpers.Pair, tmp_path: Path) -> None:
    helpers.check_saved(pair, tmp_path, transformers.Mamba2ForCausalLM)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_is_as_near_as_the_peers(name: str, tmp_path: Path) -> None:
    helpers.check_bfloat16(made(name, tmp_path, dtype="bfloat16"))
