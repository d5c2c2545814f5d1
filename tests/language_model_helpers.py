"""What the tests of all families of language models share: a tiny peer, and comparisons with it."""

import contextlib
import dataclasses
import functools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.language_models import folders
from rnnjax.training import save_params

PROMPT, BATCH, VOCABULARY = 77, 2, 100
QWEN = {
    "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "linear_num_value_heads": 4,
    "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 12,
    "full_attention_interval": 2,
}  # fmt: skip
PROBLEMS = "missing_keys", "unexpected_keys", "mismatched_keys"  # that from_pretrained tells
_RNG = np.random.default_rng(0)
# Without a pad id, which the peers take for a mask.
TOKENS = _RNG.integers(3, VOCABULARY, (PROMPT, BATCH)).astype(np.int32)
WEIGHTS = np.random.default_rng(1).standard_normal((PROMPT, BATCH, VOCABULARY)).astype(np.float32)

# A family's two functions, each one program: ``run(family, config, params, tokens, carry, resets)``
# and ``begin(family, config, batch, capacity, dtype)``.
run = jax.jit(lambda family, *given: family.apply(*given), static_argnums=(0, 1))
begin = jax.jit(lambda family, *given: family.begin(*given), static_argnums=(0, 1, 2, 3, 4))


@dataclasses.dataclass
class Pair:
    """A peer with random weights, and what was read from the folder that it saved."""

    module: Any
    folder: Path
    model: folders.Model

    def apply(self, params: Any, tokens: Any, carry: Any, resets: Any = None) -> Any:
        """Run our model, compiled; return the carry and the logits."""
        return run(self.model.family, self.model.config, params, tokens, carry, resets)

    def begin(self, batch: int = BATCH, dtype: Any = None) -> Any:
        dtype = dtype or jnp.promote_types(self.model.dtype, jnp.float32)
        return begin(self.model.family, self.model.config, batch, 2 * PROMPT, dtype)

    @functools.cached_property
    def loss(self) -> Any:
        """The loss of the tokens, and its gradients, which several checks read."""
        return jax.jit(jax.value_and_grad(functools.partial(loss_of, self)))(self.model.params)

    @functools.cached_property
    def weighted(self) -> Any:
        """The gradients of a weighted sum of the logits, and the logits."""

        def total(params: Any) -> Any:
            _, logits = self.apply(params, TOKENS, self.begin())
            return (logits * WEIGHTS).sum(), logits

        return jax.jit(jax.grad(total, has_aux=True))(self.model.params)


def pair(module_class: Any, config: Any, folder: Path, dtype: str = "float32") -> Pair:
    """Make a peer of a config, with weights off their initial values, and read what it saves."""
    import torch

    torch.manual_seed(0)
    module = module_class(config).eval()
    with torch.no_grad():
        for weight in module.parameters():  # norms of 1 and biases of 0 would hide faults
            weight.add_(0.1 * torch.randn_like(weight))
    module = module.to(getattr(torch, dtype))
    save(module, folder)
    return Pair(module, folder, folders.read(folder))


