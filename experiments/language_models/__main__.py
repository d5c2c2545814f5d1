"""``python -m experiments.language_models COMMAND FOLDER``: see the README beside this."""

import dataclasses
import math
from pathlib import Path

import jax
import tyro

from experiments.language_models import folders
from experiments.language_models.evaluate import Evaluate, run_evaluation
from experiments.language_models.finetune import Finetune, run_finetuning
from experiments.language_models.generate import Generate, run_generation
from experiments.shared import runs


@dataclasses.dataclass(frozen=True)
class Show:
    """Show what a folder holds: the family, its sizes, the types and the number of parameters."""

    folder: tyro.conf.Positional[Path]
    """The folder of a model, or a .pth of RWKV-7."""


def main() -> int:
    """Do what the command line says."""
    return runs.commands(
        "python -m experiments.language_models", "generate mamba-130m-hf --prompt 'The whale'",
        "Public recurrent language models, from their folders.",
        ("show", Show, show, "mamba-130m-hf"),
        ("generate", Generate, run_generation, 'mamba-130m-hf --prompt "The whale"'),
        ("finetune", Finetune, run_finetuning, "mamba-130m-hf --corpus my-text.txt"),
        ("evaluate", Evaluate, run_evaluation, "mamba-130m-hf --corpus my-text.txt"),
    )  # fmt: skip


def show(command: Show) -> int:
    """Print what a folder holds, without reading its tensors."""
    model = folders.look(command.folder)
    family = model.family.__name__.rpartition(".")[2]
    print(f"{command.folder}: {(model.family.__doc__ or '').partition(chr(10))[0]}")
    kinds = sorted({x.dtype.name for x in model.params.values()})
    counted, size = (
        sum(getattr(x, of) for x in model.params.values()) for of in ("size", "nbytes")
    )
    print(f"{counted:,} parameters in {len(model.params)} tensors of {' and '.join(kinds)}, "
          f"{size / 2**20:,.1f} MiB")  # fmt: skip
    for name, value in dataclasses.asdict(model.config).items():
        print(f"  {name}: {value}")
    for capacity in (1024, 2048) if model.attends else (1,):
        carry = jax.eval_shape(lambda n=capacity: model.family.begin(model.config, 1, n))
        held = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(carry))
        of = f"of {capacity} tokens" if model.attends else "of any number of tokens"
        print(f"the state {of} has {held / 2**20:,.2f} MiB")
    if model.left_out:
        print(f"left out, as no text needs them: {len(model.left_out)} tensors from "
              f"{model.left_out[0]} on")  # fmt: skip
    print(f"its equations are in experiments/language_models/{family}.py")
    return 0


if __name__ == "__main__":
    runs.exit_with(main)
