"""The vocabulary of RWKV-7, beside that of the authors' package."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.language_models.rwkv_vocabulary import WorldVocabulary
from rnnjax import InvalidInputError


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
