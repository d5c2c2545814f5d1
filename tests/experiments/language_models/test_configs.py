"""The config.json of models, as public folders have it, and tokens that a model has not."""

import dataclasses
import functools
import importlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import language_model_helpers as helpers
import numpy as np
import pytest

from experiments.language_models import folders, gated_delta, recurrent_gemma, rwkv7
from experiments.language_models.blocks import Carry
from experiments.language_models.folders import Fields
from rnnjax import InvalidInputError

pytest.importorskip("tokenizers")
MAMBA2: dict[str, Any] = {
    "model_type": "mamba2", "num_heads": 4, "head_dim": 8, "state_size": 4, "n_groups": 1,
}  # fmt: skip
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

XLSTM: dict[str, Any] = {
    "model_type": "xlstm", "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2,
    "num_heads": 2, "qk_dim_factor": 1.0, "ffn_round_up_to_multiple_of": 8,
}  # fmt: skip

# How many numbers public models have, and their config.json. Of the fourth 2.0 thousand millions
# are no embedding, as Botev et al. (2024) say.
PUBLIC: dict[str, tuple[int, dict[str, Any]]] = {
    "mamba-130m-hf": (129_135_360, {
        "model_type": "mamba", "hidden_size": 768, "intermediate_size": 1536, "d_model": 768,
        "d_inner": 1536, "n_layer": 24, "num_hidden_layers": 24, "vocab_size": 50280,
        "time_step_rank": 48, "fused_add_norm": True, "rms_norm": True, "ssm_cfg": {},
        "pad_vocab_size_multiple": 8, "state_size": 16, "time_step_init_scheme": "random",
    }),
    "Mamba-Codestral-7B": (7_285_403_648, {
        "model_type": "mamba2", "hidden_size": 4096, "intermediate_size": 8192, "num_heads": 128,
        "head_dim": 64, "n_groups": 8, "num_hidden_layers": 64, "state_size": 128,
        "norm_before_gate": True, "rms_norm": True, "time_step_init_scheme": "random",
        "time_step_limit": [0.0, math.inf], "time_step_scale": 1.0, "vocab_size": 32768,
    }),
    "xLSTM-7b": (6_865_424_896, {
        "model_type": "xlstm", "embedding_dim": 4096, "num_blocks": 32, "num_heads": 8,
        "vocab_size": 50304, "head_dim": 512, "qk_dim_factor": 0.5, "ffn_proj_factor": 2.667,
        "ffn_round_up_to_multiple_of": 64, "chunkwise_kernel": "chunkwise--triton_xl_chunk",
        "add_qk_norm": False, "force_bos_token_insert": True, "tie_word_embeddings": False,
    }),
    "recurrentgemma-2b": (2_682_862_080, {
        "_block_types": ["recurrent", "recurrent", "attention"], "attention_bias": False,
        "architectures": ["RecurrentGemmaForCausalLM"], "attention_dropout": 0.0,
        "attention_window_size": 2048, "conv1d_width": 4, "embeddings_scale_by_sqrt_dim": True,
        "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2560,
        "intermediate_size": 15360, "logits_soft_cap": 30.0, "lru_width": 2560,
        "model_type": "recurrent_gemma", "num_attention_heads": 10, "num_hidden_layers": 26,
        "num_key_value_heads": 1, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0, "vocab_size": 256000, "w_init_variance_scale": 0.01,
    }),
    "Qwen3.5-27B": (26_895_998_464, {
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
            "mtp_use_dedicated_embeddings": False, "num_hidden_layers": 64,
            "num_key_value_heads": 4,
            "partial_rotary_factor": 0.25, "rms_norm_eps": 1e-06, "use_cache": True,
            "vocab_size": 248320, "rope_parameters": {
                "mrope_interleaved": True, "mrope_section": [11, 11, 10], "rope_type": "default",
                "rope_theta": 10000000, "partial_rotary_factor": 0.25,
            },
        },
    }),
}  # fmt: skip


