"""Chords and recordings as the programs of music and of spoken digits read them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from experiments.cookbook import music, spoken_digits
from experiments.cookbook.spoken_digits import BANDS, BLOCK, BOTH, HOP, RATE, STREAM, WINDOW
from experiments.shared import data

WAVES, SPECTRA = spoken_digits.WAVES, spoken_digits.SPECTRA
NAMES = WAVES, SPECTRA, BOTH, STREAM
init = jax.jit(music.init, static_argnums=(0, 1))


@pytest.fixture
def pieces():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 2, (time, 88)).astype(np.float32) for time in (6, 9, 4)]


def test_pieces_lie_in_rows_with_what_comes_next(pieces):
    batch = music.lay(pieces, 8)
    steps = sorted((x.tolist(), y.tolist()) for x, y in zip(
        batch["xs"][batch["mask"]], batch["ys"][batch["mask"]], strict=True))  # fmt: skip
    # The piece of nine chords is cut after eight: its last is not told, and not asked for.
    expected = sorted(
        (one[t].tolist(), one[t + 1].tolist())
        for one in pieces
        for t in range(min(len(one), 8) - 1)
    )
    assert steps == expected
    assert (batch["resets"] & batch["mask"]).sum() == 3
    told = np.array([y for x, y in expected if x[0]])  # what comes after chords with the first key
    chances = jax.nn.sigmoid(music.counted(batch, batch["xs"][..., :1] == 1))
    np.testing.assert_allclose(chances, (told.sum(axis=0) + 1) / (len(told) + 2), rtol=1e-5)


@pytest.mark.smoke
@pytest.mark.parametrize("name", music.CELLS)
def test_a_piece_in_a_row_is_a_piece_alone(pieces, name):
    config = music.Config(units=8)
    cell = music.CELLS[name] and music.CELLS[name](8)
    params = {**init(config, cell, jax.random.key(0)), "bias": jnp.zeros(88)}
    assert sum(map(len, pieces)) - 3 <= 20
    together = music.lay(pieces, 20)
    loss = jax.jit(lambda batch: music.nats(music.apply(config, cell, params, batch), batch))
    total = loss(together)
    alone = [music.lay([piece], 20) for piece in pieces]
    losses = [loss(one) for one in alone]
    steps = [len(piece) - 1 for piece in pieces]
    np.testing.assert_allclose(total, np.average(losses, weights=steps), rtol=1e-5)
    assert (together["mask"].any(axis=0)).sum() == 1  # all in one row


def test_the_tcn_looks_fourteen_steps_back_and_never_ahead():
    config = music.Config(units=4)
    params = {**init(config, None, jax.random.key(1)), "bias": jnp.zeros(88)}
    batch = {"xs": jnp.ones((20, 1, 88)), "resets": jnp.zeros((20, 1), bool).at[0].set(True)}

    def last(xs):
        return music.apply(config, None, params, {**batch, "xs": xs})[17].sum()

    reached = np.abs(jax.jit(jax.grad(last))(batch["xs"])).sum(axis=(1, 2)) > 0
    assert reached.tolist() == [3 <= time <= 17 for time in range(20)]


def test_what_is_written_goes_on_from_what_was_given(pieces):
    config, cell = music.Config(units=8), rnnjax.GRUCell(8)
    params = init(config, cell, jax.random.key(0))
    params["head"] *= 1e4  # so that nothing is left to chance
    params["bias"] = jnp.full(88, -5.0)
    written = np.asarray(music.write(cell, params, jnp.asarray(pieces[1]), 3, jax.random.key(1)))
    apply = jax.jit(lambda batch: music.apply(config, cell, params, batch))
    played = pieces[1]
    for chord in written:
        # Of one length, which is compiled once: what comes later is not read before.
        xs = np.pad(played, ((0, 12 - len(played)), (0, 0)))[:, None]
        batch = {"xs": xs, "resets": np.zeros((12, 1), bool)}
        logits = np.asarray(apply(batch)[len(played) - 1, 0])
        sure = np.abs(logits) > 20
        assert sure.sum() > 40
        np.testing.assert_array_equal(chord[sure], (logits > 0)[sure])
        played = np.concatenate([played, chord[None]])


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
        # The bands share the energy of a window out: Parseval's, of one half of the frequencies.
        windows = tone[: 4 * WINDOW].reshape(4, WINDOW) * np.hanning(WINDOW)
        energy = (windows**2).sum(axis=1) * WINDOW / 2
        np.testing.assert_allclose(np.exp(spectrum[:8:2]).sum(axis=1), energy, rtol=1e-3)
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


@pytest.mark.smoke
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
    before = spoken_digits.read(spoken_digits.Config(data="made"))
    assert [x["digits"].size for x in before[BOTH]] == [10, 10, 80]
    noise = np.random.default_rng(0).normal(size=9000).astype(np.float32)
    changed = [noise if take == 0 else wave for wave, take in zip(waves, takes, strict=True)]
    monkeypatch.setattr(
        spoken_digits.data, "recordings", lambda _: data.Recordings(changed, digits, takes)
    )
    after = spoken_digits.read(spoken_digits.Config(data="made"))
    for name in NAMES:
        alike = [(x["xs"] == y["xs"]).all() for x, y in zip(before[name], after[name], strict=True)]
        assert alike == [False, True, True]
    # What is longer is cut.
    assert (after[WAVES][0]["lengths"] == spoken_digits.SAMPLES // HOP).all()
    train = after[BOTH][2]
    heard = train["xs"][: train["lengths"].max()].reshape(-1, BANDS)
    np.testing.assert_allclose(heard.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(heard.std(axis=0), 1, atol=1e-3)


@pytest.mark.usefixtures("pictures")
def test_right_digits_are_counted_and_have_bounds(ran, monkeypatch):
    digits, said = np.arange(50) % 10, np.arange(50) % 49 % 10  # one is wrong
    xs = np.random.default_rng(0).random((6, 50, 20), np.float32)
    part = {"xs": xs, "lengths": np.full((1, 50), 6), "digits": digits[None]}
    for name, stub in {
        "init": lambda *_: None, "read": lambda _: dict.fromkeys(NAMES, [part] * 3),
        "fit": lambda *_, **more: SimpleNamespace(params=None), "shipped": lambda _: None,
        "apply": lambda _, batch: jnp.eye(10)[said[: batch["xs"].shape[1]]],
        "streamed": lambda *_: np.eye(10)[said],
    }.items():  # fmt: skip
        monkeypatch.setattr(spoken_digits, name, stub)
    monkeypatch.setattr(data, "MADE", "elsewhere")
    result, scores = ran(spoken_digits)
    np.testing.assert_allclose([scores[name] for name in NAMES], 98, rtol=1e-6)
    found = [(round(one["score"], 4), one["bound"]) for one in result["accepts"]]
    assert found == [(98, 96), (98, 96), (0, 0.4)]
