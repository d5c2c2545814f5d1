import jax
import numpy as np
import pytest

from experiments.cookbook.common import data, images
from experiments.cookbook.common.images import DIGIT, FRAME, FRAMES, PLACES, SCENE, WORDS


@pytest.fixture(scope="module")
def source():
    return images.small_digits("made")["train"]


def unpatched(films):
    cut = films.reshape(*films.shape[:2], 10, 10, 2, 2).swapaxes(3, 4)
    return cut.reshape(*films.shape[:2], FRAME, FRAME)


def test_digits_move_by_a_pixel_and_bounce(source):
    drawn = images.draw_films(source, 50, 0)
    films, targets = unpatched(drawn["films"]), drawn["targets"]
    assert films.shape == (FRAMES, 50, FRAME, FRAME)
    assert ((targets > 0).sum(axis=-1) == 2).all()
    assert ((targets > 0) == (targets[0] > 0)).all()  # digits stay, their ways change
    assert (np.ptp(targets, axis=0) > 0).any()
    # Of a film with both digits moving alike everything moves, to where the targets say.
    found = 0
    for frame in range(1, FRAMES):
        for n in range(50):
            ways = set(targets[frame, n][targets[frame, n] > 0].tolist())
            if len(ways) == 1:
                found += 1
                down, right = divmod(ways.pop() - 1, 2)
                moved = np.roll(films[frame - 1, n], (2 * down - 1, 2 * right - 1), (0, 1))
                np.testing.assert_array_equal(films[frame, n], moved)
    assert found > 50


def sentences(words):
    return [" ".join(WORDS[i] for i in one if i) for one in words.T]


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_sentences_say_what_is_in_scenes_and_parts_share_no_place(part):
    # Of a digit only its first pixel is lit, as bright as its label says: a scene can be read.
    labels = np.arange(10)
    digits = np.zeros((10, DIGIT, DIGIT))
    digits[:, 0, 0] = (labels + 1) / 10
    drawn = images.draw_scenes((digits, labels), part, 400, 0)
    found = set()
    for scene, said in zip(drawn["scenes"][0], sentences(drawn["words"]), strict=True):
        lit = np.argwhere(scene).tolist()
        places = [(*place, round(10 * float(scene[*place])) - 1) for place in lit]
        assert all(max(place) <= SCENE - DIGIT for place in lit)
        assert 1 <= len(places) <= 2
        assert {(row + 2 * column) % 5 for row, column, _ in places} <= set(PLACES[part])
        if len(places) == 1:
            expected = f"a {places[0][2]}"
        else:
            (row, _, _), (other, _, _) = places
            is_column = other - row >= DIGIT
            first, second = (place[2] for place in sorted(places, key=lambda p: p[not is_column]))
            relation = "above" if is_column else "left of"
            expected = f"a {first} {relation} {'another' if first == second else 'a'} {second}"
        found.add(expected.translate(str.maketrans("0123456789", "#" * 10)))
        assert said == expected
    assert found == {"a #", "a # above a #", "a # left of a #", "a # above another #",
                     "a # left of another #"}  # fmt: skip


def test_parts_of_the_digits_share_no_image():
    parts = data.digit_parts("made")
    assert [len(xs) for xs, _ in parts.values()] == [275, 25, 60]
    every = data.digits("made")
    known = {x.tobytes() for x in every.train_x}
    found = [{x.tobytes() for x in parts[part][0]} for part in ("train", "validation")]
    assert found[0] | found[1] == known
    labels = {x.tobytes(): y for x, y in zip(every.train_x, every.train_y, strict=True)}
    assert all(labels[x.tobytes()] == y for x, y in zip(*parts["validation"], strict=True))


@pytest.mark.parametrize(("size", "window", "stride"), [(28, 5, 2), (7, 3, 1)])
def test_a_convolution_is_that_of_xla(size, window, stride):
    rng = np.random.default_rng(0)
    xs, kernel = rng.normal(size=(2, 3, size, size, 2)), rng.normal(size=(window, window, 2, 3))

    @jax.jit
    def both(xs, kernel):
        expected = jax.lax.conv_general_dilated(
            xs.reshape(6, size, size, 2), kernel, (stride, stride), [(window // 2,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return expected, images.convolve(xs, kernel, stride)

    expected, found = map(np.asarray, both(xs, kernel))
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-4)
