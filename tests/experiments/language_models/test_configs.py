"""The config.json of models with attention, as public folders have it."""

import dataclasses
import importlib
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import language_model_helpers as helpers
import numpy as np
import pytest

from experiments.language_models import folders, gated_delta, recurrent_gemma
from experiments.language_models.folders import Fields
from rnnjax import InvalidInputError

pytest.importorskip("tokenizers")
GRIFFIN: dict[str, Any] = {
    "model_type": "recurrent_gemma", "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 4,
    "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1,
    "block_types": ["recurrent", "recurrent", "attention"], "attention_window_size": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
}  # fmt: skip
QWEN: dict[str, Any] = {
    "model_type": "qwen3_5_text", "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 4,
    "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "linear_num_value_heads": 2, "linear_num_key_heads": 1, "linear_key_head_dim": 4,
    "linear_value_head_dim": 4, "full_attention_interval": 2, "hidden_act": "silu",
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 500, "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1], "mrope_interleaved": True,
    },
    "max_position_embeddings": 64, "mlp_only_layers": [], "mtp_num_hidden_layers": 1,
}  # fmt: skip

OLMO: dict[str, Any] = {
    "model_type": "olmo_hybrid", "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2,
    "intermediate_size": 24, "num_attention_heads": 2, "linear_a_log_max": 16.0,
    "max_position_embeddings": 64, "rope_parameters": {"rope_theta": 500.0},
}  # fmt: skip

# Fields as config.json of recurrentgemma-2b and of Qwen3.5-27B has them.
GRIFFIN_2B: dict[str, Any] = {
    "_block_types": ["recurrent", "recurrent", "attention"], "attention_bias": False,
    "architectures": ["RecurrentGemmaForCausalLM"], "attention_dropout": 0.0,
    "attention_window_size": 2048, "conv1d_width": 4, "embeddings_scale_by_sqrt_dim": True,
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2560,
    "intermediate_size": 15360, "logits_soft_cap": 30.0, "lru_width": 2560,
    "model_type": "recurrent_gemma", "num_attention_heads": 10, "num_hidden_layers": 26,
    "num_key_value_heads": 1, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0, "vocab_size": 256000, "w_init_variance_scale": 0.01,
}  # fmt: skip
QWEN_27B: dict[str, Any] = {
    "architectures": ["Qwen3_5ForConditionalGeneration"], "image_token_id": 248056,
    "model_type": "qwen3_5", "tie_word_embeddings": False, "video_token_id": 248057,
    "vision_config": {"model_type": "qwen3_5"}, "vision_start_token_id": 248053,
    "vision_end_token_id": 248054, "text_config": {
        "attention_bias": False, "attention_dropout": 0.0, "attn_output_gate": True,
        "dtype": "bfloat16", "eos_token_id": 248044, "full_attention_interval": 4,
        "head_dim": 256, "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02,
        "intermediate_size": 17408, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
        "linear_num_key_heads": 16, "linear_num_value_heads": 48, "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32", "max_position_embeddings": 262144, "mlp_only_layers": [],
        "model_type": "qwen3_5_text", "mtp_num_hidden_layers": 1, "num_attention_heads": 24,
        "mtp_use_dedicated_embeddings": False, "num_hidden_layers": 64, "num_key_value_heads": 4,
        "partial_rotary_factor": 0.25, "rms_norm_eps": 1e-06, "use_cache": True,
        "vocab_size": 248320, "rope_parameters": {
            "mrope_interleaved": True, "mrope_section": [11, 11, 10], "rope_type": "default",
            "rope_theta": 10000000, "partial_rotary_factor": 0.25,
        },
    },
}  # fmt: skip