def save(module: Any, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.save_pretrained(folder)


@contextlib.contextmanager
def doubled(pair: Pair) -> Iterator[Pair]:
    """The pair in float64, in which everything inside is computed."""
    with jax.enable_x64(True):
        wide = ((name, np.asarray(x, np.float64)) for name, x in pair.model.params.items())
        params = {name: jax.device_put(x) for name, x in wide}
        yield dataclasses.replace(pair, model=dataclasses.replace(pair.model, params=params))


def batch_first(tokens: Any) -> Any:
    import torch

    return torch.tensor(np.asarray(tokens, np.int64).T)


def close(got: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    """Assert that no number is further off than a share of the largest one."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape
    largest = np.abs(wanted).max()
    assert largest > 0
    assert np.abs(got - wanted).max() <= tolerance * largest, np.abs(got - wanted).max() / largest


def gradients_close(got: Any, wanted: Any, of_own: float = 1e-3) -> None:
    """Assert that no gradient is further off than 1e-5 of the largest of all.

    The few numbers of a bias may be sums of large ones that cancel. Of its own largest a tensor may
    be off by ``of_own``, unless it is zeros.
    """
    assert got.keys() == wanted.keys()
    largest = max(np.abs(value).max() for value in wanted.values())
    for name, value in wanted.items():
        error, own = np.abs(np.asarray(got[name]) - value).max(), np.abs(value).max()
        assert error <= 1e-5 * largest, (name, error / largest)
        assert error <= of_own * own or own < 1e-6 * largest, (name, error / own)


def logits_of(module: Any, tokens: Any) -> np.ndarray:
    """Return the peer's logits ``(time, batch, vocabulary)``."""
    import torch

    with torch.no_grad():
        found = module(batch_first(tokens), use_cache=False).logits
    return np.swapaxes(found.float().numpy(), 0, 1)


def loss_of(pair: Pair, params: Any, tokens: Any = TOKENS) -> jax.Array:
    """Return the mean loss of the next token, as the peer computes it from labels."""
    _, logits = pair.apply(params, tokens, pair.begin(tokens.shape[1]))
    logs = jax.nn.log_softmax(logits[:-1])
    return -jnp.take_along_axis(logs, jnp.asarray(tokens[1:, :, None]), axis=-1).mean()


def drawn(folder: Path, **fields: Any) -> folders.Model:
    """Write a folder with random tensors, without a peer, and a tokenizer; return what is read."""
    values = {
        "model_type": "mamba", "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1,
        "state_size": 4, "eos_token_id": 0, **fields,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    family, config, _ = folders.read_config(folder)
    rng = np.random.default_rng(0)
    shapes = sorted(family.shapes(config).items())
    tensors = {name: rng.normal(0, 0.6, shape).astype(np.float32) for name, shape in shapes}
    save_params(folder / "model.safetensors", tensors)
    with_tokenizer(folder)
    return folders.read(folder)


def with_tokenizer(folder: Path) -> None:
    """Write a tokenizer of bytes and a few of their pairs into a folder: at most 300 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(["the whale and the sea"] * 5, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


# ---- the checks


def check_prompt(pair: Pair) -> None:
    """The logits of a prompt."""
    _, logits = pair.apply(pair.model.params, TOKENS, pair.begin())
    close(logits, logits_of(pair.module, TOKENS))


def check_gradients(pair: Pair, of_own: float = 1e-3, renamed: Any = dict) -> None:
    """The loss, and its gradient by every tensor.

    ``renamed`` gives the peer's gradients the names that its tensors have in a file.
    """
    loss, gradients = pair.loss
    ids = batch_first(TOKENS)
    pair.module.zero_grad()
    theirs = pair.module(ids, labels=ids, use_cache=False).loss
    theirs.backward()
    close(loss, theirs.item())
    named = {name: w.grad for name, w in pair.module.named_parameters() if w.grad is not None}
    wanted = {name: gradient.numpy() for name, gradient in named.items()}
    gradients_close(gradients, renamed(wanted), of_own)


def check_float64(pair: Pair) -> None:
    """The logits and the gradients against what the same functions give in float64."""
    gradients, logits = pair.weighted
    with doubled(pair) as double:
        exact, wanted = double.weighted
        assert wanted.dtype == jnp.float64
    close(logits, wanted)
    gradients_close(gradients, {name: np.asarray(x) for name, x in exact.items()})


def check_cuts(pair: Pair) -> None:
    """Two calls and single steps equal one call: values and gradients."""
    half, steps, params = 40, 8, pair.model.params

    def in_two(params: Any) -> Any:
        carry, first = pair.apply(params, TOKENS[:half], pair.begin())
        _, second = pair.apply(params, TOKENS[half:], carry)
        logits = jnp.concatenate([first, second])
        return (logits * WEIGHTS).sum(), (carry, logits)

    gradients, whole = pair.weighted
    cut, (carry, logits) = jax.jit(jax.grad(in_two, has_aux=True))(params)
    close(logits, whole)
    gradients_close(cut, gradients)
    whole = np.asarray(whole)
    for t in range(half, half + steps):
        before = carry
        carry, step = pair.apply(params, TOKENS[t : t + 1], carry)
        close(np.asarray(step)[0], whole[t])
        like = [jax.tree.map(lambda x: (x.shape, x.dtype), c) for c in (before, carry)]
        assert like[0] == like[1]


def check_resets(pair: Pair) -> None:
    """A row of documents equals each document by itself: values and gradients."""
    params, tokens = pair.model.params, TOKENS
    # The first row has documents that begin at 0, 33 and 34, the second at 20, after a carry.
    resets = np.zeros(TOKENS.shape, bool)
    resets[[0, 33, 34], 0] = resets[20, 1] = True
    spans = [(0, 0, 33), (0, 33, 34), (0, 34, PROMPT), (1, 20, PROMPT)]
    used = np.ones(TOKENS.shape, bool)
    used[:20, 1] = False

    before, _ = pair.apply(params, tokens[::-1], pair.begin())

    def packed(params: Any) -> Any:
        logits = pair.apply(params, tokens, before, resets)[1]
        return (logits * WEIGHTS * used[..., None]).sum(), logits

    def alone(params: Any) -> Any:
        parts = [
            (pair.apply(params, tokens[a:b, row : row + 1], pair.begin(1))[1][:, 0], row, a, b)
            for row, a, b in spans
        ]
        return sum((y * WEIGHTS[a:b, row]).sum() for y, row, a, b in parts), [p[0] for p in parts]

    got, logits = jax.jit(jax.grad(packed, has_aux=True))(params)
    wanted, parts = jax.jit(jax.grad(alone, has_aux=True))(params)
    logits = np.asarray(logits)
    for (row, a, b), part in zip(spans, parts, strict=True):
        close(logits[a:b, row], part)
    gradients_close(got, wanted)


def check_greedy(pair: Pair, length: int = 30, **options: Any) -> None:
    """The peer's greedy text, up to a step where its two best are nearer than 1e-4."""
    import torch

    ids = batch_first(TOKENS)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pair.module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False,
            eos_token_id=None, pad_token_id=0, output_scores=True, return_dict_in_generate=True,
            **options,
        )  # fmt: skip
    theirs = found.sequences[:, PROMPT:].numpy().T
    scores = np.stack([s.numpy() for s in found.scores])
    best = np.sort(scores, axis=-1)[..., -2:]
    sure = best[..., 1] - best[..., 0] > 1e-4 * np.abs(scores).max()
    sure = np.logical_and.accumulate(sure, axis=0)
    assert sure[: length // 3].any()
    carry, logits = pair.apply(pair.model.params, TOKENS, pair.begin())
    for t in range(length):
        token = np.asarray(logits)[-1].argmax(-1).astype(np.int32)
        assert (token == theirs[t])[sure[t]].all(), t
        carry, logits = pair.apply(pair.model.params, token[None], carry)


def check_bfloat16(pair: Pair) -> None:
    """In bfloat16 logits are no further from float32 than the peer, within its own rounding.

    ``pair`` is of bfloat16. Its rounding is how far the peer is from itself in float32.
    """
    theirs = logits_of(pair.module, TOKENS)
    _, ours = pair.apply(pair.model.params, TOKENS, pair.begin(dtype=jnp.bfloat16))
    assert {x.dtype for x in pair.model.params.values()} == {np.dtype(jnp.bfloat16)}
    exact = logits_of(pair.module.float(), TOKENS)
    rounding = np.abs(theirs - exact)
    assert 0 < rounding.max() < 0.2 * np.abs(exact).max()
    assert np.abs(np.asarray(ours) - exact).mean() <= 1.2 * rounding.mean()
    assert np.abs(np.asarray(ours) - theirs).mean() <= 1.5 * rounding.mean()


def check_saved(pair: Pair, folder: Path, module_class: Any) -> None:
    """One step of SGD, saved in the peer's layout and read again, by us and by the peer."""
    params = trained(pair)
    again = folders.read(folders.write(folder, pair.model, params)).params
    assert again.keys() == params.keys()
    assert all(np.array_equal(again[name], x) for name, x in params.items())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, said = module_class.from_pretrained(folder, output_loading_info=True)
    assert not any(said[key] for key in PROBLEMS)
    _, logits = pair.apply(params, TOKENS, pair.begin())
    close(logits_of(module.eval(), TOKENS), logits)
    assert np.abs(np.asarray(logits) - logits_of(pair.module, TOKENS)).max() > 1e-4


def trained(pair: Pair) -> dict[str, jax.Array]:
    """The parameters after a step of SGD."""
    return jax.jit(lambda *both: jax.tree.map(lambda w, g: w - 0.1 * g, *both))(
        pair.model.params, pair.loss[1]
    )
