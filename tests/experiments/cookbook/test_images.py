"""Images, films and scenes as they are made, and the programs that read them."""

import jax
import numpy as np
import pytest

import rnnjax
from experiments.cookbook import autoencoder, captions, rows_of_digits, video
from experiments.cookbook.common import images
from experiments.cookbook.common.images import DIGIT, FRAME, FRAMES, LENGTH, PLACES, SCENE, WORDS
from experiments.cookbook.video import SEEN
from experiments.shared import data


@pytest.fixture(scope="module")
def source():
    return images.small_digits("made")["train"]


@pytest.mark.smoke
def test_digits_move_by_a_pixel_and_bounce(source):
    drawn = images.draw_films(source, 50, 0)
    cut = drawn["films"].reshape(FRAMES, 50, 10, 10, 2, 2).swapaxes(3, 4)
    films, targets = cut.reshape(FRAMES, 50, FRAME, FRAME), drawn["targets"]
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


@pytest.mark.smoke
@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_sentences_say_what_is_in_scenes_and_parts_share_no_place(part):
    # Of a digit only its first pixel is lit, as bright as its label says: a scene can be read.
    labels = np.arange(10)
    digits = np.zeros((10, DIGIT, DIGIT))
    digits[:, 0, 0] = (labels + 1) / 10
    drawn = images.draw_scenes((digits, labels), part, 400, 0)
    found = set()
    for scene, words in zip(drawn["scenes"][0], drawn["words"].T, strict=True):
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
        assert " ".join(WORDS[i] for i in words if i) == expected
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


def test_what_is_written_is_what_the_network_expects_behind_it():
    apply, rng = jax.jit(captions.apply), np.random.default_rng(3)
    params = jax.jit(captions.init)(jax.random.key(0))
    # With which sentences end at several places.
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape).astype("f"), params
    )
    scenes = np.random.default_rng(0).random((1, 20, SCENE, SCENE), np.float32)
    part = {"scenes": scenes, "words": np.zeros((LENGTH, 20), np.int32)}
    alone, words = map(np.asarray, captions.write(params, part))
    assert alone.shape == words.shape == (LENGTH, 20)
    ended = np.cumsum(words == 0, axis=0) > 0
    assert (words[ended] == 0).all()
    assert 0 < ended.mean() < 1
    each, behind = apply(params, {**part, "words": words})
    first = np.cumsum(ended, axis=0) == 1
    counts = ~ended | first
    np.testing.assert_array_equal(np.asarray(behind).argmax(axis=-1)[counts], words[counts])
    # The first word knows the scene alone, the others those before it too.
    other = {**part, "words": np.concatenate([(words[:1] + 1) % len(WORDS), words[1:]])}
    each_changed, changed = apply(params, other)
    differs = (np.asarray(changed) != np.asarray(behind)).any(axis=(1, 2))
    assert differs.tolist() == [False] + [True] * (LENGTH - 1)
    np.testing.assert_array_equal(each, each_changed)


@pytest.mark.slow
def test_networks_go_on_with_made_films(ran, monkeypatch):
    few = {"CNN": (False, None, 1, 50), "ConvLSTM": (True, rnnjax.ConvLSTMCell(8), 3, 5)}
    monkeypatch.setattr(video, "NETWORKS", few)
    _, scores = ran(video, "films", films=100)
    assert scores["CNN: digits and ways"] <= scores["CNN: both digits"]
    assert scores["ConvLSTM"][0] < 0.8 * scores["the last frame again"][0]


@pytest.mark.parametrize("cell", [rnnjax.LSTMCell(6), rnnjax.ConvLSTMCell(3)])
def test_what_is_drawn_follows_from_seen_frames_alone(cell, source):
    params = jax.jit(video.init, static_argnums=(0, 1))(True, cell, jax.random.key(0))
    films = images.draw_films(source, 3, 1)["films"]
    apply = jax.jit(lambda films: jax.nn.sigmoid(video.go_on(cell, params, films)))
    drawn = np.asarray(apply(films))
    unseen, last = films.copy(), films.copy()
    unseen[SEEN:] = 0.5
    np.testing.assert_array_equal(apply(unseen), drawn)
    last[SEEN - 1] = 0.5
    differs = (np.asarray(apply(last)) != drawn).any(axis=(1, 2, 3, 4))
    assert differs.tolist() == [False] * (SEEN - 1) + [True] * (FRAMES - SEEN)
    # Given for a frame what it would draw, it draws the same.
    once = films.copy()
    once[SEEN:] = drawn[SEEN - 1 :]
    shape = films.shape[1:] if cell.hidden_size == 3 else (3, -1)

    @jax.jit
    def given(params, films):
        _, ys = rnnjax.unroll(cell, params["cell"], films.reshape(FRAMES - 1, *shape))
        return jax.nn.sigmoid(ys @ params["head"] + params["bias"]).reshape(drawn.shape)

    np.testing.assert_allclose(given(params, once[:-1]), drawn, atol=1e-5)