def read(values: dict[str, Any]) -> Any:
    kind, fields = values["model_type"], Fields(values)
    family = importlib.import_module(f"experiments.language_models.{folders.FAMILIES[kind]}")
    config = family.read_config(fields)
    fields.done()
    return config


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def test_the_public_recurrent_gemma_has_older_fields() -> None:
    older = without(GRIFFIN, "rope_parameters", "block_types") | {
        "_block_types": GRIFFIN["block_types"], "rope_theta": 500.0, "partial_rotary_factor": 0.5,
        "embeddings_scale_by_sqrt_dim": True, "head_dim": 8, "attention_dropout": 0.0,
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    config = read(GRIFFIN)
    assert read(older) == config
    assert config.kinds == ("recurrent", "recurrent", "attention", "recurrent")
    assert (config.rotary, config.tied, config.channels) == ((4, 500.0), True, 16)


def test_public_configs_are_read() -> None:
    config = read(GRIFFIN_2B)
    sizes = {name: math.prod(shape) for name, shape in recurrent_gemma.shapes(config).items()}
    embedding = sizes[recurrent_gemma.EMBEDDING]
    # Botev et al. (2024) say 0.7 and 2.0 thousand millions.
    assert (embedding, sum(sizes.values()) - embedding) == (655_360_000, 2_027_502_080)
    config = read(QWEN_27B)
    assert sum(map(math.prod, gated_delta.shapes(config).values())) == 26_895_998_464
    assert (config.rotary, config.prefix) == ((64, 1e7), "model.language_model.")


def test_the_layers_of_qwen_follow_from_an_interval() -> None:
    config = read(QWEN)
    assert config.kinds == ("linear_attention", "full_attention") * 2
    assert read(QWEN | {"layer_types": list(config.kinds)}) == config
    assert config.rotary == (8, 500.0)


def test_what_olmo_hybrid_leaves_out_is_what_transformers_takes() -> None:
    """Sizes follow from the heads, layers from their number, and a null base is no position."""
    transformers = pytest.importorskip("transformers")
    fields = read(OLMO)
    for change in ({}, {"num_hidden_layers": 9}, {"num_attention_heads": 4, "head_dim": 8}):
        values = OLMO | change
        kind = values.pop("model_type")
        peer = transformers.AutoConfig.for_model(kind, **values)
        whole = without(peer.to_dict(), "id2label", "label2id")
        assert read(values | {"model_type": kind}) == read(whole)
    assert (fields.most_beta, fields.rotary) == (2, (8, 500.0))
    assert fields.memory_key_size == int(0.75 * 16 / 2)
    for place in ({"rope_parameters": {"rope_theta": None}}, {"rope_theta": None}):
        values = without(OLMO, "rope_parameters") | place
        peer = transformers.OlmoHybridConfig(**without(values, "model_type"))
        assert peer.rope_parameters["rope_theta"] is None
        assert read(values).rotary == (0, 1.0)
    assert read(without(OLMO, "rope_parameters")).rotary == (8, 1e4)


def test_a_size_that_is_null_is_one_that_is_left_out() -> None:
    """So transformers' classes have those that follow from others; a null base is no position."""
    for values, *names in (
        (GRIFFIN, "lru_width", "num_key_value_heads"),
        (OLMO, "num_key_value_heads", "linear_num_key_heads", "linear_value_head_dim"),
        (QWEN, "layer_types"),
    ):
        left_out = without(values, *names)
        assert read(left_out | dict.fromkeys(names)) == read(left_out)
    with pytest.raises(InvalidInputError, match=r"rope_theta .* above 0, but is null"):
        read(QWEN | {"rope_parameters": {"rope_theta": None}})


@pytest.mark.parametrize("tied", [False, True])
def test_the_public_qwen_is_under_text_config(tied: bool, tmp_path: Path) -> None:
    alone = helpers.drawn(tmp_path / "alone", state_size=None, **QWEN, tie_word_embeddings=tied)
    whole = {
        "model_type": "qwen3_5", "text_config": without(QWEN, "tie_word_embeddings"),
        "tie_word_embeddings": tied, "vision_config": {"depth": 1}, "image_token_id": 7,
    }  # fmt: skip
    config = read(whole)
    assert config == dataclasses.replace(alone.config, prefix="model.language_model.")
    prefixed = {
        name.replace("model.", config.prefix): np.asarray(x) for name, x in alone.params.items()
    }
    others = {name: np.ones(1, np.float32) for name in ("mtp.norm.weight", "model.visual.x.bias")}
    found, left_out = folders.fitting(gated_delta, config, prefixed | others)
    assert left_out == ("model.visual.x.bias", "mtp.norm.weight")
    params = {name: jnp.array(x) for name, x in found.items()}
    model = folders.Model(gated_delta, config, params, tmp_path, [], left_out)
    begin = helpers.begin(gated_delta, config, helpers.BATCH, 12, jnp.float32)
    wanted, got = (
        helpers.run(gated_delta, *each, helpers.TOKENS[:12], begin)[1]
        for each in ((alone.config, alone.params), (config, params))
    )
    np.testing.assert_array_equal(got, wanted)
    assert model.dtype == jnp.float32
    assert model.attends


def test_local_attention_needs_no_capacity(tmp_path: Path) -> None:
    model = helpers.drawn(tmp_path, state_size=None, **GRIFFIN)
    assert not model.attends
    carry = helpers.begin(recurrent_gemma, model.config, 1, 0, jnp.float32)
    tokens = np.ones((9, 1), np.int32)
    for _ in range(3):
        carry, logits = helpers.run(recurrent_gemma, model.config, model.params, tokens, carry)
        assert np.isfinite(logits).all()


def test_full_attention_refuses_what_has_no_room(tmp_path: Path) -> None:
    model = helpers.drawn(tmp_path, state_size=None, **QWEN)
    carry = gated_delta.begin(model.config, 1, 5)
    with pytest.raises(InvalidInputError, match=r"capacity 5 .* at most 5 more, but got 6; begin"):
        gated_delta.apply(model.config, model.params, np.ones((6, 1), np.int32), carry)


@pytest.mark.parametrize(
    ("values", "change", "said"),
    [
        (GRIFFIN, {"hidden_activation": "relu"}, "hidden_activation .* but is \"relu\""),
        (GRIFFIN, {"block_types": ["recurrent", "full"]}, "block_types .* 'recurrent' or"),
        (GRIFFIN, {"attention_window_size": 2**30}, "attention_window_size .* from 1 to 65536"),
        (GRIFFIN, {"block_types": []}, "block_types .* a list with a name"),
        (GRIFFIN, {"num_key_value_heads": 3}, "num_key_value_heads .* a divisor of the 2 heads"),
        (GRIFFIN, {"num_attention_heads": 3, "num_key_value_heads": 3}, "divisor of 16 and of 16"),
        (GRIFFIN, {"head_dim": 4}, "head_dim .* must be 8, but is 4"),
        (GRIFFIN, {"embeddings_scale_by_sqrt_dim": False}, "embeddings_scale_by_sqrt_dim"),
        (GRIFFIN, {"rope_parameters": {"rope_type": "yarn"}}, 'rope_parameters.rope_type .*"yarn"'),
        (GRIFFIN, {"rope_parameters": {"rope_theta": 0}}, "rope_parameters.rope_theta .* above 0"),
        (GRIFFIN, {"rope_parameters": {"factor": 2.0}}, "rope_parameters.factor .* not known"),
        (QWEN, {"rope_parameters": {"type": "linear"}}, 'rope_parameters.type .* "linear"'),
        (QWEN, {"rope_parameters": {"partial_rotary_factor": 0.2}}, "entries of a head an even"),
        (QWEN, {"layer_types": ["linear_attention"]}, "layer_types .* of 4 layers"),
        (QWEN, {"layer_types": ["sliding_attention"] * 4}, "layer_types .* or 'full_attention'"),
        (QWEN, {"num_experts": 256}, "num_experts .* must be 0, but is 256"),
        (QWEN, {"attn_output_gate": False}, "attn_output_gate .* must be true"),
        (QWEN, {"hidden_act": "gelu"}, 'hidden_act .* but is "gelu"'),
        (QWEN, {"linear_num_key_heads": 4}, "linear_num_key_heads .* a divisor of the 2 heads"),
        (OLMO, {"hidden_act": "gelu"}, 'hidden_act .* but is "gelu"'),
        (OLMO, {"layer_types": ["sliding_attention"] * 2}, "layer_types .* or 'full_attention'"),
        (OLMO, {"linear_num_key_heads": 3}, "linear_num_key_heads .* a divisor of the 2 heads"),
        (OLMO, {"rope_parameters": {"rope_type": "yarn"}}, 'rope_parameters.rope_type .*"yarn"'),
        (OLMO, {"partial_rotary_factor": 0.5}, "all entries of a head are rotated"),
        (OLMO, {"linear_allow_neg_eigval": 1}, "linear_allow_neg_eigval .* true or false"),
        (
            {"model_type": "qwen3_5", "text_config": QWEN},
            {"text_config": QWEN | {"output_gate_type": "tanh"}},
            "text_config.output_gate_type of config.json",
        ),
    ],
)  # fmt: skip
def test_another_model_is_refused_by_the_name_of_its_field(
    values: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said) as caught:
        read(values | change)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)
