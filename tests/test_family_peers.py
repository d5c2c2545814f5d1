"""The linear family against the packages that publish it, with the same weights, run live.

Each test is skipped where its package is not installed: minGRU-pytorch 0.2.1, xlstm 2.0.6, memax
0.1.1, mambapy 1.2.0 and recurrentgemma 1.0.1 are those that it was written for.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_gallery import names as names_of

import rnnjax
from rnnjax import Fused, Parallel, Scan

TIME, BATCH, FEATURES = 7, 3, 4
TOLERANCE = 1e-5  # of the largest entry of each array
Arrays = Mapping[str, Any]


def drawn(seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: 0.6 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def weights_of(out: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(9)
    return [rng.standard_normal(np.shape(leaf), np.float32) for leaf in jax.tree.leaves(out)]


def in_jax(run: Callable[[Arrays], Any], arrays: Arrays) -> tuple[Any, Any]:
    """What a function of named arrays returns, and the gradients of a weighted sum of that."""

    def loss(arrays: Arrays) -> Any:
        out = run(arrays)
        return sum(map(jnp.vdot, weights_of(out), jax.tree.leaves(out))), out

    gradients, out = jax.jit(jax.grad(loss, has_aux=True))(dict(arrays))
    return out, gradients


def in_torch(run: Callable[[Arrays], Any], arrays: Arrays) -> tuple[Any, Any]:
    torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
    tensors = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    out = tuple(run(tensors))
    values = tuple(leaf.detach().numpy() for leaf in out)
    pairs = zip(weights_of(values), out, strict=True)
    sum((torch.tensor(w) * leaf).sum() for w, leaf in pairs).backward()
    return values, {name: tensor.grad.numpy() for name, tensor in tensors.items()}


def compare(
    cell: rnnjax.Cell,
    translate: Callable[[Arrays], tuple[Any, Any, Any]],
    theirs: tuple[Any, Any],
    arrays: Arrays,
    assert_close: Any,
    **marks: Any,
) -> None:
    """Values and gradients, by their names of the weights, are those of every method that runs.

    Args:
        cell: ours.
        translate: from their arrays to our parameters, inputs over time, and first carry.
        theirs: the outputs over time, the leaves of the last carry if they are told, and the
            gradients by name.
        arrays: by their names.
        assert_close: the fixture.
        marks: of `rnnjax.unroll`.
    """
    for method in (Scan(), Fused(), Parallel()):
        if method.refusal(cell) is not None:
            continue

        def run(arrays: Arrays, method: Any = method) -> Any:
            carry, ys = rnnjax.unroll(cell, *translate(arrays), method=method, **marks)
            return (ys, *jax.tree.leaves(carry))[: len(theirs[0])]

        assert_close(in_jax(run, arrays), theirs, TOLERANCE)


def over_time(x: Any) -> Any:
    """Between (batch, time, ...) and (time, batch, ...)."""
    return x.swapaxes(0, 1)


def positive(x: jax.Array) -> jax.Array:
    """The candidate's activation in both cells of minGRU-pytorch (appendix B.3 of the paper)."""
    return jnp.where(x >= 0, x + 0.5, jax.nn.sigmoid(x))


def test_mingru(assert_close: Any) -> None:
    peer = pytest.importorskip("minGRU_pytorch.minGRU")
    from torch.func import functional_call

    module = peer.minGRU(FEATURES)
    weight = "to_hidden_and_gate.weight"
    arrays = drawn(0, x=(BATCH, TIME, FEATURES), h=(BATCH, 1, FEATURES))
    arrays |= drawn(1, **{weight: (2 * FEATURES, FEATURES)})
    arrays["h"] = np.abs(arrays["h"])  # of whose logarithm it makes its own

    def theirs(a: Arrays) -> Any:
        ys, last = functional_call(module, {weight: a[weight]}, (a["x"], a["h"], True))
        return over_time(ys), last[:, 0]

    def translate(a: Arrays) -> Any:
        n, z = jnp.split(a[weight].T, 2, axis=-1)
        params = {"kernel": jnp.concatenate([z, n], -1)}
        return params, over_time(a["x"]), rnnjax.SimpleRNNCarry(a["h"][:, 0])

    cell = rnnjax.MinGRUCell(FEATURES, use_bias=False, activation=positive)
    compare(cell, translate, in_torch(theirs, arrays), arrays, assert_close)