def read(values: dict[str, Any]) -> Any:
    kind, fields = values["model_type"], Fields(values)
    family = importlib.import_module(f"experiments.language_models.{folders.FAMILIES[kind]}")
    config = family.read_config(fields)
    fields.done()
    return config


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_configs_have_fields_that_change_nothing(name: str, tmp_path: Path) -> None:
    count, values = PUBLIC[name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    family, config, _ = folders.read_config(tmp_path)
    assert sum(map(math.prod, family.shapes(config).values())) == count


def test_layers_and_rotations_follow_from_fewer_fields() -> None:
    config = read(GRIFFIN)
    assert config.kinds == ("recurrent", "recurrent", "attention", "recurrent")
    assert (config.rotary, config.tied, config.channels) == ((4, 500.0), True, 16)
    config = read(QWEN)
    assert config.kinds == ("linear_attention", "full_attention") * 2
    assert config.rotary == (8, 500.0)


OLDER = {
    "_block_types": GRIFFIN["block_types"], "rope_theta": 500.0, "partial_rotary_factor": 0.5,
    "embeddings_scale_by_sqrt_dim": True, "head_dim": 8, "attention_dropout": 0.0,
    "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "left_out", "others"),
    [
        # The public model has older fields.
        (GRIFFIN, ("rope_parameters", "block_types"), OLDER),
        (QWEN, (), {"layer_types": ["linear_attention", "full_attention"] * 2}),
        # So transformers builds them, whatever num_hidden_layers says.
        (XLSTM, (), {"num_blocks": 2, "num_hidden_layers": 7}),
        # A size that is null is one that is left out, as of those that follow from others.
        *((values, names, dict.fromkeys(names)) for values, *names in (
            (GRIFFIN, "lru_width"), (OLMO, "num_key_value_heads"), (QWEN, "layer_types"),
            (OLMO, "linear_num_key_heads", "linear_value_head_dim"),
        )),
    ],
)  # fmt: skip
def test_a_config_in_other_words(values: Any, left_out: Any, others: Any) -> None:
    assert read(without(values, *left_out) | others) == read(values)


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


@pytest.mark.parametrize("tied", [False, True])
def test_the_public_qwen_is_under_text_config(tied: bool) -> None:
    alone = read(QWEN | {"tie_word_embeddings": tied})
    whole = {
        "model_type": "qwen3_5", "text_config": without(QWEN, "tie_word_embeddings"),
        "tie_word_embeddings": tied, "vision_config": {"depth": 1}, "image_token_id": 7,
    }  # fmt: skip
    config = read(whole)
    assert config == dataclasses.replace(alone, prefix="model.language_model.")
    prefixed = {
        name.replace("model.", config.prefix): np.zeros(shape, np.float32)
        for name, shape in gated_delta.shapes(alone).items()
    }
    others = {name: np.ones(1, np.float32) for name in ("mtp.norm.weight", "model.visual.x.bias")}
    found, left_out = folders.fitting(gated_delta, config, prefixed | others)
    assert (found.keys(), left_out) == (prefixed.keys(), tuple(sorted(others)))


def test_local_attention_needs_no_capacity(tmp_path: Path) -> None:
    model = helpers.drawn(tmp_path, state_size=None, **GRIFFIN)
    assert not model.attends
    carry = helpers.begin(recurrent_gemma, model.config, 1, 0, jnp.float32)
    tokens = np.ones((9, 1), np.int32)
    for _ in range(3):
        carry, logits = helpers.run(recurrent_gemma, model.config, model.params, tokens, carry)
        assert np.isfinite(logits).all()


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
        (QWEN, {"rope_parameters": {"rope_theta": None}}, "rope_theta .* above 0, but is null"),
        (OLMO, {"hidden_act": "gelu"}, 'hidden_act .* but is "gelu"'),
        (OLMO, {"layer_types": ["sliding_attention"] * 2}, "layer_types .* or 'full_attention'"),
        (OLMO, {"linear_num_key_heads": 3}, "linear_num_key_heads .* a divisor of the 2 heads"),
        (OLMO, {"rope_parameters": {"rope_type": "yarn"}}, 'rope_parameters.rope_type .*"yarn"'),
        (OLMO, {"partial_rotary_factor": 0.5}, "all entries of a head are rotated"),
        (OLMO, {"linear_allow_neg_eigval": 1}, "linear_allow_neg_eigval .* true or false"),
        ({"model_type": "qwen3_5"}, {"text_config": QWEN | {"output_gate_type": "tanh"}},
         "text_config.output_gate_type of config.json"),
        *((XLSTM, {name: value}, f"^{name} of config.json .*; ") for name, value in {
            "weight_mode": "fused", "num_hidden_layers": 0, "hidden_size": "64", "use_bias": 1,
            "num_heads": 5, "gate_soft_cap": 0.0, "v_dim_factor": 0.0, "slstm_at": [1],
            "inference_state_dtype": "bfloat16",
        }.items()),
    ],
)  # fmt: skip
def test_another_model_is_refused_by_the_name_of_its_field(
    values: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said) as caught:
        read(values | change)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- tokens

