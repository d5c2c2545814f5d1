"""The commands, on tiny folders: what they write, and what it is by the definition."""

import functools
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import language_model_helpers as helpers
import numpy as np
import pytest

from experiments.language_models import evaluate, finetune, folders, generate, texts
from experiments.language_models.folders import Model
from experiments.language_models.rwkv_vocabulary import WorldVocabulary
from rnnjax.interop.torch import load_state_dict
from rnnjax.text import Sampling, stream

tokenizers = pytest.importorskip("tokenizers")
TEXT = "".join(f"the whale number {i} swam in the sea. " for i in range(60)) + "é"
FINETUNE = ("finetune", "model", "--corpus", "text.txt", "--run-dir", "run", "--context", 32,
            "--batch-size", 4, "--learning-rate", 1e-2, "--warmup", 2)  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Model:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return helpers.drawn(tmp_path / "model")


@pytest.fixture
def command(program: Any) -> Any:
    return functools.partial(program, "language_models")


@pytest.fixture
def refused(refusal: Any) -> Any:
    return functools.partial(refusal, "language_models")


def logits_of(model: Model, ids: Any) -> np.ndarray:
    """The logits after each id, all read at once."""
    padded = np.pad(ids, (0, -len(ids) % 64))[:, None]  # to few lengths, each of which is compiled
    begin = helpers.begin(model.family, model.config, 1, len(padded), jnp.float32)
    _, logits = helpers.run(model.family, model.config, model.params, padded, begin)
    return np.asarray(logits)[: len(ids), 0]


def test_show_says_what_a_folder_holds(command: Any, model: Model) -> None:
    shown = command("show", "model").stdout
    size = sum(x.size for x in model.params.values())
    assert f"{size:,} parameters in 12 tensors of float32" in shown
    assert "\n  state_size: 4\n" in shown
    # A window of 3 steps and 4 states for each of 32 channels, of 4 bytes each.
    assert f"the state of any number of tokens has {32 * 7 * 4 / 2**20:.2f} MiB" in shown