def test_minlstm(assert_close: Any) -> None:
    """Its parallel form takes a given state through the activation once more, its step does not."""
    peer = pytest.importorskip("minGRU_pytorch.minLSTM")
    from torch.func import functional_call

    module = peer.minLSTM(FEATURES)
    weight = "to_hidden_and_f_i_gate.weight"
    arrays = drawn(0, x=(BATCH, TIME, FEATURES), h=(BATCH, 1, FEATURES))
    arrays |= drawn(1, **{weight: (3 * FEATURES, FEATURES)})

    def theirs(a: Arrays) -> Any:
        ys, last = functional_call(module, {weight: a[weight]}, (a["x"], a["h"], True))
        return over_time(ys), last[:, 0]

    def translate(a: Arrays) -> Any:
        g, f, i = jnp.split(a[weight].T, 3, axis=-1)
        params = {"kernel": jnp.concatenate([i, f, g], -1)}
        return params, over_time(a["x"]), rnnjax.SimpleRNNCarry(positive(a["h"][:, 0]))

    cell = rnnjax.MinLSTMCell(FEATURES, use_bias=False, activation=positive)
    compare(cell, translate, in_torch(theirs, arrays), arrays, assert_close)


@pytest.mark.parametrize("begun", [False, True])
def test_slstm(begun: bool, assert_close: Any) -> None:
    """Of a state of zeros, which no other can be near to, it is not asked for a gradient."""
    peer = pytest.importorskip("xlstm.blocks.slstm.src.vanilla")
    torch = pytest.importorskip("torch")
    heads, size = 2, 3
    units = heads * size
    arrays = drawn(
        0, x=(TIME, BATCH, 4 * units), R=(heads, 4 * size, size), b=(4 * units,),
        states=(4, BATCH, units),
    )  # fmt: skip
    arrays["states"][2] = np.abs(arrays["states"][2]) + 0.1
    zeros = np.zeros((4, BATCH, units), np.float32)
    if not begun:
        del arrays["states"]

    def theirs(a: Arrays) -> Any:
        pointwise = peer.slstm_pointwise_function_registry["slstm"]
        states = a["states"] if begun else torch.tensor(zeros)
        every, last, _ = peer.slstm_forward(a["x"], states, a["R"], a["b"], pointwise)
        return (every[0, 1:], *last)

    def translate(a: Arrays) -> Any:
        recurrent = jnp.concatenate(list(a["R"].swapaxes(1, 2)), axis=-1)
        kernel = jnp.eye(4 * units)  # it is given what the inputs add up to
        params = {"kernel": kernel, "bias": a["b"], "recurrent_kernel": recurrent}
        return params, a["x"], rnnjax.cells.SLSTMCarry(*a.get("states", zeros))

    found = in_torch(theirs, arrays)
    compare(rnnjax.SLSTMCell(units, heads=heads), translate, found, arrays, assert_close)


def test_rglru(assert_close: Any) -> None:
    """At no step is a sequence begun, where its code, not its paper, leaves out the root."""
    peer = pytest.importorskip("recurrentgemma.torch.layers")
    torch = pytest.importorskip("torch")
    from torch.func import functional_call

    heads, size = 2, 3
    units = heads * size
    module = peer.RGLRU(units, heads)
    names = {name: tuple(p.shape) for name, p in module.named_parameters()}
    arrays = drawn(0, x=(BATCH, TIME, units), h=(BATCH, units), **names)
    positions = 1 + torch.arange(TIME).repeat(BATCH, 1)

    def theirs(a: Arrays) -> Any:
        own = {name: a[name] for name in names}
        ys, last = functional_call(module, own, (a["x"], positions, a["h"]))
        return over_time(ys), last

    def translate(a: Arrays) -> Any:
        gates = [a[f"{gate}.w"] for gate in ("a_gate", "input_gate")]
        kernels = [jax.scipy.linalg.block_diag(*blocks) for blocks in gates]
        biases = [a[f"{gate}.b"].reshape(-1) for gate in ("a_gate", "input_gate")]
        params = {
            "kernel": jnp.concatenate([*kernels, jnp.eye(units)], -1),
            "bias": jnp.concatenate([*biases, jnp.zeros(units)]),
            "decay": a["a_param"],
        }
        return params, over_time(a["x"]), rnnjax.SimpleRNNCarry(a["h"])

    found = in_torch(theirs, arrays)
    compare(rnnjax.RGLRUCell(units), translate, found, arrays, assert_close)


