"""Films and scenes made of digits, and the convolution with which networks look at them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared import data

DIGIT = 10  # pixels of a digit that is half as large
FRAMES, FRAME = 10, 20  # of a film, and pixels of one
SCENE, LENGTH = 24, 8  # pixels of a scene; words of its sentence, with the end
WORDS = (".", *"0123456789", "a", "another", "above", "left", "of")
# Which first pixels of a digit are whose, by (row + 2 * column) % 5: in every line there are all.
PLACES = {"train": (2, 3, 4), "validation": (1,), "test": (0,)}
Source = tuple[np.ndarray, np.ndarray]  # digits (n, DIGIT, DIGIT) from 0 to 1, and what they are


def small_digits(folder: str | None) -> dict[str, Source]:
    """The digits of MNIST at half their size, for train, validation and test."""
    return {part: (shrink(xs), ys) for part, (xs, ys) in data.digit_parts(folder).items()}


def shrink(xs: np.ndarray) -> np.ndarray:
    """Digits at half their size, ``(n, DIGIT, DIGIT)``, in the middle."""

    def begin(axis: int) -> np.ndarray:
        lit: np.ndarray = np.any(xs > 0, axis=axis)
        return (lit.argmax(axis=1) + 28 - lit[:, ::-1].argmax(axis=1)) // 2 - DIGIT

    # Not simply the middle of the image: that is the centre of mass, and cuts many a digit.
    rows, columns = (4 + begin(axis)[:, None] + np.arange(2 * DIGIT) for axis in (2, 1))
    wide = np.pad(xs, ((0, 0), (4, 4), (4, 4)))
    cut = wide[np.arange(len(xs))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cut.reshape(-1, DIGIT, 2, DIGIT, 2).mean(axis=(2, 4)) / 255


def draw_films(source: Source, count: int, key: Any) -> dict[str, np.ndarray]:
    """Films ``(FRAMES, count, 10, 10, 4)`` in patches, and targets ``(FRAMES, count, 10)``."""
    (digits, labels), rng = source, np.random.default_rng(key)
    which = rng.integers(0, len(digits), (4 * count + 20, 2))
    which = which[labels[which[:, 0]] != labels[which[:, 1]]][:count]
    films = np.zeros((FRAMES, count, FRAME, FRAME), np.float32)
    # 0 for a digit that is not there, from 1 to 4 for the way by which it came into the frame.
    targets = np.zeros((FRAMES, count, 10), np.int32)
    at = rng.integers(0, FRAME - DIGIT + 1, (count, 2, 2))
    way = rng.choice([-1, 1], (count, 2, 2))
    each, line = np.arange(count), np.arange(DIGIT)
    for film, target in zip(films, targets, strict=True):
        for i in range(2):
            rows, columns = (at[:, i, axis, None] + line for axis in (0, 1))
            place = each[:, None, None], rows[:, :, None], columns[:, None, :]
            film[place] = np.maximum(film[place], digits[which[:, i]])
            target[each, labels[which[:, i]]] = 1 + (way[:, i] > 0) @ [2, 1]
        way = np.where((at + way < 0) | (at + way > FRAME - DIGIT), -way, way)
        at = at + way
    # Pixels of a patch are channels, as in Shi et al.: a convolution has a quarter of the places.
    cut = films.reshape(FRAMES, count, 10, 2, 10, 2).swapaxes(3, 4)
    return {"films": cut.reshape(FRAMES, count, 10, 10, 4), "targets": targets}


def draw_scenes(source: Source, part: str, count: int, key: Any) -> dict[str, np.ndarray]:
    """Scenes ``(1, count, SCENE, SCENE)``, and their sentences ``(LENGTH, count)``."""
    (digits, labels), rng = source, np.random.default_rng(key)
    which, two = rng.integers(0, len(digits), (count, 2)), rng.random(count) < 0.5
    is_column, place = rng.random(count) < 0.5, rng.choice(PLACES[part], (count, 2))
    # Along the line the second digit stands after the first, and one alone stands anywhere.
    along = np.sort(rng.integers(0, SCENE - 2 * DIGIT + 1, (count, 2))) + np.array([0, DIGIT])
    along[~two, 0] = rng.integers(0, SCENE - DIGIT + 1, (~two).sum())
    # Across it they are apart by up to four pixels, so that each stands where this part's may.
    across = rng.integers(0, SCENE - DIGIT - 3, (count, 1))
    across = across + np.where(is_column[:, None], 3 * (place - along - 2 * across),
                               place - 2 * along - across) % 5  # fmt: skip
    scenes, words = np.zeros((count, SCENE, SCENE), np.float32), np.zeros((LENGTH, count), np.int32)
    for n in range(count):
        sentence: list[str] = []
        for i in range(1 + two[n]):
            row, column = (along, across)[:: 1 if is_column[n] else -1]
            scenes[n, row[n, i] :, column[n, i] :][:DIGIT, :DIGIT] = digits[which[n, i]]
            sentence += (["above"] if is_column[n] else ["left", "of"]) if i else []
            digit = str(labels[which[n, i]])
            sentence += ["another" if digit in sentence else "a", digit]
        words[: len(sentence), n] = [WORDS.index(word) for word in sentence]
    return {"scenes": scenes[None], "words": words}


def convolve(xs: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """A convolution of ``(..., height, width, channels)``, with zeros around.

    It is one product of shifted copies: on a CPU the gradient of XLA's own convolution takes longer
    inside of the loop of `rnnjax.training.fit`, and one that is mapped over seeds crawls.
    """
    height, width = xs.shape[-3:-1]
    edges = [(size // 2, size // 2) for size in kernel.shape[:2]]
    xs = jnp.pad(xs, [(0, 0)] * (xs.ndim - 3) + [*edges, (0, 0)])
    rows, columns = map(range, kernel.shape[:2])
    copies = [
        xs[..., i : i + height : stride, j : j + width : stride, :] for i in rows for j in columns
    ]
    return jnp.concatenate(copies, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
