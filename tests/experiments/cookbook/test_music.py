import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from experiments.cookbook import music
from experiments.cookbook.music import Config


@pytest.mark.slow
def test_networks_learn_made_chords(ran):
    _, rows = ran(music, "written", seeds=1, units=16, epochs=60)
    assert list(rows)[2:] == ["SimpleRNN", "LSTM", "GRU", "TCN"]
    # The next of the made chords follows from the last: only what reads it can know.
    assert rows["the same after it was, or not"] < rows["how often a key is pressed"]
    for name in music.CELLS:
        assert max(rows[name]) < rows["the same after it was, or not"]


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


@pytest.mark.parametrize("name", music.CELLS)
def test_a_piece_in_a_row_is_a_piece_alone(pieces, name):
    config = Config(units=8)
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
    config = Config(units=4)
    params = {**init(config, None, jax.random.key(1)), "bias": jnp.zeros(88)}
    batch = {"xs": jnp.ones((20, 1, 88)), "resets": jnp.zeros((20, 1), bool).at[0].set(True)}

    def last(xs):
        return music.apply(config, None, params, {**batch, "xs": xs})[17].sum()

    reached = np.abs(jax.jit(jax.grad(last))(batch["xs"])).sum(axis=(1, 2)) > 0
    assert reached.tolist() == [3 <= time <= 17 for time in range(20)]


def test_what_is_written_goes_on_from_what_was_given(pieces):
    config, cell = Config(units=8), rnnjax.GRUCell(8)
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