def test_griffin(assert_close: Any) -> None:
    """The whole recurrent block; at no step is a sequence begun."""
    peer = pytest.importorskip("recurrentgemma.jax.modules")
    heads, states = 2, 6
    module = peer.RecurrentBlock(width=FEATURES, num_heads=heads, lru_width=states)
    positions = 1 + jnp.arange(TIME) + jnp.zeros((BATCH, 1), int)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((BATCH, TIME, 4)), positions)
    names = {
        "/".join(key.key for key in path[1:]): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    arrays = drawn(0, x=(BATCH, TIME, FEATURES), **names)

    def theirs(a: Arrays) -> Any:
        params: dict[str, Any] = {}
        for name in names:
            *inner, last = name.split("/")
            node = params
            for part in inner:
                node = node.setdefault(part, {})
            node[last] = a[name]
        ys, cache = module.apply({"params": params}, a["x"], positions)
        window = jnp.moveaxis(cache.conv1d_state, 1, 0)[::-1]
        return (over_time(ys), *window, cache.rg_lru_state)

    def ours(a: Arrays, method: Any) -> Any:
        gates = [f"rg_lru/{gate}" for gate in ("a_gate", "input_gate")]
        whole = [jax.scipy.linalg.block_diag(*a[f"{gate}/w"]) for gate in gates]
        biases = [a[f"{gate}/b"].reshape(-1) for gate in gates]
        params = {
            "convolution": {
                "kernel": a["linear_x/kernel"],
                "bias": a["linear_x/bias"],
                "taps": a["conv_1d/w"],
                "taps_bias": a["conv_1d/b"],
            },
            "recurrence": {
                "kernel": jnp.concatenate([*whole, jnp.eye(states)], -1),
                "bias": jnp.concatenate([*biases, jnp.zeros(states)]),
                "decay": a["rg_lru/a_param"],
            },
            "gate_kernel": a["linear_y/kernel"],
            "gate_bias": a["linear_y/bias"],
            "out_kernel": a["linear_out/kernel"],
            "out_bias": a["linear_out/bias"],
        }
        griffin = names_of("linear")["griffin"]
        (window, state), ys = griffin(params, over_time(a["x"]), method=method)
        return (ys, *window, *state)

    expected = in_jax(theirs, arrays)
    for method in (Scan(), Fused(), Parallel()):
        found = in_jax(functools.partial(ours, method=method), arrays)
        assert_close(found, expected, TOLERANCE)


def test_s6_of_mambapy(assert_close: Any) -> None:
    peer = pytest.importorskip("mambapy.mamba")
    from torch.func import functional_call

    states, rank = 3, 2
    config = peer.MambaConfig(
        d_model=FEATURES, n_layers=1, expand_factor=1, d_state=states, dt_rank=rank
    )
    module = peer.MambaBlock(config)
    shapes = {
        "x_proj.weight": (rank + 2 * states, FEATURES),
        "dt_proj.weight": (FEATURES, rank),
        "dt_proj.bias": (FEATURES,),
        "A_log": (FEATURES, states),
        "D": (FEATURES,),
    }
    arrays = drawn(0, x=(BATCH, TIME, FEATURES), **shapes)

    class Scanned(type(module)):
        """Its selective scan alone, without the block around it."""

        def forward(self, x: Any) -> Any:
            return self.ssm(x, None)

    module.__class__ = Scanned

    def theirs(a: Arrays) -> Any:
        return (over_time(functional_call(module, {n: a[n] for n in shapes}, (a["x"],))),)

    def translate(a: Arrays) -> Any:
        low, b, c = jnp.split(a["x_proj.weight"].T, [rank, rank + states], axis=-1)
        parts = [low @ a["dt_proj.weight"].T, jnp.eye(FEATURES), b, c]
        params = {
            "kernel": jnp.concatenate(parts, -1),
            "step_bias": a["dt_proj.bias"],
            "log_decay": a["A_log"],
            "skip": a["D"],
        }
        return params, over_time(a["x"]), None

    cell = rnnjax.S6Cell(FEATURES, state_size=states)
    compare(cell, translate, in_torch(theirs, arrays), arrays, assert_close)


RESETS = np.random.default_rng(5).random((TIME, BATCH)) < 0.2


def in_memax(model: Any, names: Arrays, a: Arrays) -> Any:
    """Outputs of one of its models; each of ``names`` finds a leaf in it."""
    import equinox

    given = [a[name] for name in names]
    own = equinox.tree_at(lambda m: [find(m) for find in names.values()], model, given)

    def of_row(xs: Any, resets: Any) -> Any:
        return own(own.initialize_carry(), (xs, resets))[1]

    return (jax.vmap(of_row, 1, 1)(a["x"], RESETS),)


def test_lru_of_memax(assert_close: Any) -> None:
    pytest.importorskip("equinox")
    peer = pytest.importorskip("memax.equinox.semigroups.lru")
    names = {
        name: lambda model, name=name: getattr(model, name)
        for name in ("gamma_log", "B_re", "B_im", "C_re", "C_im", "D", "nu_log", "theta_log")
    }
    model = peer.LRU(FEATURES, FEATURES, jax.random.key(0))
    shapes = {name: find(model).shape for name, find in names.items()}
    arrays = drawn(0, x=(TIME, BATCH, FEATURES), **shapes)

    def translate(a: Arrays) -> Any:
        params = {
            "kernel": jnp.concatenate([a["B_re"], a["B_im"]]).T,
            "output_kernel": jnp.concatenate([a["C_re"], -a["C_im"]], -1).T,
            "skip_kernel": jnp.diag(a["D"]),
            "ring": jnp.stack([a["nu_log"], a["theta_log"], a["gamma_log"]]),
        }
        return params, a["x"], None

    found = in_jax(lambda a: in_memax(model, names, a), arrays)
    compare(rnnjax.LRUCell(FEATURES), translate, found, arrays, assert_close, resets=RESETS)


@pytest.mark.usefixtures("x64")
def test_s6_of_memax(assert_close: Any) -> None:
    """Where little decays within a step, and all channels see one B and one C.

    It holds the inputs over a step, (exp(delta A) - 1) / A, where Mamba's algorithm and code have
    delta; and each of its channels has one state, and a B and C of its own.
    """
    pytest.importorskip("equinox")
    peer = pytest.importorskip("memax.equinox.semigroups.s6")
    model = peer.S6(FEATURES, FEATURES, jax.random.key(0))
    names = {
        "B": lambda model: model.B.weight,
        "C": lambda model: model.C.weight,
        "dt": lambda model: model.dt[0].weight,
        "dt_bias": lambda model: model.dt[0].bias,
        "A_log": lambda model: model.A_log,
        "B_bias": lambda model: model.B.bias,
        "C_bias": lambda model: model.C.bias,
    }
    arrays = drawn(
        0, x=(TIME, BATCH, FEATURES), B=(1, FEATURES), C=(1, FEATURES), dt=(FEATURES, FEATURES),
        dt_bias=(FEATURES,),
    )  # fmt: skip
    arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    slow, nothing = np.full(FEATURES, np.log(1e-6)), np.zeros(FEATURES)
    fixed = {"A_log": slow, "B_bias": nothing, "C_bias": nothing}

    def theirs(a: Arrays) -> Any:
        tiled = {name: jnp.tile(a[name], (FEATURES, 1)) for name in ("B", "C")}
        return in_memax(model, names, {**a, **fixed, **tiled})

    def translate(a: Arrays) -> Any:
        parts = [a["dt"].T, jnp.eye(FEATURES), a["B"].T, a["C"].T]
        params = {
            "kernel": jnp.concatenate(parts, -1),
            "step_bias": a["dt_bias"],
            "log_decay": slow[:, None],
            "skip": nothing,
        }
        return params, a["x"], None

    cell = rnnjax.S6Cell(FEATURES, state_size=1)
    compare(cell, translate, in_jax(theirs, arrays), arrays, assert_close, resets=RESETS)


def test_mlstm(assert_close: Any) -> None:
    """Its parallel form, without the number that it adds to each divisor."""
    peer = pytest.importorskip("xlstm.blocks.mlstm.backends")
    heads, size = 2, 3
    units = heads * size
    vectors = dict.fromkeys(("q", "k", "v"), (BATCH, heads, TIME, size))
    arrays = drawn(0, **vectors, i=(BATCH, heads, TIME, 1), f=(BATCH, heads, TIME, 1))

    def theirs(a: Arrays) -> Any:
        ys = peer.parallel_stabilized_simple(a["q"], a["k"], a["v"], a["i"], a["f"], eps=0.0)
        return (ys.permute(2, 0, 1, 3).reshape(TIME, BATCH, units),)

    def translate(a: Arrays) -> Any:
        given = [jnp.moveaxis(a[name], 2, 0).reshape(TIME, BATCH, -1) for name in "qkvif"]
        given.insert(3, jnp.full((TIME, BATCH, units), 50.0))  # an output gate of 1
        xs = jnp.concatenate(given, -1)
        return {"kernel": jnp.eye(xs.shape[-1])}, xs, None

    cell = rnnjax.MLSTMCell(units, heads=heads, use_bias=False)
    compare(cell, translate, in_torch(theirs, arrays), arrays, assert_close)
