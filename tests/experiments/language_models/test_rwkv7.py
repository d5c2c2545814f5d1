"""RWKV-7 beside the package of its authors, and its gradients beside those in float64.

Those of its memory are held against a loop in tests/test_functions.py.
"""

import importlib.util
import math
import types
import warnings
from pathlib import Path
from typing import Any

import language_model_helpers as helpers
import numpy as np
import pytest

from experiments.language_models import folders, rwkv7
from experiments.language_models.rwkv_vocabulary import WorldVocabulary
from rnnjax import InvalidInputError

torch = pytest.importorskip("torch")

CONFIGS = {
    "two layers": rwkv7.Config(helpers.VOCABULARY, 128, 64, 2, 160, (16, 24, 40, 8)),
    "one layer, one head": rwkv7.Config(helpers.VOCABULARY, 64, 64, 1, 256, (8, 8, 16)),
    "values of the first layer twice": rwkv7.Config(
        helpers.VOCABULARY, 192, 64, 3, 96, (32, 8, 16, 16), unread=True
    ),
}
FIRST, *REST = CONFIGS
ALL = [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]


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


class Package:
    """The model of the authors' package, with the calls of one of transformers."""

    def __init__(self, path: Path, kind: str = "fp32") -> None:
        from rwkv.model import RWKV

        with warnings.catch_warnings():  # torch.jit is deprecated
            warnings.simplefilter("ignore")
            self.path, self.model = path, RWKV(str(path.with_suffix("")), f"cpu {kind}")

    def float(self) -> "Package":
        return Package(self.path)

    def __call__(self, ids: Any, use_cache: bool = False) -> Any:
        rows = [self.model.forward(row.tolist(), None, full_output=True)[0] for row in ids]
        return types.SimpleNamespace(logits=torch.stack(rows))


@pytest.fixture(scope="module")
def package() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}.items():
            patch.setenv(name, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip("rwkv.model")
    return Package


def made(name: str, folder: Path, dtype: str = "float32") -> Path:
    torch.save(drawn(CONFIGS[name], dtype), folder / "model.pth")
    return folder / "model.pth"


@pytest.fixture(scope="module", params=ALL)
def pair(request: Any, tmp_path_factory: Any) -> helpers.Pair:
    path = made(request.param, tmp_path_factory.mktemp("rwkv7"))
    model = folders.read(path)
    assert (model.config, model.ends) == (CONFIGS[request.param], [0])
    return helpers.Pair(None, path, model)


def test_a_prompt_equals_the_packages(pair: helpers.Pair, package: Any) -> None:
    _, logits = pair.apply(pair.model.params, helpers.TOKENS, pair.begin())
    helpers.close(logits, helpers.logits_of(package(pair.folder), helpers.TOKENS))


def test_float32_is_near_float64(pair: helpers.Pair) -> None:
    helpers.check_float64(pair)


def test_it_may_be_cut_anywhere(pair: helpers.Pair) -> None:
    helpers.check_cuts(pair)


def test_documents_are_apart(pair: helpers.Pair) -> None:
    helpers.check_resets(pair)


def test_greedy_text_is_the_packages(pair: helpers.Pair, package: Any) -> None:
    model, length, row = package(pair.folder).model, 30, 1
    theirs, state = model.forward(helpers.TOKENS[:, row].tolist(), None)
    tokens = helpers.TOKENS[:, row : row + 1]
    carry, logits = pair.apply(pair.model.params, tokens, pair.begin(1))
    for t in range(length):
        second, best = np.sort(theirs.numpy())[-2:]
        if best - second <= 1e-4 * np.abs(theirs.numpy()).max():
            assert t >= length // 3
            break
        token = int(theirs.argmax())
        assert np.asarray(logits)[-1, 0].argmax() == token, t
        theirs, state = model.forward([token], state)
        carry, logits = pair.apply(pair.model.params, np.array([[token]], np.int32), carry)


def test_what_is_saved_is_read_by_the_package(
    pair: helpers.Pair, package: Any, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    tokens, before, params = helpers.TOKENS, pair.model.params, helpers.trained(pair)
    folders.write(tmp_path, pair.model, params)
    saved = tmp_path / "model.safetensors"
    again = folders.read(saved)
    assert again.config == pair.model.config
    assert all(np.array_equal(again.params[name], x) for name, x in params.items())
    torch.save(load_file(saved), tmp_path / "model.pth")
    _, logits = pair.apply(params, tokens, pair.begin())
    helpers.close(helpers.logits_of(package(tmp_path / "model.pth"), tokens), logits)
    _, old = pair.apply(before, tokens, pair.begin())
    assert np.abs(np.asarray(logits) - np.asarray(old)).max() > 1e-4


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_is_as_near_as_the_packages(name: str, package: Any, tmp_path: Path) -> None:
    path = made(name, tmp_path, "bfloat16")
    helpers.check_bfloat16(helpers.Pair(package(path, "bf16"), path, folders.read(path)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda z: z.pop("blocks.1.att.r_k"),
            "of an RWKV-7, such as .*, but are blocks.0.att.a0, ",
        ),
        (lambda z: z.update({"emb.weight": torch.zeros(3)}), "of an RWKV-7"),
        (lambda z: z.update({"blocks.1.att.r_k": torch.zeros(2, 0)}), "of an RWKV-7"),
        (lambda z: z.pop("blocks.1.ffn.x_k"), "'blocks.1.ffn.x_k' is missing from the file; "),
        (lambda z: z.pop("blocks.0.ln0.bias"), "'blocks.0.ln0.bias' is missing from the file; "),
        (lambda z: z.update({"blocks.1.ffn.s0": torch.zeros(3)}), "'blocks.1.ffn.s0' is in the "),
        (lambda z: z.update({"blocks.99.ln1.bias": torch.zeros(3)}), "of an RWKV-7"),
        (
            lambda z: z.update({"blocks.0.att.w1": torch.zeros(3, 4)}),
            r"w1' must have shape \(128, ",
        ),
    ],
)
def test_other_tensors_are_refused(change: Any, said: str, tmp_path: Path) -> None:
    tensors = drawn(CONFIGS[FIRST])
    change(tensors)
    torch.save(tensors, tmp_path / "model.pth")
    with pytest.raises(InvalidInputError, match=said):
        folders.read(tmp_path / "model.pth")


# ---- the vocabulary


@pytest.fixture(scope="module")
def vocabulary_file() -> Path:
    found = importlib.util.find_spec("rwkv")
    if found is None or found.origin is None:
        pytest.skip("the package rwkv, which has the authors' vocabulary, is missing")
    return Path(found.origin).with_name("rwkv_vocab_v20230424.txt")


def test_a_text_is_cut_as_by_the_package(vocabulary_file: Path) -> None:
    from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

    ours, theirs = WorldVocabulary(vocabulary_file), TRIE_TOKENIZER(str(vocabulary_file))
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
