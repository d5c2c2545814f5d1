"""Random sequences, and what is to be said of them, where.

Each function takes a random generator, the shortest and the longest length and the rows: symbols
``(time, rows)``, or vectors ``(time, rows, features)``; the answers to the last ``steps``, or to
all, ``(steps, rows)``; and which of them count.
"""

import itertools
from typing import Any

import numpy as np

from experiments.shared import data

Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]
MODULUS, LETTERS, PAIRS, WORDS, SUITS = 5, 8, 12, 64, 4


def _prefixes(symbols: np.ndarray, answers: np.ndarray, shortest: int) -> Drawn:
    """An answer for each beginning of a word that is long enough."""
    places = np.arange(1, len(symbols) + 1) >= shortest
    return symbols, answers, np.broadcast_to(places[:, None], symbols.shape)


def parity(rng: Any, shortest: int, longest: int, rows: int) -> Drawn:
    """Whether a word of zeros and ones has an odd number of ones."""
    bits = rng.integers(0, 2, (longest, rows))
    return _prefixes(bits, bits.cumsum(axis=0) % 2, shortest)


def even_pairs(rng: Any, shortest: int, longest: int, rows: int) -> Drawn:
    """Whether a word of two letters has an odd number of changes: its first is not its last."""
    bits = rng.integers(0, 2, (longest, rows))
    return _prefixes(bits, (bits != bits[:1]).astype(int), shortest)


def cycle(rng: Any, shortest: int, longest: int, rows: int) -> Drawn:
    """Where on a circle of five places one stands after steps of 0, 1 and -1."""
    steps = rng.integers(0, 3, (longest, rows))
    return _prefixes(steps, np.array([0, 1, -1])[steps].cumsum(axis=0) % MODULUS, shortest)


# Of three letters all orders, and of five too; A5 are the even ones: their determinant is 1.
S3 = np.array(list(itertools.permutations(range(3))))
S5 = np.array(list(itertools.permutations(range(5))))
A5 = np.array(
    [p for p in itertools.permutations(range(5)) if round(np.linalg.det(np.eye(5)[[*p]])) == 1]
)
GENERATORS = np.array([(1, 0, 3, 2, 4), (2, 1, 4, 3, 0)])  # of A5: all are products of these two
SWAP_AND_CYCLE = np.array([(1, 0, 2, 3, 4), (1, 2, 3, 4, 0)])  # of S5


def products(
    group: np.ndarray, rng: Any, shortest: int, longest: int, rows: int, generators: Any = None
) -> Drawn:
    """Which permutation is left after those of a word, of the group's or of its generators."""
    number = {tuple(one): i for i, one in enumerate(group.tolist())}
    letters = group if generators is None else generators
    after = np.array([[number[tuple(one[letter])] for letter in letters] for one in group])
    symbols = rng.integers(0, len(letters), (longest, rows))
    states = [np.full(rows, number[tuple(range(group.shape[1]))])]
    for one in symbols:
        states.append(after[states[-1], one])
    return _prefixes(symbols, np.stack(states[1:]), shortest)


def arithmetic(rng: Any, shortest: int, longest: int, rows: int) -> Drawn:
    """Sums, differences and products of numbers modulo five, without brackets."""
    even = np.arange(longest)[:, None] % 2 == 0  # numbers, and between them +, - and *
    numbers, signs = rng.integers(0, MODULUS, (longest, rows)), rng.integers(0, 3, (longest, rows))
    symbols = np.where(even, numbers, MODULUS + signs)
    values, total, term = np.zeros((longest, rows), int), np.zeros(rows, int), numbers[0]
    for t in range(0, longest, 2):
        if t:
            sign = signs[t - 1]
            total = np.where(sign == 2, total, total + term)
            term = np.select([sign == 0, sign == 1], [numbers[t], -numbers[t]], term * numbers[t])
        values[t] = (total + term) % MODULUS
        term %= MODULUS
    symbols, values, places = _prefixes(symbols, values, shortest)
    return symbols, values, places & even


def selective_copying(rng: Any, shortest: int, longest: int, rows: int) -> Drawn:
    """Eight letters, somewhere among blanks, are to be said in their order at the end."""
    letters, blank = rng.integers(0, LETTERS, (LETTERS, rows)), LETTERS
    free = longest - LETTERS
    at = np.sort(np.argsort(rng.random((free, rows)), axis=0)[:LETTERS], axis=0)
    symbols = np.full((longest, rows), blank)
    np.put_along_axis(symbols, at, letters, axis=0)
    symbols[free:] = blank + 1  # now
    return symbols, *_said_last(letters)


