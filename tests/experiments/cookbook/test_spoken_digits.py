import jax
import numpy as np
import pytest

from experiments.cookbook import spoken_digits
from experiments.cookbook.common import data
from experiments.cookbook.spoken_digits import BANDS, BLOCK, BOTH, HOP, RATE, STREAM, Config

WAVES, SPECTRA = spoken_digits.WAVES, spoken_digits.SPECTRA
NAMES = WAVES, SPECTRA, BOTH, STREAM


@pytest.mark.slow
def test_made_digits_are_heard(ran):
    _, scores = ran(spoken_digits, "seven", "spectrum", seeds=1, epochs=8)
    shipped = "the last of these, in bfloat16, exported, a step a call"
    assert list(scores)[:6] == [*NAMES, shipped, "mean spectrum"]
    assert scores[WAVES][0] >= 70  # by chance 10
    assert min(scores[name][0] for name in NAMES[1:]) >= 90
    assert scores[shipped] >= 90
    assert scores["mean spectrum"] == 100  # each digit is a tone of its own


def test_a_tone_is_in_the_band_of_its_pitch():
    time = np.arange(spoken_digits.SAMPLES) / RATE
    edges = 700 * (np.exp(np.linspace(0, np.log1p(RATE / 2 / 700), BANDS + 2)) - 1)
    for band in (12, 20, 33):
        tone = np.sin(2 * np.pi * edges[band + 1] * time)
        spectrum = spoken_digits.log_mel(tone)
        assert spectrum.shape == (spoken_digits.SAMPLES // HOP, BANDS)
        assert (spectrum[:-1].argmax(axis=1) == band).all()
        louder = spoken_digits.log_mel(10 * tone)[:-1, band]
        np.testing.assert_allclose(louder - spectrum[:-1, band], np.log(100), atol=0.01)
    late = np.where(time < 0.5, 0, tone)  # from half a second on, by steps
    begins = spoken_digits.log_mel(late).max(axis=1) > 0
    assert begins.argmax() == int(0.5 * RATE) // HOP - 1  # whose window reaches behind it
    assert begins[begins.argmax() :].all()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_behind_a_recording_changes_nothing(name):
    params = jax.jit(spoken_digits.init, static_argnums=0)(name, jax.random.key(0))
    apply = jax.jit(spoken_digits.apply)
    rng, lengths = np.random.default_rng(0), np.array([[3, 4, 6]])
    a_step = HOP // BLOCK if name == WAVES else 1
    xs = rng.normal(size=(8 * a_step, 3, BLOCK if name == WAVES else BANDS)).astype(np.float32)
    for row, length in enumerate(lengths[0]):
        # A CNN reads some samples behind the end, where there are zeros.
        xs[length * a_step :, row] = 0 if name in (WAVES, SPECTRA) else 100
    logits = np.asarray(apply(params, {"xs": xs, "lengths": lengths}))
    alone = {"xs": xs[: 6 * a_step, [1]], "lengths": lengths[:, [1]]}
    np.testing.assert_allclose(logits[[1]], apply(params, alone), rtol=1e-4, atol=1e-5)
    backwards = {"xs": xs[::-1], "lengths": np.full((1, 3), 8)}
    differs = np.abs(logits - apply(params, backwards))
    assert differs.max() > 1e-3  # the order of the steps counts


def test_what_is_shipped_says_step_by_step_what_the_network_says_of_the_whole():
    params = jax.jit(spoken_digits.init, static_argnums=0)(STREAM, jax.random.key(0))
    rng, lengths = np.random.default_rng(0), np.array([[3, 8, 6]])
    batch = {"xs": rng.normal(size=(8, 3, BANDS)).astype(np.float32), "lengths": lengths}
    model = spoken_digits.shipped(params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.params)} == {"bfloat16"}
    said = spoken_digits.streamed(model, batch)
    rounded = jax.tree.map(lambda a: a.astype("bfloat16").astype("float32"), params)
    whole = jax.jit(spoken_digits.apply)(rounded, batch)
    np.testing.assert_allclose(said, whole, rtol=0, atol=1e-5)
    assert np.abs(said - jax.jit(spoken_digits.apply)(params, batch)).max() > 1e-5


def test_takes_make_the_parts_and_the_test_part_scales_nothing(monkeypatch):
    waves, digits, takes = data.recordings("made")
    before = spoken_digits.read(Config(data="made"))
    assert [x["digits"].size for x in before[BOTH]] == [10, 10, 80]
    noise = np.random.default_rng(0).normal(size=9000).astype(np.float32)
    changed = [noise if take == 0 else wave for wave, take in zip(waves, takes, strict=True)]
    monkeypatch.setattr(
        spoken_digits.data, "recordings", lambda _: data.Recordings(changed, digits, takes)
    )
    after = spoken_digits.read(Config(data="made"))
    for name in NAMES:
        alike = [(x["xs"] == y["xs"]).all() for x, y in zip(before[name], after[name], strict=True)]
        assert alike == [False, True, True]
    assert (
        after[WAVES][0]["lengths"] == spoken_digits.SAMPLES // HOP
    ).all()  # what is longer is cut
    train = after[BOTH][2]
    heard = train["xs"][: train["lengths"].max()].reshape(-1, BANDS)
    np.testing.assert_allclose(heard.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(heard.std(axis=0), 1, atol=1e-3)
