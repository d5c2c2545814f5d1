"""What a language model reads: tokenizers, texts, and documents packed into rows."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rnnjax
from experiments.language_models.folders import Model
from rnnjax import InvalidInputError


class Tokenizer:
    """A tokenizer.json, which says how a text is cut into tokens.

    It cuts no text short, and fills none up, whatever the file says of that.

    Raises:
        InvalidInputError: it is none, or the package that reads it is missing.
    """

    def __init__(self, file: Path) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise InvalidInputError(
                "a tokenizer.json needs the package tokenizers, which is missing; pip install "
                "'.[language-models]'"
            ) from error
        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises Exception itself
            raise InvalidInputError(
                f"{file} is no tokenizer.json ({' '.join(str(error).split())[:120]}); get it again"
            ) from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def __len__(self) -> int:
        return 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, after those that begin every text, if there are any."""
        try:
            found = self.tokenizer.encode(text)
        except Exception as error:  # the package raises Exception itself
            raise InvalidInputError(
                f"the tokenizer cannot cut the text into tokens ({error}); give text in UTF-8, and "
                "the model's own tokenizer"
            ) from error
        count = len(found.ids)
        while count and found.special_tokens_mask[count - 1]:  # a token that would end the text
            count -= 1
        return np.array(found.ids[:count], np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, of which those of no text are left out."""
        return str(self.tokenizer.decode([int(one) for one in ids], skip_special_tokens=True))

    def restore(self, ids: Sequence[int]) -> str:
        """Return the same with special tokens, which a text may have."""
        return str(self.tokenizer.decode([int(one) for one in ids], skip_special_tokens=False))


def read_tokenizer(model: Model, file: Path | None = None) -> Any:
    """Return what has ``encode``, ``decode`` and a length: a model's own, or another file's.

    Raises:
        InvalidInputError: there is none, or it has ids that the model has not.
    """
    if file is None:
        beside = model.path if model.path.is_dir() else model.path.parent
        found = [beside / "tokenizer.json", *sorted(beside.glob("rwkv_vocab*.txt"))]
        file = found[0 if model.path.is_dir() else -1]
    if not file.is_file():
        raise InvalidInputError(
            f"there must be a tokenizer, but {file} is no file; get the model's own, and name it "
            "by --tokenizer if it lies elsewhere"
        )
    if file.suffix == ".txt":
        module = importlib.import_module("experiments.language_models.rwkv_vocabulary")
        tokenizer = module.WorldVocabulary(file)
    else:
        tokenizer = Tokenizer(file)
    if not 0 < len(tokenizer) <= model.config.vocabulary:
        raise InvalidInputError(
            f"{file} has ids up to {len(tokenizer) - 1}, but the model has "
            f"{model.config.vocabulary} tokens; get the model's own"
        )
    return tokenizer


def read_texts(path: Path) -> list[str]:
    """Return the text of a file, or of each .txt of a folder, in the order of their names.

    A byte-order mark is left out, and lines end in a newline alone.

    Raises:
        InvalidInputError: there is no such file, it is not UTF-8, or all are empty.
    """
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    try:
        texts = [file.read_text(encoding="utf-8-sig") for file in files]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"{path} must be a text file in UTF-8, or a folder of .txt files, but cannot be read "
            f"({error}); check --corpus"
        ) from error
    if not any(text.strip() for text in texts):
        raise InvalidInputError(f"{path} must hold text, but is empty; check --corpus")
    return texts


def pack(
    documents: Sequence[np.ndarray], length: int, alone: bool = False
) -> dict[str, np.ndarray]:
    """Pack documents of ids into rows to learn from, each leaf ``(length, rows)``.

    A document longer than a row is cut into parts, each of which begins anew. No row is longer than
    all documents together. ``alone`` gives each part its own row, and no reset.

    Returns:
        ``inputs``; ``targets``, the ids after them; ``resets``, where a part begins; and
        ``weights``, 0 at padding.
    """
    parts = [
        document[at : at + length + 1]
        for document in documents
        for at in range(0, len(document) - 1, length)
    ]
    length = min(length, sum(map(len, documents)))
    if alone:  # filled up by -1, which is no token
        parts = [np.pad(x, (0, length + 1 - len(x)), constant_values=-1) for x in parts]
    packed = rnnjax.pack([part[:-1] for part in parts], length)
    targets = packed.lay([part[1:] for part in parts])
    return {
        "inputs": np.maximum(packed.xs, 0),
        "targets": np.maximum(targets, 0),
        "resets": packed.resets & (not alone),
        "weights": (packed.mask & (targets >= 0)).astype(np.float32),
    }
