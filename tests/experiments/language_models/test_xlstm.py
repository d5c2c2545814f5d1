"""xLSTM-7B beside transformers."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import language_model_helpers as helpers
import numpy as np
import pytest

from experiments.language_models import folders
from rnnjax import InvalidInputError

torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))

# Its cache fits keys and values of multiples of 64 alone. The type of its kernels is for the
# package xlstm, which it takes if that is installed.
SIZES = {
    "vocab_size": helpers.VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "chunk_size": 16,
    "qk_dim_factor": 1.0, "autocast_kernel_dtype": "float32",
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    # The stabilizer is seen in eps alone, and eps where the norm after it does not cancel it.
    "four heads": {
        "num_heads": 4, "ffn_round_up_to_multiple_of": 8, "eps": 1e-3, "norm_eps": 1e-3,
    },
    "biases, larger caps": {
        "num_heads": 2, "use_bias": True, "gate_soft_cap": 40.0, "output_logit_soft_cap": 90.0,
        "ffn_proj_factor": 1.5, "norm_eps": 1e-4,
    },
    "one head, larger values": {"num_heads": 1, "v_dim_factor": 2.0},
}  # fmt: skip
FIRST, *REST = CONFIGS
ALL = [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]


def open_gates(config: Any) -> Any:
    """Make a peer that writes a share of about 1 of each token; at first it is e^-10."""
    module = transformers.xLSTMForCausalLM(config)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "igate_preact.bias" in name:
                weight.copy_(torch.randn_like(weight))
    return module


def made(name: str, folder: Path, dtype: str = "float32", **sizes: Any) -> helpers.Pair:
    config = transformers.xLSTMConfig(**SIZES | CONFIGS[name] | sizes)
    return helpers.pair(open_gates, config, folder, dtype)


@pytest.fixture(scope="module", params=ALL)
def pair(request: Any, tmp_path_factory: Any) -> helpers.Pair:
    return made(request.param, tmp_path_factory.mktemp("xlstm"))


@pytest.fixture
def double(pair: helpers.Pair) -> Any:
    """In float64, because exponential gates enlarge the rounding of float32."""
    with helpers.doubled(pair) as found:
        yield found


def test_a_prompt_equals_the_peers(pair: helpers.Pair) -> None:
    helpers.check_prompt(pair)


def test_float32_is_near_float64(pair: helpers.Pair, double: helpers.Pair) -> None:
    tokens = jnp.array(helpers.TOKENS)
    _, exact = double.apply(double.model.params, tokens, double.begin())
    assert exact.dtype == jnp.float64
    with jax.enable_x64(False):
        _, logits = pair.apply(pair.model.params, helpers.TOKENS, pair.begin())
    helpers.close(logits, exact)


def test_a_carry_keeps_its_types_where_float64_is_on(pair: helpers.Pair) -> None:
    with jax.enable_x64(True):
        begin = pair.begin()
        after, _ = jax.eval_shape(pair.apply, pair.model.params, helpers.TOKENS, begin)
    assert {x.dtype for x in jax.tree.leaves((begin, after))} == {np.dtype(np.float32)}


def test_it_may_be_cut_anywhere(double: helpers.Pair) -> None:
    helpers.check_cuts(double)


def test_documents_are_apart(double: helpers.Pair) -> None:
    helpers.check_resets(double)


def test_greedy_text_is_the_peers(pair: helpers.Pair) -> None:
    helpers.check_greedy(pair)


def test_what_is_saved_is_read_by_the_peer(pair: helpers.Pair, tmp_path: Path) -> None:
    helpers.check_saved(pair, tmp_path, transformers.xLSTMForCausalLM)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_is_as_near_as_the_peers(name: str, tmp_path: Path) -> None:
    # By chunks transformers 5.24 raises, as it multiplies float32 and bfloat16. What is shorter
    # than a chunk it runs step by step.
    helpers.check_bfloat16(made(name, tmp_path, "bfloat16", chunk_size=2 * helpers.PROMPT))


def test_what_it_would_compute_otherwise_is_refused(pair: helpers.Pair, tmp_path: Path) -> None:
    values = json.loads((pair.folder / "config.json").read_bytes())
    for name, value in {
        "weight_mode": "fused", "num_hidden_layers": 0, "hidden_size": "64", "use_bias": 1,
        "num_heads": 5, "gate_soft_cap": 0.0, "v_dim_factor": 0.0, "slstm_at": [1],
        "inference_state_dtype": "bfloat16",
    }.items():  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(values | {name: value}))
        with pytest.raises(InvalidInputError, match=rf"^{name} of config.json .*; "):
            folders.read_config(tmp_path)


def test_num_blocks_is_the_number_of_layers(pair: helpers.Pair, tmp_path: Path) -> None:
    """So transformers builds them, whatever num_hidden_layers says."""
    values = json.loads((pair.folder / "config.json").read_bytes())
    assert values["num_blocks"] == pair.model.config.layers
    (tmp_path / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 7}))
    assert folders.read_config(tmp_path)[1] == pair.model.config


def test_the_public_model_has_its_number_of_parameters(tmp_path: Path) -> None:
    values = {
        "model_type": "xlstm", "embedding_dim": 4096, "num_blocks": 32, "num_heads": 8,
        "vocab_size": 50304, "head_dim": 512, "qk_dim_factor": 0.5, "ffn_proj_factor": 2.667,
        "ffn_round_up_to_multiple_of": 64, "chunkwise_kernel": "chunkwise--triton_xl_chunk",
        "add_qk_norm": False, "force_bos_token_insert": True, "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(values))
    family, config, _ = folders.read_config(tmp_path)
    count = sum(math.prod(shape) for shape in family.shapes(config).values())
    assert count == 6_865_424_896