# qwen3_5 and falcon_mamba are of the files of others.
OF_EACH_FILE: list[dict[str, Any]] = [
    {}, MAMBA2, GRIFFIN, QWEN, OLMO, XLSTM, {"model_type": "rwkv7"}
]  # fmt: skip


def test_every_family_is_there() -> None:
    names = [values.get("model_type", "mamba") for values in OF_EACH_FILE]
    files = {folders.FAMILIES.get(name, name) for name in names}
    assert files == {*folders.FAMILIES.values(), "rwkv7"}


@pytest.mark.parametrize("values", OF_EACH_FILE, ids=lambda of: of.get("model_type", "mamba"))
def test_a_token_that_a_model_has_not_is_no_other_one(values: Any, tmp_path: Path) -> None:
    """JAX takes an id behind the last for the last, and one below 0 for one from the end."""
    if values.get("model_type") == "rwkv7":
        family, config = rwkv7, rwkv7.Config(300, 16, 8, 2, 24, (4, 4, 4, 4))
        rng, shapes = np.random.default_rng(0), rwkv7.shapes(config).items()
        params = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes}
    else:
        model = helpers.drawn(tmp_path, **{"state_size": None} | values if values else {})
        family, config, params = model.family, model.config, model.params
    apply = functools.partial(family.apply, config)
    carry = family.begin(config, 3, 4)
    tokens = np.array([[1, 2, 3], [299, 0, 7], [5, 300, -1], [8, 8, 8]], np.int32)
    for wrong in (tokens[:, :2], tokens[:, ::2], jax.numpy.array(tokens)):
        with pytest.raises(InvalidInputError, match="must be ids from 0 to 299, but go from"):
            apply(params, wrong, carry)
    with pytest.raises(InvalidInputError, match=r"of one step at least, but have shape \(0, 3\)"):
        apply(params, tokens[:0], carry)
    with pytest.raises(InvalidInputError, match=r"of one step at least, but have shape \(3,\)"):
        apply(params, tokens[0], carry)
    # Steps before it may be NaN too, by products over all steps with weights of 0. No other row is.
    finite = np.isfinite(jax.jit(apply)(params, tokens, carry)[1]).all(axis=-1)
    assert finite[:, 0].all()
    assert not finite[2:, 1:].any()
    if isinstance(carry, Carry) and values is not GRIFFIN:  # which looks at a window
        for run in (jax.jit(apply), functools.partial(jax.eval_shape, apply), apply):
            with pytest.raises(InvalidInputError, match="must be given at most 4 more, but got 5"):
                run(params, np.zeros((5, 3), np.int32), carry)
