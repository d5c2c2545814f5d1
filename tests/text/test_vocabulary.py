"""Characters to ids and back, and the tutorial's way of cleaning a text."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnjax.errors import InvalidInputError
from rnnjax.text import TUTORIAL_CHARACTERS, ByteVocabulary, Vocabulary, plain_lines

texts = st.text(st.characters(), min_size=1)  # lone surrogates are characters too


def test_tutorial_has_its_68_characters():
    assert len(TUTORIAL_CHARACTERS) == len(set(TUTORIAL_CHARACTERS)) == 68
    assert Vocabulary.tutorial().characters == TUTORIAL_CHARACTERS
    assert set(".,! -'") < set(TUTORIAL_CHARACTERS)


def test_vocabulary_is_a_value():
    vocabulary = Vocabulary("ab")
    vocabulary.encode("a")  # fills the lookup table, which is no part of the value
    assert vocabulary == Vocabulary("ab") != Vocabulary("ba")
    assert hash(vocabulary) == hash(Vocabulary("ab"))
    assert dataclasses.asdict(vocabulary) == {"characters": "ab"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        vocabulary.characters = "c"


@given(texts)
def test_learned_vocabulary_is_sorted_and_round_trips(text):
    vocabulary = Vocabulary.learned(text)
    assert list(vocabulary.characters) == sorted(set(text))
    ids = vocabulary.encode(text)
    assert ids.shape == (len(text),)
    assert [vocabulary.characters[i] for i in ids] == list(text)
    assert vocabulary.decode(ids) == text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Vocabulary("aba"), "distinct, but 'a'"),
        (lambda: Vocabulary(""), "at least one character"),
        (lambda: Vocabulary("ab").encode(b"ab"), "a text must be a str .*, but is a bytes"),
        (lambda: ByteVocabulary().encode(b"ab"), "a text must be a str .*, but is a bytes"),
        (lambda: Vocabulary(["ab"]), "a text must be a str .*, but is a list"),
        (lambda: Vocabulary.learned(["ab"]), "a text must be a str .*, but is a list"),
        (lambda: Vocabulary("ab").clean(["ab"]), "a text must be a str .*, but is a list"),
        (lambda: plain_lines(["ab"]), "a text must be a str .*, but is a list"),
        (lambda: Vocabulary("abc").decode([0, 3]), r"\[0, 3\), but 3 came at position 1"),
        (lambda: Vocabulary("abc").decode([0, 1, -1]), "but -1 came at position 2"),
        (lambda: Vocabulary("abc").decode([[0, 1]]), r"one dimension, but .* shape is \(1, 2\)"),
        (lambda: Vocabulary("abc").decode(0), r"one dimension, but their shape is \(\)"),
        (lambda: Vocabulary("abc").decode([0.0]), "integers, .* are float64"),
        (lambda: Vocabulary("abc").decode([True]), "integers, .* are bool"),
        (lambda: Vocabulary("bcd").encode("bc🐇d\n🐇a"),
         r"holds '🐇', '\\n', 'a', first at position 2; .*Vocabulary.clean.*Vocabulary.learned"),
        (lambda: Vocabulary("ab").encode("123456123456"),
         "'1', '2', '3', '4', '5' and 1 more, first at position 0"),
        # Before, between and behind those that there are.
        (lambda: Vocabulary("AC").encode("A\0"), "first at position 1;"),
        (lambda: Vocabulary("AC").encode("AB"), "first at position 1;"),
        (lambda: Vocabulary("AC").encode("A\U0010ffff"), "first at position 1;"),
        (lambda: Vocabulary("az").encode("a\ud83dz"), "ud83d"),
    ],
)  # fmt: skip
def test_refuses(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()


@pytest.mark.parametrize(
    "ids",
    [[2, 0], (2, 0), np.array([2, 0], np.uint8), np.array([2, 0], np.int64), jnp.array([2, 0]),
     [jnp.int32(2), jnp.int32(0)], []],
)  # fmt: skip
def test_decode_takes_arrays_and_sequences(ids):
    assert Vocabulary("abc").decode(ids) == "ca"[: len(ids)]


@pytest.mark.parametrize(
    ("text", "cleaned", "characters"),
    [
        ("one\r\ntwo\rthree\nfour", "one two three four", TUTORIAL_CHARACTERS),
        ("a * b", "a b", TUTORIAL_CHARACTERS),  # the spaces meet only when the star is gone
        ("a  \n\n  b", "a b", TUTORIAL_CHARACTERS),
        (" a\n", " a ", TUTORIAL_CHARACTERS),  # ends are not stripped
        ("\ufeff\u201cAh, don\u2019t!\u201d", "Ah, dont!", TUTORIAL_CHARACTERS),
        ("tab\there", "tabhere", TUTORIAL_CHARACTERS),
        ("a\r\n\r\n* b  a\n", "a\n\n b a\n", "ab \n"),
        ("a\nb a", "aba", "ab"),
    ],
)
def test_clean_as_the_tutorial_does(text, cleaned, characters):
    assert Vocabulary(characters).clean(text) == cleaned


@given(st.text(), st.sampled_from(["", "\n"]))
def test_cleaned_text_encodes_and_stays_as_it_is(text, newline):
    vocabulary = Vocabulary(TUTORIAL_CHARACTERS + newline)
    cleaned = vocabulary.clean(text)
    ids = vocabulary.encode(cleaned)
    assert (ids.dtype, vocabulary.decode(ids)) == (np.int32, cleaned)
    assert "  " not in cleaned
    assert vocabulary.clean(cleaned) == cleaned
