"""Mamba and Falcon-Mamba beside transformers."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import language_model_helpers as helpers
import numpy as np
import pytest

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": helpers.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", {"state_size": 8}),
    "mamba, a head, biases": (
        "Mamba", {"state_size": 16, "tie_word_embeddings": False, "use_bias": True, "expand": 3},
    ),
    "mamba, no bias": (
        "Mamba",
        {"state_size": 4, "use_conv_bias": False, "conv_kernel": 3, "time_step_rank": 5,
         "residual_in_fp32": False},
    ),
    "falcon": ("FalconMamba", {"state_size": 8, "tie_word_embeddings": False}),
    "falcon, tied": ("FalconMamba", {"state_size": 16, "time_step_rank": 7}),
    "falcon, biases": (
        "FalconMamba", {"state_size": 4, "use_bias": True, "mixer_rms_eps": 1e-2, "conv_kernel": 2},
    ),
}  # fmt: skip
IN_EACH_RUN = ("mamba", "falcon")
ALL = [
    name if name in IN_EACH_RUN else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS
]


def made(name: str, folder: Path, **options: Any) -> helpers.Pair:
    kind, more = CONFIGS[name]
    config = getattr(transformers, f"{kind}Config")(**SIZES, **more)
    return helpers.pair(getattr(transformers, f"{kind}ForCausalLM"), config, folder, **options)


@pytest.fixture(scope="module", params=ALL)
def pair(request: Any, tmp_path_factory: Any) -> helpers.Pair:
    return made(request.param, tmp_path_factory.mktemp("mamba"))


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
    helpers.check_saved(pair, tmp_path, type(pair.module))


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_is_as_near_as_the_peers(name: str, tmp_path: Path) -> None:
    helpers.check_bfloat16(made(name, tmp_path, dtype="bfloat16"))


def test_a_long_text_is_learned_from_in_the_memory_of_chunks(tmp_path: Path) -> None:
    """A step over 4,096 tokens takes less than their states alone would."""
    config = transformers.MambaConfig(**SIZES, state_size=64)
    pair = helpers.pair(transformers.MambaForCausalLM, config, tmp_path)
    sizes, params = pair.model.config, pair.model.params
    tokens = jnp.array(np.resize(helpers.TOKENS, (4096, 1)))
    step = jax.jit(jax.value_and_grad(functools.partial(helpers.loss_of, pair)))
    compiled = step.lower(params, tokens).compile()
    states = 4 * sizes.layers * tokens.size * sizes.channels * sizes.state_size
    assert compiled.memory_analysis().temp_size_in_bytes < states / 2
    loss, gradients = compiled(params, tokens)
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradients.values())
