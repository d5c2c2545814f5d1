"""Tokens that a model has not, in every family: refused, and NaN where they are not known."""

import functools
import importlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.language_models import rwkv7
from experiments.language_models.blocks import Carry
from experiments.language_models.folders import FAMILIES, Fields
from experiments.language_models.rwkv_vocabulary import WorldVocabulary
from rnnjax import InvalidInputError

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
ATTENDS = {"intermediate_size": 24, "num_key_value_heads": 1, "rope_parameters": {"rope_theta": 5}}
MORE: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 4, "head_dim": 8, "state_size": 4, "n_groups": 1},
    "recurrent_gemma": {**ATTENDS, "block_types": ["recurrent", "attention"]},
    "xlstm": {"num_heads": 2},
    "qwen3_5_text": {
        **ATTENDS, "head_dim": 8, "linear_num_value_heads": 2, "linear_num_key_heads": 1,
        "linear_key_head_dim": 4, "linear_value_head_dim": 4, "full_attention_interval": 2,
    },
    "olmo_hybrid": ATTENDS,
}  # fmt: skip
CAPACITY = 4


def model(name: str) -> tuple[Any, Any, Any]:
    """A family, a small config, and drawn parameters."""
    if name == "rwkv7":
        family, config = rwkv7, rwkv7.Config(40, 16, 8, 2, 24, (4, 4, 4, 4))
    else:
        family = importlib.import_module(f"experiments.language_models.{FAMILIES[name]}")
        config = family.read_config(Fields(SIZES | {"model_type": name} | MORE.get(name, {})))
    rng = np.random.default_rng(0)
    shapes = family.shapes(config).items()
    return family, config, {n: rng.normal(0, 0.3, s).astype(np.float32) for n, s in shapes}


NAMES = [name for name in FAMILIES if name not in ("qwen3_5", "falcon_mamba")] + ["rwkv7"]


def test_every_family_is_there() -> None:
    """qwen3_5 and falcon_mamba are of the files of others."""
    assert {FAMILIES.get(name, name) for name in NAMES} == {*FAMILIES.values(), "rwkv7"}


@pytest.mark.parametrize("name", NAMES)
def test_a_token_that_a_model_has_not_is_no_other_one(name: str) -> None:
    """JAX takes an id behind the last for the last, and one below 0 for one from the end."""
    family, config, params = model(name)
    apply = functools.partial(family.apply, config)
    carry = family.begin(config, 3, CAPACITY)
    tokens = np.array([[1, 2, 3], [39, 0, 7], [5, 40, -1], [8, 8, 8]], np.int32)
    for wrong in (tokens[:, :2], tokens[:, ::2], jax.numpy.array(tokens)):
        with pytest.raises(InvalidInputError, match="tokens must be ids from 0 to 39, but go from"):
            apply(params, wrong, carry)
    with pytest.raises(InvalidInputError, match=r"of one step at least, but have shape \(0, 3\)"):
        apply(params, tokens[:0], carry)
    with pytest.raises(InvalidInputError, match=r"of one step at least, but have shape \(3,\)"):
        apply(params, tokens[0], carry)
    # Steps before it may be NaN too, by products over all steps with weights of 0. No other row is.
    finite = np.isfinite(jax.jit(apply)(params, tokens, carry)[1]).all(axis=-1)
    assert finite[:, 0].all()
    assert not finite[2:, 1:].any()
    if isinstance(carry, Carry) and name != "recurrent_gemma":  # which looks at a window
        for run in (jax.jit(apply), functools.partial(jax.eval_shape, apply), apply):
            with pytest.raises(InvalidInputError, match="must be given at most 4 more, but got 5"):
                run(params, np.zeros((5, 3), np.int32), carry)


# ---- the vocabulary of RWKV-7


def test_a_text_is_cut_as_by_the_package() -> None:
    package = pytest.importorskip("rwkv.rwkv_tokenizer")
    file = Path(package.__file__).with_name("rwkv_vocab_v20230424.txt")
    ours, theirs = WorldVocabulary(file), package.TRIE_TOKENIZER(str(file))
    assert len(ours) == 65530
    points = np.random.default_rng(0).integers(32, 0x3000, 3000)
    words = "The whale, naïve 鯨 🐋\r\n\tfor i in range(10):\n        print(i)"
    for text in (words, "".join(map(chr, points)), " " * 300 + "\n" * 50 + "-" * 333, ""):
        ids = ours.encode(text)
        assert ids.tolist() == theirs.encode(text)
        assert ours.decode(ids) == text
    assert ours.decode([*ours.encode("é"), 0, 65535, *ours.encode("🐋")[:1]]) == "é\ufffd\ufffd"
    lone = "a\udcffb"  # a byte of the command line that is not UTF-8
    assert ours.decode(ours.encode(lone)) == "a\ufffdb"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("258 'ab' 3", "line 257 of .*, but is \"258 'ab' 3\"; give"),
        ("258 'a' 1", "line 257 of "),
        ("256 'ab' 2", "line 257 of "),
        ("0 'ab' 2", "line 257 of "),
        ("258 ['ab'] 1", "line 257 of "),
        ("258 open('ab') 1", "line 257 of "),
        ("many", "line 257 of .*, but is 'many'; give"),
        (None, "must have a token for each byte, but has none for 255; give"),
        (b"\xff\xfe", "cannot be read .*; give"),
    ],
)
def test_another_vocabulary_is_refused(line: Any, said: str, tmp_path: Path) -> None:
    lines = [f"{i + 1} {bytes([i])!r} 1\n".encode() for i in range(256)]
    lines = lines[:-1] if line is None else [*lines, line if type(line) is bytes else line.encode()]
    (tmp_path / "vocabulary.txt").write_bytes(b"".join(lines))
    with pytest.raises(InvalidInputError, match=said):
        WorldVocabulary(tmp_path / "vocabulary.txt")