@pytest.mark.smoke
def test_generate_writes_the_most_probable_text(
    command: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the pieces are in which the prompt is read."""
    tokenizer = texts.read_tokenizer(model)
    prompt = "the whale and thé sea"
    ids = tokenizer.encode(prompt).tolist()
    for _ in range(12):
        ids.append(int(logits_of(model, ids)[-1].argmax()))
    assert 0 not in ids  # which would end the text
    # Not the text, in which many bytes of random weights are none; and no space at its start.
    monkeypatch.setattr(texts.Tokenizer, "decode", lambda _, ids: " ".join(map(str, ids)))
    words = ("generate", "model", "--prompt", prompt, "--tokens", 12)
    result = command(*words)
    assert result.stdout == f"{prompt} {tokenizer.decode(ids[-12:])}\n"
    assert re.search(r"^12 tokens; .*, then [\d,.]+ tokens per second$", result.stderr, re.M)
    monkeypatch.setattr(generate, "PIECE", 5)
    assert command(*words).stdout == result.stdout
    assert command(*words, "--temperature", 1, "--top-k", 1).stdout == result.stdout
    assert command(*words, "--temperature", 9).stdout != result.stdout


@pytest.mark.parametrize("sampling", [(), ("--temperature", 1.5, "--seed", 3)])
def test_a_saved_state_goes_on_as_if_nothing_had_ended(
    command: Any, model: Model, monkeypatch: pytest.MonkeyPatch, sampling: Any
) -> None:
    """Ids and not text, of which a cut may lie within a character."""
    monkeypatch.setattr(texts.Tokenizer, "decode", lambda _, ids: "".join(f" {i}" for i in ids))
    whole = command("generate", "model", "--prompt", "the sea", "--tokens", 24, *sampling).stdout
    # They are those of the library's stream by one token a call.
    tokenizer = texts.read_tokenizer(model)
    ids = tokenizer.encode("the sea")

    def step(_: Any, carry: Any, tokens: Any) -> Any:
        carry, logits = model.family.apply(model.config, model.params, tokens[None], carry)
        return carry, logits[0]

    carry = generate.read_prompt(model, model.family.begin(model.config, 1), ids[:-1])
    chosen = Sampling(*([1.5] if sampling else [0.0]))
    made = stream(
        step, (), carry, jnp.array(ids[-1:]), key=jax.random.key(3 if sampling else 0), length=24,
        sampling=chosen, stops=[[0]], chunk=1,
    )  # fmt: skip
    written = np.concatenate([piece for (piece,) in made])
    assert whole == f"the sea{tokenizer.decode(written)}\n"
    # A prompt that is read once goes on as often as one likes, and so does what is written.
    command("generate", "model", "--prompt", "the sea", "--tokens", 0, "--save-state",
            "read.safetensors")  # fmt: skip
    for _ in range(2):
        said = command(
            "generate", "model", "--state", "read.safetensors", "--tokens", 24, *sampling
        )
        assert f"the sea{said.stdout}" == whole
    parts = "the sea"
    for tokens, state in ((0, "read"), (1, "read"), (14, "on"), (9, "on")):
        words = ("--state", f"{state}.safetensors", "--save-state", "on.safetensors")
        said = command("generate", "model", *words, "--tokens", tokens, *sampling)
        parts += said.stdout.removesuffix("\n")
    assert f"{parts}\n" == whole


def test_a_state_goes_to_the_model_it_is_of_alone(
    command: Any, refused: Any, model: Model, tmp_path: Path
) -> None:
    command("generate", "model", "--prompt", "the", "--tokens", 3, "--save-state", "a.safetensors")
    other = {name: x + 1 for name, x in model.params.items()}
    folders.write(tmp_path / "other", model, other)
    said = refused("generate", "other", "--state", "a.safetensors")
    assert "a.safetensors must be a state of other, but is one of model with other weights" in said
    words = ("--state", "model/model.safetensors")
    assert "but holds other arrays" in refused("evaluate", "model", "--corpus", "text.txt", *words)
    said = refused("generate", "model", "--prompt", "the", "--save-state", "a.npz")
    assert "the" not in said.partition("error: ")[0]  # before anything is written
    # A second prompt goes on where the first one ended, without a token that begins a text.
    words = ("--prompt", " sea", "--tokens", 0, "--save-state", "b.safetensors")
    shared = command("generate", "model", "--state", "a.safetensors", *words)
    assert shared.stdout == " sea\n"


def test_no_space_is_lost_behind_a_prompt(tmp_path: Path) -> None:
    """Many tokenizers leave out the space at the start of a text, or have tokens without text."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"▁the": 0, "▁sea": 1}, []))
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.add_special_tokens([tokenizers.AddedToken("<turn>")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    decoder = generate.Decoder(texts.Tokenizer(tmp_path / "tokenizer.json"), [0])
    pieces = [decoder.of(np.array([one])) for one in (1, 2, 0, 2, 2, 1)]
    assert pieces == [" sea", "", " the", "", "", " sea"]
    assert decoder.end() == ""


def test_no_character_is_lost_that_tokens_cut(tmp_path: Path) -> None:
    """Each token ends within a character, so there is never a whole text to begin anew at."""
    text = "鯨海" * 5
    data = text.encode()
    whole = [*(bytes([i]) for i in range(256)), data[1:4], data[4:7]]
    lines = "".join(f"{i} {token!r} {len(token)}\n" for i, token in enumerate(whole, 1))
    (tmp_path / "vocabulary.txt").write_text(lines)
    vocabulary = WorldVocabulary(tmp_path / "vocabulary.txt")
    parts = [data[:1], *(data[i : i + 3] for i in range(1, len(data) - 3, 3))]
    decoder = generate.Decoder(vocabulary, [])
    pieces = [decoder.of(np.array([whole.index(part) + 1])) for part in parts]
    assert pieces == ["", *text[:-1]]
    assert decoder.of(np.array([256])) == ""  # a byte of no text
    assert decoder.end() == "\ufffd\ufffd"


def test_a_token_that_ends_a_document_ends_the_text(command: Any, tmp_path: Path) -> None:
    """Whichever of those that config.json names is the most probable."""
    model = helpers.drawn(tmp_path / "model")
    ids = texts.read_tokenizer(model).encode("the sea")
    best = int(logits_of(model, ids)[-1].argmax())
    helpers.drawn(tmp_path / "model", eos_token_id=[0, best])
    result = command("generate", "model", "--prompt", "the sea", "--tokens", 12)
    assert result.stdout == "the sea\n"
    assert result.stderr.startswith("0 tokens; ")


def test_evaluate_counts_the_bits_of_the_whole_text(
    command: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards that a piece goes on where the one before it ended."""
    ids = texts.read_tokenizer(model).encode(TEXT)
    logs = jax.nn.log_softmax(logits_of(model, ids[:-1]))
    bits = -np.take_along_axis(np.asarray(logs, np.float64), ids[1:, None], -1).sum() / math.log(2)
    monkeypatch.setattr(evaluate, "PIECE", 100)
    printed = command("evaluate", "model", "--corpus", "text.txt").stdout
    counted = len(TEXT.encode()) - len("the")
    assert printed.startswith(f"{bits / counted:.4f} bits per byte, ")
    assert f"{counted:,} bytes in {len(ids) - 1:,} tokens, carried over the whole" in printed
    # In windows, each id is predicted from those before it in its window alone.
    spans = [(at, min(at + 600, len(ids) - 1)) for at in range(0, len(ids) - 1, 600)]
    begin = model.family.begin(model.config, 1, 600)
    apart = sum(evaluate.bits_of(model, ids[a : b + 1], None, begin) for a, b in spans)
    assert evaluate.bits_of(model, ids, 600, begin) == pytest.approx(apart, rel=1e-6)
    assert abs(apart - bits) > 1e-6 * bits


def test_evaluate_says_what_a_tokenizer_loses_and_counts_special_tokens(
    command: Any, model: Model, tmp_path: Path
) -> None:
    marked = f"<|endoftext|>{TEXT}<|endoftext|>{TEXT}"
    (tmp_path / "text.txt").write_text(marked, encoding="utf-8-sig")
    result = command("evaluate", "model", "--corpus", "text.txt")
    counted = len(marked.encode()) - len("<|endoftext|>")  # which is given, and not predicted
    assert f"{counted:,} bytes in " in result.stdout
    assert "whole text back" not in result.stderr
    file = str(model.path / "tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(file)
    tokenizer.normalizer = tokenizers.normalizers.Replace("sea", "")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(file)
    for text, loses in ((TEXT, True), (TEXT.replace("sea", "see"), False)):
        (tmp_path / "text.txt").write_text(text, encoding="utf-8")
        result = command("evaluate", "model", "--corpus", "text.txt")
        assert ("do not give the whole text back" in result.stderr) == loses
        assert f"{len(text.encode()):,} bytes in " in result.stdout


def test_finetuning_resumes_exactly_and_what_it_writes_is_read(
    command: Any, refused: Any, model: Model
) -> None:
    before = command("evaluate", "model", "--corpus", "text.txt").stdout
    said = command(*FINETUNE, "--epochs", 3).stdout
    assert "is in run/model" in said
    Path("run").rename("whole")
    command(*FINETUNE, "--epochs", 1)
    command(*FINETUNE, "--epochs", 3, "--resume")
    whole, resumed = (load_state_dict(f"{run}/model/model.safetensors") for run in ("whole", "run"))
    assert whole.keys() == model.params.keys()
    for name, x in whole.items():
        np.testing.assert_array_equal(x, resumed[name])
        assert (x != np.asarray(model.params[name])).any()
    after = command("evaluate", "run/model", "--corpus", "text.txt").stdout
    assert float(after.split()[0]) < 0.8 * float(before.split()[0])
    command("generate", "run/model", "--prompt", "the", "--tokens", 2)
    lines = Path("run/epochs.jsonl").read_text().splitlines()
    losses = [json.loads(line)["validation_loss"] for line in lines]
    assert f"validation loss {min(losses):.4f}" in said
    # The same text under another name goes on; what differs is named in words of the command.
    text = Path("text.txt").read_text()
    Path("text.txt").rename("moved.txt")
    Path("other.txt").write_text(text[:-3] + text[:3])
    moved, other = ([name if w == "text.txt" else w for w in FINETUNE] for name in
                    ("moved.txt", "other.txt"))  # fmt: skip
    command(*moved, "--epochs", 3, "--resume")
    said = refused(*other, "--epochs", 4, "--resume")
    assert "those of text.txt, but other.txt has others; name that text and --tokenizer" in said
    other = [0.02 if word == 1e-2 else word for word in moved]
    rate = refused(*other, "--epochs", 4, "--resume")
    assert "--learning-rate must be that of the run in run, 0.01, but is 0.02; give that" in rate
    assert "RunFolder" not in said + rate


STYLES = {"shout": "the whale: SEA! SEA!", "count": "the whale: 1 2 3 4"}


@pytest.mark.usefixtures("model")
def test_a_first_state_alone_learns_a_style_and_the_model_stays(
    command: Any, tmp_path: Path
) -> None:
    """A model of both styles does not know which one comes, and loses about a bit by it."""
    for name, text in [*STYLES.items(), ("both", "|".join(STYLES.values()))]:
        (tmp_path / f"{name}.txt").write_text(text)
        (tmp_path / f"{name}-40.txt").write_text("|".join([text] * 40))
    words = ("--separator", "|", "--context", 24, "--batch-size", 4, "--warmup", 2)
    command("finetune", "model", "--corpus", "both-40.txt", "--run-dir", "run", *words,
            "--learning-rate", 0.02, "--epochs", 12)  # fmt: skip
    folder = tmp_path / "run" / "model"
    before = {file: file.read_bytes() for file in folder.iterdir()}
    words = ("finetune", "run/model", *words, "--train", "state", "--learning-rate", 0.3)
    bits = {}
    for name in STYLES:
        own = (*words, "--corpus", f"{name}-40.txt", "--run-dir", name)
        command(*own, "--epochs", 2)
        assert "the state of epoch 6, with val" in command(*own, "--epochs", 6, "--resume").stdout
        for style in STYLES:
            for state in ((), ("--state", f"{name}/state.safetensors")):
                said = command("evaluate", "run/model", "--corpus", f"{style}.txt", *state).stdout
                bits[style, name if state else ""] = float(said.split()[0])
    for style, other in (STYLES, reversed(STYLES)):
        assert 20 * bits[style, style] < bits[style, ""] < bits[style, other] / 5
    assert before == {file: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    "left", ["", "lock", "lock steps.jsonl checkpoints checkpoints/.writing-9"]
)
def test_finetuning_that_was_killed_before_its_first_checkpoint_begins_again(
    command: Any, model: Model, tmp_path: Path, left: str
) -> None:
    """As it is left after the folder was made, locked, trained in, and while it was saved."""
    (tmp_path / "run").mkdir()
    for path in (tmp_path / "run" / name for name in left.split()):
        path.mkdir() if "checkpoints" in str(path) else path.touch()
    command(*FINETUNE, "--epochs", 1, "--resume")
    assert folders.read(tmp_path / "run/model").params.keys() == model.params.keys()


def test_what_is_frozen_stays_and_types_are_those_of_the_folder(
    command: Any, model: Model, tmp_path: Path
) -> None:
    half = {name: np.asarray(x).astype(jnp.bfloat16) for name, x in model.params.items()}
    folders.write(tmp_path / "half", model, half)
    words = ["half" if word == "model" else word for word in FINETUNE]
    command(*words, "--epochs", 1, "--dtype", "bfloat16", "--freeze", "*norm*", "*.embeddings.*",
            "--weight-decay", 10)  # fmt: skip
    learned = folders.read(tmp_path / "run/model")
    assert {x.dtype for x in learned.params.values()} == {np.dtype(jnp.bfloat16)}
    same = {name for name, x in learned.params.items() if (np.asarray(x) == half[name]).all()}
    assert same == {name for name in half if "norm" in name or "embeddings" in name}


def test_matrices_decay_and_neither_vectors_nor_rates() -> None:
    shapes = {
        "in_proj.weight": (4, 3), "norm.weight": (4,), "gate_bias": (2, 2), "mixer.A_log": (4, 3),
        "att.x_r": (1, 1, 4), "att.r_k": (2, 2), "embeddings.weight": (5, 4),
    }  # fmt: skip
    params = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    options = finetune.Finetune(Path("model"), Path("text.txt"), warmup=0, weight_decay=0.5)
    optimizer = finetune.make_optimizer(options, frozenset({"embeddings.weight"}))
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(lambda p: optimizer.update(zeros, optimizer.init(p), p))(params)
    assert {name for name, x in updates.items() if np.any(x)} == {"in_proj.weight"}


def test_a_wrong_use_gets_one_sentence(refused: Any, model: Model, tmp_path: Path) -> None:
    params = {name: np.full(x.shape, np.nan, x.dtype) for name, x in model.params.items()}
    folders.write(tmp_path / "nan", model, params)
    assert "must give finite probabilities" in refused("evaluate", "nan", "--corpus", "text.txt")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("the")
    corpus = ("--corpus", "text.txt")
    assert "must have at least one token" in refused("generate", "model", "--prompt", "")
    assert "temperature must be a number" in refused(
        "generate", "model", "--prompt", "a", "--temperature", -1
    )
    for name in ("evaluate", "finetune"):
        assert "but is empty" in refused(name, "model", "--corpus", "empty.txt")
        assert "cannot be read" in refused(name, "nothing", *corpus)
    assert "at least two tokens" in refused("evaluate", "model", "--corpus", "short.txt")
    assert "more text than for a validation" in refused(
        "finetune", "model", "--corpus", "short.txt"
    )
    assert "--tokenizer" in refused("evaluate", "model", *corpus, "--tokenizer", "no.json")
    for options, match in (
        (("--batch-size", 100), "--batch-size must be at most"),
        (("--context", 2**31 - 1), "--batch-size must be at most 1, the rows of --context 2147"),
        (("--validation", 1), "--validation must be a number from 1e-06 up to"),
        (("--learning-rate", "nan"), "--learning-rate must be a number from 1e-12 up to"),
        (("--context", 32, "--freeze", "layers"), "but 'layers' matches none"),
        (("--context", 32, "--freeze", "*"), "--freeze must leave a tensor to train"),
        (("--resume",), "there is no run in None"),
        (("--context", 32, "--run-dir", "model"), "model holds something already"),
        (("--run-dir", "new", "--resume"), "there is no run in new"),
    ):
        assert match in refused("finetune", "model", *corpus, *options)
    # Before a step, not when the model is written.
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    (tmp_path / "old" / "lock").touch()
    (tmp_path / "old" / "model").mkdir()
    (tmp_path / "old" / "model" / "pytorch_model.bin").write_bytes(b"")
    old = ("--context", 32, "--run-dir", "old", "--resume")
    assert "old/model must be a new folder" in refused("finetune", "model", *corpus, *old)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model", "text.txt", "empty.txt", "short.txt", "old", "nan"}
    assert not list((tmp_path / "old" / "checkpoints").iterdir())


def test_full_attention_has_room_for_a_text_or_reads_it_in_windows(
    command: Any, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("experiments.language_models.gated_delta")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    model = helpers.drawn(
        tmp_path / "model", model_type="qwen3_5_text", state_size=None, **helpers.QWEN
    )
    assert model.attends
    shown = command("show", "model").stdout
    assert "the state of 2048 tokens has " in shown
    tokenizer = texts.read_tokenizer(model)
    ids = tokenizer.encode("the sea").tolist()
    words = ("generate", "model", "--prompt", "the sea", "--tokens", 9, "--context")
    assert f"make it {len(ids) + 9}" in refused(*words, len(ids) + 8)
    monkeypatch.setattr(texts.Tokenizer, "decode", lambda _, ids: "".join(f" {i}" for i in ids))
    written = command(*words, len(ids) + 9).stdout
    for _ in range(9):
        ids.append(int(logits_of(model, ids)[-1].argmax()))
    assert written == f"the sea{tokenizer.decode(ids[-9:])}\n"
    # A saved state has the slots that were read, and more are added.
    command(*words[:5], 4, "--save-state", "state.safetensors")
    parts = command("generate", "model", "--state", "state.safetensors", "--tokens", 5).stdout
    assert f"the sea{tokenizer.decode(ids[-9:-5])}{parts}" == written
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    said = command("evaluate", "model", "--corpus", "text.txt", "--context", 100).stdout
    assert "in windows of 100 tokens, because the model has full attention" in said
    begin = model.family.begin(model.config, 1, 100)
    bits = evaluate.bits_of(model, tokenizer.encode(TEXT), 100, begin)
    assert said.startswith(f"{bits / (len(TEXT.encode()) - len('the')):.4f} bits per byte")
