"""Characters to ids and back, and the tutorial's way of cleaning a text."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnjax.errors import InvalidInputError
from rnnjax.text import TUTORIAL_CHARACTERS, ByteVocabulary, Vocabulary, plain_lines

BOOK = Path(__file__).parents[2].parent / "shared" / "data" / "alice_gutenberg11.txt"

unicode_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def test_tutorial_has_its_68_characters():
    assert len(TUTORIAL_CHARACTERS) == len(set(TUTORIAL_CHARACTERS)) == 68
    assert Vocabulary.tutorial().characters == TUTORIAL_CHARACTERS
    assert set(".,! -'") < set(TUTORIAL_CHARACTERS)


def test_position_is_the_id():
    vocabulary = Vocabulary("zaé🐇m")  # not sorted, and wider than 16 bits
    assert vocabulary.encode("🐇zzam").tolist() == [3, 0, 0, 1, 4]
    assert vocabulary.encode("z").dtype == np.int32
    assert len(vocabulary) == 5


@pytest.mark.parametrize("characters", ["aba", "🐇🐇"])
def test_duplicates_are_refused(characters):
    with pytest.raises(InvalidInputError, match=f"distinct, but {characters[0]!r}"):
        Vocabulary(characters)


@pytest.mark.parametrize("make", [Vocabulary, Vocabulary.learned])
def test_no_characters_are_refused(make):
    with pytest.raises(InvalidInputError, match="at least one character"):
        make("")


def test_vocabulary_is_a_value():
    vocabulary = Vocabulary("ab")
    vocabulary.encode("a")  # fills the lookup table, which is no part of the value
    assert vocabulary == Vocabulary("ab") != Vocabulary("ba")
    assert hash(vocabulary) == hash(Vocabulary("ab"))
    assert dataclasses.asdict(vocabulary) == {"characters": "ab"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        vocabulary.characters = "c"


@given(unicode_texts)
def test_learned_vocabulary_is_sorted_and_round_trips(text):
    vocabulary = Vocabulary.learned(text)
    assert list(vocabulary.characters) == sorted(set(text))
    ids = vocabulary.encode(text)
    assert ids.shape == (len(text),)
    assert [vocabulary.characters[i] for i in ids] == list(text)
    assert vocabulary.decode(ids) == text


@given(st.permutations("azé\n🐇 "), st.text("azé\n🐇 "))
def test_any_order_of_characters_round_trips(characters, text):
    vocabulary = Vocabulary("".join(characters))
    assert vocabulary.encode(text).tolist() == [characters.index(c) for c in text]
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_lone_surrogates_are_characters_too():
    text = "a\ud83dz"
    vocabulary = Vocabulary.learned(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    with pytest.raises(InvalidInputError, match="ud83d"):
        Vocabulary("az").encode(text)


def test_empty_text():
    vocabulary = Vocabulary("ab")
    assert vocabulary.encode("").shape == (0,)
    assert vocabulary.encode("").dtype == np.int32
    assert vocabulary.decode([]) == vocabulary.decode(np.zeros(0, np.int32)) == ""
    assert vocabulary.clean("") == ""


@pytest.mark.parametrize("vocabulary", [Vocabulary("ab"), ByteVocabulary()])
def test_bytes_are_no_text(vocabulary):
    with pytest.raises(InvalidInputError, match="a text must be a str, but is of type bytes"):
        vocabulary.encode(b"ab")


@pytest.mark.parametrize(
    "call", [Vocabulary, Vocabulary.learned, Vocabulary("ab").clean, plain_lines]
)
def test_a_list_of_texts_is_no_text(call):
    with pytest.raises(InvalidInputError, match="a text must be a str, but is of type list"):
        call(["ab", "c"])


def test_outsiders_are_named_with_the_first_position():
    with pytest.raises(InvalidInputError) as caught:
        Vocabulary("bcd").encode("bc🐇d\n🐇a")
    message = str(caught.value)
    assert "'🐇', '\\n', 'a', first at position 2;" in message
    assert "Vocabulary.clean" in message
    assert "Vocabulary.learned" in message


def test_at_most_five_outsiders_are_named():
    with pytest.raises(InvalidInputError, match="'1', '2', '3', '4', '5' and 3 more, first at pos"):
        Vocabulary("ab").encode("1234567812345678")


@pytest.mark.parametrize("outsider", ["\0", "B", "\U0010ffff"])
def test_outsiders_before_between_and_behind_are_found(outsider):
    with pytest.raises(InvalidInputError, match="first at position 1;"):
        Vocabulary("AC").encode("A" + outsider)


@pytest.mark.parametrize(
    "ids",
    [
        [2, 0],
        (2, 0),
        np.array([2, 0], np.uint8),
        np.array([2, 0], np.int64),
        jnp.array([2, 0]),
        [jnp.int32(2), jnp.int32(0)],
    ],
    ids=["list", "tuple", "uint8", "int64", "jax", "list of jax scalars"],
)
def test_decode_takes_arrays_and_sequences(ids):
    assert Vocabulary("abc").decode(ids) == "ca"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 3], r"\[0, 3\), but 3 came at position 1"),
        ([0, 1, -1], "but -1 came at position 2"),
        ([[0, 1]], r"one dimension, but their shape is \(1, 2\)"),
        (0, r"one dimension, but their shape is \(\)"),
        ([0.0], "integers, but their dtype is float64"),
        ([True], "integers, but their dtype is bool"),
    ],
)
def test_decode_refuses(ids, message):
    with pytest.raises(InvalidInputError, match=message):
        Vocabulary("abc").decode(ids)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("one\r\ntwo\rthree\nfour", "one two three four"),
        ("a * b", "a b"),  # the spaces meet only when the star is gone
        ("a  \n\n  b", "a b"),
        (" a\n", " a "),  # ends are not stripped
        ("don\u2019t", "dont"),
        ("\ufeff\u201cAh!\u201d", "Ah!"),
        ("tab\there", "tabhere"),
    ],
)
def test_clean_as_the_tutorial_does(text, cleaned):
    assert Vocabulary.tutorial().clean(text) == cleaned


def test_clean_keeps_newlines_of_the_vocabulary():
    assert Vocabulary("ab \n").clean("a\r\n\r\n* b  a\n") == "a\n\n b a\n"


def test_clean_without_a_space_drops_newlines():
    assert Vocabulary("ab").clean("a\nb a") == "aba"


@given(st.text(), st.sampled_from(["", "\n"]))
def test_cleaned_text_encodes_and_stays_as_it_is(text, newline):
    vocabulary = Vocabulary(TUTORIAL_CHARACTERS + newline)
    cleaned = vocabulary.clean(text)
    assert vocabulary.decode(vocabulary.encode(cleaned)) == cleaned
    assert "  " not in cleaned
    assert vocabulary.clean(cleaned) == cleaned


@pytest.mark.skipif(not BOOK.exists(), reason=f"needs the book at {BOOK}")
def test_the_book_cleans_to_the_tutorials_length():
    vocabulary = Vocabulary.tutorial()
    cleaned = vocabulary.clean(BOOK.read_text("utf-8-sig"))
    assert len(cleaned) == 160_406
    assert vocabulary.decode(vocabulary.encode(cleaned)) == cleaned
