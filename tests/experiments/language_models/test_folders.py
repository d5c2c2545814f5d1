"""Folders of language models: odd ones that are read, and bad ones that get one sentence."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import language_model_helpers as helpers
import numpy as np
import pytest

from experiments.language_models import folders, texts
from rnnjax import RnnjaxError
from rnnjax.interop.torch import load_state_dict
from rnnjax.training import save_params

tokenizers = pytest.importorskip("tokenizers")
EMBEDDING, HEAD = "backbone.embeddings.weight", "lm_head.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    helpers.drawn(tmp_path / "model")
    return tmp_path / "model"


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.array(x) for name, x in load_state_dict(folder / "model.safetensors").items()}


def rewrite(folder: Path, **changed: Any) -> None:
    """Write the tensors with some changed, added, or left out (None)."""
    tensors = tensors_of(folder) | changed
    whole = {name: x for name, x in tensors.items() if x is not None}
    save_params(folder / "model.safetensors", whole)


def config(**fields: Any) -> Callable[[Path], None]:
    """Change fields of config.json."""

    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | fields))

    return change


def content(name: str, text: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(text) and None


def index(**weight_map: str) -> Callable[[Path], None]:
    """An index in the place of the file, which has another name."""
    text = json.dumps({"weight_map": {name.replace("_", "."): f for name, f in weight_map.items()}})

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "1.safetensors")
        (folder / "model.safetensors.index.json").write_text(text)

    return change


def itself(name: str) -> Callable[[Path], None]:
    """A link that leads to itself."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(name)

    return change


MAMBA2 = {
    "model_type": "mamba2", "num_heads": 4, "head_dim": 8, "n_groups": 2,
    "tie_word_embeddings": True, "state_size": 4,
}  # fmt: skip
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json cannot be read"),
    "no json": (content("config.json", b"{"), "is no JSON"),
    "deep json": (content("config.json", b"[" * 200_000), "is no JSON"),
    "a list": (content("config.json", b"[]"), "must hold an object"),
    "another family": (config(model_type="llama"), 'is "llama" but must be one of mamba,'),
    "no family": (config(model_type=None), "is null but must be one of"),
    "a family that is a list": (config(model_type=["mamba"]), "must be one of"),
    "experts": (config(model_type="qwen3_5_moe"), '"qwen3_5_moe", a mixture of experts, but'),
    "kimi": (config(model_type="kimi_linear"), "a mixture of experts"),
    "quantised": (config(quantization_config={"bits": 4}), "quantised weights"),
    "a field of two lines": (config(**{"a\nb\x1b": 1}), r"a\\nb\\x1b of config.json is 1, but"),
    "another activation": (config(hidden_act="gelu"), 'hidden_act of config.json must be "silu"'),
    "a size that is text": (config(hidden_size="16"), 'to 2147483647, but is "16"'),
    "a size that is true": (config(state_size=True), "must be an integer from 1 to"),
    "no layer": (config(num_hidden_layers=0), "num_hidden_layers of config.json must be an"),
    "layers without end": (config(num_hidden_layers=2**30), "an integer from 1 to 1000"),
    "not a number": (config(layer_norm_epsilon=math.nan), "must be a number"),
    "infinitely many": (config(expand=math.inf, intermediate_size=32), "expand of config.json"),
    "a huge number": (config(layer_norm_epsilon=10**400), "must be a number above 0, but is 1000"),
    "a negative epsilon": (config(layer_norm_epsilon=-1e-5), "above 0, but is -1e-05; this"),
    "an end out of reach": (config(eos_token_id=[0, 300]), "ids below 300, but is .0, 300.; get"),
    "another recurrence": (config(ssm_cfg={"layer": "Mamba2"}), "ssm_cfg of config.json must be"),
    "a flag that is a number": (config(use_bias=1), "use_bias of config.json must be true or"),
    "other sizes": (config(hidden_size=32), r"shape \(300, 32\), as other .* has \(300, 16\)"),
    "a limit in reverse": (config(**MAMBA2, time_step_limit=[2, 1]), "two numbers, the lower"),
    "heads that do not fit": (config(**MAMBA2 | {"num_heads": 5}), "num_heads 5 of head_dim 8"),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), "must have one of model.safeten"),
    "damaged tensors": (content("model.safetensors", b"\x08" + bytes(30)), "cannot be loaded"),
    "a tensor less": (lambda f: rewrite(f, **{EMBEDDING: None}), f"{EMBEDDING!r} is missing"),
    "a tensor more": (lambda f: rewrite(f, more=np.ones(1)), "'more' is in the file, but in no"),
    "a head that is not tied": (
        lambda f: rewrite(f, **{HEAD: tensors_of(f)[EMBEDDING] + 1}),
        f"{HEAD!r} is in the file, but in no such model",
    ),
    "integers": (
        lambda f: rewrite(f, **{EMBEDDING: np.ones((300, 16), np.int8)}), "but is int8; quantised",
    ),
    "float64": (
        lambda f: rewrite(f, **{EMBEDDING: np.ones((300, 16))}), "float64; save the model in float",
    ),
    "a link to a private file": (
        lambda f: (f / "vocab.txt").symlink_to(f.parent / "private"), "vocab.txt .* but is a link",
    ),
    "a link to itself": (itself("config.json"), "config.json cannot be read .Too many levels"),
    "a tokenizer in a circle": (itself("tokenizer.json"), "there must be a tokenizer, but"),
    "an index to another folder": (index(a_b="../1.safetensors"), "in its own folder"),
    "an index to nothing": (index(a_b="2.safetensors"), "2.safetensors cannot be read"),
    "an index to another tensor": (index(a_b="1.safetensors"), "'a.b' is in 1.safetensors"),
    "a damaged end": (content("generation_config.json", b"{"), "generation_config.json is no JSON"),
    "another end": (
        content("generation_config.json", b'{"eos_token_id": [1, 300]}'),
        "eos_token_id of generation_config.json must be ids below 300, but is .1, 300.; get",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "there must be a tokenizer"),
    "a damaged tokenizer": (content("tokenizer.json", b"{}"), "is no tokenizer.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_refused_in_one_sentence(name: str, folder: Path) -> None:
    change, match = BAD[name]
    change(folder)
    with pytest.raises(RnnjaxError, match=match) as refused:
        texts.read_tokenizer(folders.read(folder))
    said = str(refused.value)
    assert said.isprintable()
    assert len(said) < 700


def test_no_folder_and_a_tokenizer_larger_than_the_embedding_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RnnjaxError, match="give the folder of a language model"):
        folders.read(tmp_path / "nothing")
    model = helpers.drawn(tmp_path / "model", vocab_size=200)
    with pytest.raises(RnnjaxError, match=r"has ids up to 2.., but the model has 200 tokens"):
        texts.read_tokenizer(model)