def copying(rng: Any, shortest: int, longest: int, rows: int) -> Drawn:
    """Ten letters, then blanks, and from a sign on they are to be said."""
    letters = rng.integers(0, LETTERS, (10, rows))
    symbols = np.full((longest, rows), LETTERS)
    symbols[:10], symbols[-11] = letters, LETTERS + 1
    return symbols, *_said_last(letters)


def _said_last(answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return answers, np.ones(answers.shape, bool)


def recall(rng: Any, shortest: int, longest: int, rows: int) -> Drawn:
    """Keys, each with its value after it; then each key asks for its value, in another order."""
    keys = np.argsort(rng.random((2 * PAIRS, rows)), axis=0)[:PAIRS]
    values = rng.integers(0, 2 * PAIRS, (PAIRS, rows))
    order = np.argsort(rng.random((PAIRS, rows)), axis=0)
    pairs = np.stack([keys, 2 * PAIRS + values], axis=1).reshape(-1, rows)
    asked, answers = (np.take_along_axis(of, order, axis=0) for of in (keys, values))
    return np.concatenate([pairs, asked]), *_said_last(answers)


def adding(rng: Any, shortest: int, longest: int, rows: int) -> Drawn:
    """The sum of two marked numbers from 0 to 1."""
    xs, sums = data.sums(rng, longest, rows)
    return xs, *_said_last(sums[None])


def pixels(
    images: np.ndarray, digits: np.ndarray, rng: Any, shortest: int, longest: int, rows: int
) -> Drawn:
    """Which digit an image shows whose pixels come one by one; in a try every so many of them."""
    chosen = rng.permutation(len(images))[:rows]
    at = np.linspace(0, images[0].size - 1, longest).round().astype(int)
    xs = images[chosen].reshape(len(chosen), -1)[:, at].T[..., None] / np.float32(255)
    return xs, *_said_last(digits[None, chosen].astype(int))


def mqar(rng: Any, shortest: int, longest: int, rows: int, pairs: int = 8) -> Drawn:
    """Keys, each with its value; then among blanks each key once, to be answered at once.

    Multi-query associative recall (Arora et al., 2024). Keys and values are each one of 64.
    """
    pairs = min(pairs, longest // 4)
    keys = np.argsort(rng.random((WORDS, rows)), axis=0)[:pairs]
    values, rest = rng.integers(0, WORDS, (pairs, rows)), longest - 2 * pairs
    shown = np.stack([keys, WORDS + values], axis=1).reshape(-1, rows)
    at = np.argsort(rng.random((rest, rows)), axis=0)[:pairs]  # in any order
    asked, answers = np.full((rest, rows), 2 * WORDS), np.zeros((rest, rows), int)
    np.put_along_axis(asked, at, keys, axis=0)
    np.put_along_axis(answers, at, values, axis=0)
    return np.concatenate([shown, asked]), answers, asked < 2 * WORDS


def _shuffled_suits(rng: Any, cards: int, rows: int) -> np.ndarray:
    """The suits ``(cards, rows)`` of decks, each with as many cards of each suit."""
    return np.argsort(rng.random((cards, rows)), axis=0) % SUITS


def repeat_previous(rng: Any, shortest: int, longest: int, rows: int, k: int = 32) -> Drawn:
    """Which suit the card before the last ``k - 1`` had (POPGym: Morad et al., 2023).

    All cards but one are shown, and from the k-th on each step asks.
    """
    k, suits = min(k, longest), _shuffled_suits(rng, longest + 1, rows)[:-1]
    return suits, *_said_last(suits[: longest + 1 - k])


def autoencode(rng: Any, shortest: int, longest: int, rows: int) -> Drawn:
    """All cards are shown, and then their suits asked, the last card first (POPGym).

    The last card has a sign that it is the last. Of the steps after it all look alike.
    """
    cards = (longest + 1) // 2
    suits = _shuffled_suits(rng, cards, rows)
    last, after = suits[-1:] + SUITS, np.full((cards - 1, rows), 2 * SUITS)
    return np.concatenate([suits[:-1], last, after]), *_said_last(suits[::-1])