@pytest.mark.slow
def test_it_learns_what_images_differ_in(ran, monkeypatch):
    # The made digits take it too long; of these it has to learn how far the left or right is lit.
    rng, columns = np.random.default_rng(0), np.arange(28)
    edges = rng.integers(4, 24, 360)
    lit = (columns < edges[:, None]) ^ (rng.integers(0, 2, (360, 1)) == 1)
    images = np.repeat(255 * lit[:, None].astype(np.uint8), 28, axis=1)
    made = data.Digits(images[:300], edges[:300], images[300:], edges[300:])
    monkeypatch.setattr(data, "digits", lambda folder: made)
    _, scores = ran(autoencoder, "digits", seeds=1, hidden_size=32, epochs=30)
    mean, linear, (written,) = scores.values()
    assert linear < 1e-4 < mean
    assert written < 0.3 * mean


@pytest.mark.smoke
def test_all_that_the_decoder_gets_is_the_code(random_like):
    config = autoencoder.Config(hidden_size=8)
    params = random_like(lambda: autoencoder.init(config, jax.random.key(0)), 0)
    encode, decode, error = (
        jax.jit(function, static_argnums=0)
        for function in (autoencoder.encode, autoencoder.decode, autoencoder.error)
    )
    images = np.random.default_rng(0).uniform(size=(28, 3, 28)).astype(np.float32)
    codes = encode(config, params, images)
    assert codes.shape == (3, 32)
    written = np.asarray(decode(config, params, codes))
    np.testing.assert_allclose(
        error(config, params, images), ((written - images) ** 2).mean(), rtol=1e-5
    )
    # Each row of a batch is coded and written for itself.
    alone = decode(config, params, encode(config, params, images[:, 1:2]))
    np.testing.assert_allclose(written[:, 1:2], alone, rtol=1e-5)


def test_what_lies_between_two_codes(ran, pictures, monkeypatch):
    monkeypatch.setattr(autoencoder, "learn", lambda *_: None)
    monkeypatch.setattr(autoencoder, "error", lambda *_: 0.5)
    monkeypatch.setattr(autoencoder, "encode", lambda config, params, images: images.sum(axis=0))
    monkeypatch.setattr(autoencoder, "decode", lambda *given: given[2][None].repeat(28, axis=0))
    mean, linear, _ = ran(autoencoder)[1].values()
    images, by_axes, codes, *between = pictures["digits"].values()
    assert 0 < np.square(by_axes - images).mean() < 2 * linear < mean
    for first, last, each in zip(codes[::2], codes[1::2], between, strict=False):
        np.testing.assert_allclose(each[[0, 3, 9]], [first, (2 * first + last) / 3, last], 1e-5)


@pytest.mark.slow
def test_made_digits_are_read_by_rows_and_by_a_cnn(ran, monkeypatch):
    few = {"GRU by rows": (0, rnnjax.GRUCell(32)), "CNN": (1, None),
           "GRU by pixels": (2, rnnjax.GRUCell(8))}  # fmt: skip
    monkeypatch.setattr(rows_of_digits, "NETWORKS", few)
    monkeypatch.setattr(rows_of_digits, "KERNELS", ((3, 3, 1, 4), (3, 3, 4, 8), (3, 3, 8, 48)))
    result, scores = ran(
        rows_of_digits, "wrong", seeds=2, epochs=(25, 12, 1), batch_size=25, learning_rate=0.02
    )
    # By chance 10 %: a digit is one of ten.
    assert min(scores["GRU by rows"]) > 60
    assert min(scores["CNN"]) > 80
    gru, cnn = (scores[name][0] / 100 * 60 for name in ("GRU by rows", "CNN"))
    both, no_gru, no_cnn, neither = result["images"].values()
    assert (both + no_cnn, both + no_gru) == pytest.approx((gru, cnn))
    assert both + no_gru + no_cnn + neither == 60


@pytest.mark.smoke
@pytest.mark.parametrize("by", ["rows", "pixels"])
def test_a_network_reads_an_image_from_the_top_line_by_line(monkeypatch, by):
    cell = rnnjax.GRUCell(5)
    monkeypatch.setattr(rows_of_digits, "NETWORKS", {by: (2 * (by == "pixels"), cell)})
    init = jax.jit(rows_of_digits.init, static_argnums=(0, 1))
    params = init(cell, 28 if by == "rows" else 1, jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    apply = jax.jit(rows_of_digits.apply, static_argnums=0)
    found = np.asarray(apply(by, params, images.swapaxes(0, 1)))
    head, bias = np.asarray(params["head"]), np.asarray(params["bias"])
    step = jax.jit(lambda carry, x: cell.step(params["body"], carry, x))
    for image, logits in zip(images / 255, found, strict=True):
        carry = cell.initial_carry()
        small = [
            [image[i : i + 2, j : j + 2].mean()] for i in range(0, 28, 2) for j in range(0, 28, 2)
        ]
        for x in image if by == "rows" else small:
            carry, y = step(carry, np.asarray(x, np.float32))
        np.testing.assert_allclose(logits, np.asarray(y) @ head + bias, atol=1e-5)
