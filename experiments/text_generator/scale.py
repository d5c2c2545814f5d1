"""How a run lies over devices and processes: the options --mesh, --coordinator and their kind."""

import re

import jax

from experiments.text_generator.config import Train
from rnnjax.errors import InvalidInputError
from rnnjax.training import Sharding, agreed_signal, from_first, is_first


def sharding_of(config: Train) -> Sharding | None:
    """The mesh asked for, or None for the one device that JAX takes by itself.

    Raises:
        InvalidInputError: the mesh does not fit the devices, the batch or the hidden units.
    """
    mesh = config.mesh
    if mesh is None and jax.process_count() == 1:
        return None
    if mesh in (None, "auto"):
        sharding = Sharding.over(divide=divided_axis)
    else:
        sizes = re.fullmatch(r"(\d+)(?:x(\d+))?", str(mesh))
        assert sizes is not None  # `Train.check` has looked
        sharding = Sharding.over(int(sizes[1]), int(sizes[2] or 1), divide=divided_axis)
    data, hidden = sharding.mesh.shape["data"], sharding.mesh.shape["hidden"]
    for name, size, devices in (
        ("--batch-size", config.text.batch_size, data),
        ("--hidden-size", config.model.hidden_size, hidden),
        ("--embedding-size", config.model.embedding_size, hidden),
    ):
        if size % devices:
            raise InvalidInputError(
                f"{name} {size} cannot be divided over the {devices} devices that a mesh of "
                f"{data}x{hidden} has for it; take a multiple of {devices}, or another --mesh"
            )
    return sharding


def divided_axis(names: tuple[str, ...], shape: tuple[int, ...]) -> int | None:
    """Which axis of a parameter of the model are hidden units, or features of the characters.

    In the stack the columns of all kernels, and the biases. In the softmax the rows of its kernel,
    or its columns where that is the characters' vectors: one sum over the devices gives the logits,
    and the number of characters, whatever it is, need not be divided.
    """
    if names[0] == "stack":
        return len(shape) - 1
    return {"kernel": 0, "embedding": 1}.get(names[0])


def check_alike(config: Train, digest: str) -> None:
    """Raise unless all processes have the same options, and the text that the first one has.

    Raises:
        InvalidInputError: this process differs.
    """
    ours = {**config.as_json(), "the text of the corpus": digest}
    theirs = from_first(lambda: ours)
    differing = sorted(name for name in ours if ours[name] != theirs.get(name))
    # All of them end, because the others would wait for those that do.
    if agreed_signal(len(differing)):
        which = ", ".join(differing) or "those of another process"
        raise InvalidInputError(
            f"process {jax.process_index()} of {jax.process_count()}: all must have the same "
            f"options and text, but not all have those of process 0 ({which}); start them with the "
            "same, but for --process"
        )


def say(line: str) -> None:
    """Print a line, once for all processes."""
    if is_first():
        print(line)
