"""The model that the questions about text share, with the same weights in every library.

One-hot characters, layers of LSTM, a softmax at every step.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

Weights = Mapping[str, np.ndarray]
LSTM_WEIGHTS = ("kernel", "recurrent_kernel", "bias")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The shapes, and the file of the weights."""

    layers: int = 3
    hidden_size: int = 700
    vocabulary_size: int = 68
    batch_size: int = 12
    time: int = 100
    steps: int = 5
    """Optimiser steps of one repetition of `train_step`."""
    lengths: tuple[int, ...] = (20, 100, 300, 1000)
    """Sizes of the text, where `generation` times Keras; the last counts the characters written."""
    weights: str = ""


QUICK = Settings(
    hidden_size=32, vocabulary_size=12, batch_size=2, time=10, steps=2, lengths=(5, 10, 15, 30)
)


def rnnjax_model(settings: Settings, method: Any = None) -> Any:
    """The model of ``experiments.text_generator``, unrolled by a method of its own choice or ours.

    Args:
        settings: the shapes.
        method: how every layer is unrolled, such as ``rnnjax.Scan()``; None is the model's default.
    """
    import jax

    from experiments.text_generator.config import Architecture
    from experiments.text_generator.model import CharacterModel

    options = Architecture(layers=settings.layers, hidden_size=settings.hidden_size)
    model = CharacterModel.build(options, settings.vocabulary_size)
    if method is None:
        return model

    class DenseModel(CharacterModel):
        """The model on one-hot vectors that are written out, as its contenders read them."""

        def embed(self, params: Any, tokens: Any) -> Any:
            """The vectors."""
            return jax.nn.one_hot(tokens, self.vocabulary_size)

    return DenseModel(model.stack, model.vocabulary_size, method=method)


def write_weights(settings: Settings) -> None:
    """Draw the weights as rnnjax does, and write them for all contenders.

    From the usual initial weights any network starts at a loss of ln(68), to within 1e-3 even if
    its gates are swapped. So that comparing losses shows something, the biases are made random and
    the last kernel larger.
    """
    import jax

    rng = np.random.default_rng(0)
    params = rnnjax_model(settings).init(jax.random.key(0))
    arrays = {"dense_kernel": 4 * params["kernel"], "dense_bias": params["bias"]}
    for layer, lstm in enumerate(params["stack"]):
        noise = rng.standard_normal(lstm["bias"].shape, np.float32)
        arrays |= {f"{name}_{layer}": lstm[name] for name in LSTM_WEIGHTS}
        arrays[f"bias_{layer}"] += noise
    np.savez(settings.weights, **arrays)


def weights_of(settings: Any) -> dict[str, np.ndarray]:
    """The arrays that a question's ``write_weights`` has written."""
    with np.load(settings.weights) as file:
        return dict(file)


def rnnjax_params(settings: Settings) -> dict[str, Any]:
    """The weights as parameters of `rnnjax_model`."""
    import jax.numpy as jnp

    weights = weights_of(settings)
    return {
        "stack": tuple(
            {name: jnp.asarray(weights[f"{name}_{layer}"]) for name in LSTM_WEIGHTS}
            for layer in range(settings.layers)
        ),
        "kernel": jnp.asarray(weights["dense_kernel"]),
        "bias": jnp.asarray(weights["dense_bias"]),
    }


def keras_model(settings: Settings) -> Any:
    """The model in Keras, for texts of any length, with the weights in it."""
    import keras

    lstms = [
        keras.layers.LSTM(settings.hidden_size, return_sequences=True)
        for _ in range(settings.layers)
    ]
    dense = keras.layers.Dense(settings.vocabulary_size, activation="softmax")
    model = keras.Sequential([keras.Input((None, settings.vocabulary_size)), *lstms, dense])
    model.set_weights(keras_weights(settings))
    return model


def keras_weights(settings: Settings) -> list[np.ndarray]:
    """The weights in the order of Keras's model, whose gates are in the same order: i, f, g, o."""
    weights = weights_of(settings)
    lstms = [
        weights[f"{name}_{layer}"] for layer in range(settings.layers) for name in LSTM_WEIGHTS
    ]
    return [*lstms, weights["dense_kernel"], weights["dense_bias"]]


def torch_modules(settings: Settings) -> tuple[Any, Any]:
    """The model in PyTorch, batch first: the ``nn.LSTM`` and the ``nn.Linear``."""
    import torch

    weights = {name: torch.from_numpy(array) for name, array in weights_of(settings).items()}
    lstm = torch.nn.LSTM(
        settings.vocabulary_size, settings.hidden_size, settings.layers, batch_first=True
    )
    dense = torch.nn.Linear(settings.hidden_size, settings.vocabulary_size)
    arrays = {"weight": weights["dense_kernel"].T, "bias": weights["dense_bias"]}
    dense.load_state_dict(arrays)
    arrays = {}
    for layer in range(settings.layers):  # The same gates, i, f, g, o; transposed, two biases.
        arrays[f"weight_ih_l{layer}"] = weights[f"kernel_{layer}"].T
        arrays[f"weight_hh_l{layer}"] = weights[f"recurrent_kernel_{layer}"].T
        arrays[f"bias_ih_l{layer}"] = weights[f"bias_{layer}"]
        arrays[f"bias_hh_l{layer}"] = torch.zeros_like(weights[f"bias_{layer}"])
    lstm.load_state_dict(arrays)
    return lstm, dense


def one_hot(ids: np.ndarray, settings: Settings) -> np.ndarray:
    """Characters as float32 vectors."""
    return np.eye(settings.vocabulary_size, dtype=np.float32)[ids]


def random_ids(shape: tuple[int, ...], settings: Settings) -> np.ndarray:
    """Return the characters of all contenders."""
    rng = np.random.default_rng(0)
    return rng.integers(settings.vocabulary_size, size=shape, dtype=np.int32)