def test_a_text_that_a_tokenizer_cannot_cut_is_refused(folder: Path) -> None:
    """Half a character, as a terminal of another coding gives, and words without one for others."""
    model = folders.read(folder)
    with pytest.raises(RnnjaxError, match=r"cannot cut the text .* give text in UTF-8, and the"):
        texts.read_tokenizer(model).encode("the sea\udcff")
    words = tokenizers.models.WordLevel({"sea": 0})
    tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))
    with pytest.raises(
        RnnjaxError, match=r"cannot cut the text into tokens .WordLevel error: Miss"
    ):
        texts.read_tokenizer(model).encode("whale")


# ---- odd folders that are read


def test_a_tokenizer_neither_cuts_a_text_short_nor_fills_it_up(folder: Path) -> None:
    model = folders.read(folder)
    whole = texts.read_tokenizer(model).encode("the whale and the sea")
    file = str(folder / "tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(file)
    for of_model in (lambda: tokenizer.enable_truncation(2), tokenizer.no_truncation):
        of_model()
        tokenizer.enable_padding(length=20)
        tokenizer.save(file)
        assert (
            texts.read_tokenizer(model).encode("the whale and the sea").tolist() == whole.tolist()
        )


def in_two_files(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_params(folder / file, {n: x for n, x in tensors.items() if files[n] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def beside_an_older_one(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """One file is read before an index, as transformers does."""
    save_params(folder / "old.safetensors", {name: x + 1 for name, x in tensors.items()})
    files = dict.fromkeys(tensors, "old.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def of_torch(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    (folder / "model.safetensors").unlink()
    state = {name: torch.tensor(x) for name, x in tensors.items()}
    torch.save(state, folder / "pytorch_model.bin")


def with_a_tied_head(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    rewrite(folder, **{HEAD: tensors[EMBEDDING]})


def with_fields_without_effect(folder: Path, _: Any) -> None:
    config(_name_or_path="x", rope_theta=None, use_cache=False, torch_dtype="bfloat16")(folder)


@pytest.mark.parametrize(
    "change",
    [in_two_files, beside_an_older_one, of_torch, with_a_tied_head, with_fields_without_effect],
)
def test_a_folder_in_another_form_is_the_same_model(change: Any, folder: Path) -> None:
    before = folders.read(folder)
    change(folder, tensors_of(folder))
    after = folders.read(folder)
    assert (after.config, after.params.keys()) == (before.config, before.params.keys())
    for name, x in before.params.items():
        np.testing.assert_array_equal(x, after.params[name])


def test_a_text_ends_where_either_config_says(folder: Path) -> None:
    """Training writes the first id of config.json; models for chats end a turn with another."""
    for given, ends in ((7, [0, 7]), ([9, 0, 8], [0, 9, 8]), (None, [0])):
        content("generation_config.json", json.dumps({"eos_token_id": given}).encode())(folder)
        assert folders.read(folder).ends == ends
    config(eos_token_id=None)(folder)
    content("generation_config.json", b'{"eos_token_id": [5, 6]}')(folder)
    assert folders.read(folder).ends == [5, 6]


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_each_tensor_has_its_type_or_that_which_is_asked_for(folder: Path, dtype: Any) -> None:
    rewrite(folder, **{EMBEDDING: tensors_of(folder)[EMBEDDING].astype(dtype)})
    model = folders.read(folder)
    assert {name for name, x in model.params.items() if x.dtype == dtype} == {EMBEDDING}
    assert {x.dtype for x in folders.read(folder, dtype).params.values()} == {np.dtype(dtype)}


def test_what_is_written_is_what_was_read(folder: Path, tmp_path: Path) -> None:
    """With the files beside it, and the type in config.json that all tensors have."""
    config(torch_dtype="float32")(folder)
    model = folders.read(folder)
    half = {name: x.astype(jnp.bfloat16) for name, x in model.params.items()}
    folders.write(tmp_path / "new", model, half)
    again = folders.read(tmp_path / "new")
    assert again.config == model.config
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert written == json.loads((folder / "config.json").read_text()) | {"torch_dtype": "bfloat16"}
    texts.read_tokenizer(again)
    for name, x in half.items():
        np.testing.assert_array_equal(x, again.params[name])


def test_a_hub_s_cache_is_read_through_its_links(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "1", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / f"{number}")
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", f"{number}"))
    written = folders.write(tmp_path / "new", folders.read(snapshot))
    assert not any(file.is_symlink() for file in written.iterdir())
    texts.read_tokenizer(folders.read(written))


def test_no_model_is_written_where_another_one_would_be_read(folder: Path, tmp_path: Path) -> None:
    model = folders.read(folder)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.safetensors.index.json").write_text("{}")
    for place in (folder, tmp_path / "old"):
        with pytest.raises(RnnjaxError, match="must be a new folder, but holds another model"):
            folders.write(place, model)


# ---- texts


def test_documents_are_packed_without_touching() -> None:
    """One of 5 ids in rows of 3 is two parts, whose first id is the last of the part before."""
    packed = texts.pack([np.array([1, 2, 3, 4, 5]), np.array([6, 7, 8]), np.array([9])], 3)
    found = set()
    for row in range(packed["inputs"].shape[1]):
        inputs, targets, resets, weights = (packed[name][:, row].tolist() for name in packed)
        starts = [t for t in range(3) if resets[t]] + [3]
        assert starts[0] == 0
        for a, b in itertools.pairwise(starts):
            if weights[a]:
                found.add((tuple(inputs[a:b]), tuple(targets[a:b])))
                assert weights[a:b] == [1.0] * (b - a)
    assert found == {((1, 2, 3), (2, 3, 4)), ((4,), (5,)), ((6, 7), (7, 8))}


def test_a_row_is_no_longer_than_the_text() -> None:
    alone = texts.pack([np.array([1, 2, 3, 4, 5]), np.array([6, 7, 8])], 3, alone=True)
    assert sorted(alone["inputs"].T.tolist()) == [[1, 2, 3], [4, 5, 0], [6, 7, 8]]
    assert sorted(alone["targets"].T.tolist()) == [[2, 3, 4], [5, 0, 0], [7, 8, 0]]
    assert sorted(alone["weights"].T.tolist()) == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert not alone["resets"].any()
    packed = texts.pack([np.arange(5), np.arange(3)], 2**31 - 1)
    assert packed["inputs"].shape == (8, 1)
    assert packed["weights"].sum() == 6


@pytest.mark.parametrize(
    ("content", "match"), [(b"", "but is empty"), (b" \n", "but is empty"), (b"\xff", "in UTF-8")]
)
def test_a_corpus_without_text_is_refused(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    for path in (tmp_path / "a.txt", tmp_path):
        with pytest.raises(RnnjaxError, match=match):
            texts.read_texts(path)
    with pytest.raises(RnnjaxError, match="No such file"):
        texts.read_texts(tmp_path / "b.txt")
