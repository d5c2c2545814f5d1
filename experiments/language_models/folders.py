"""Folders of public language models: their config.json and tensors, in and out."""

import dataclasses
import importlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from rnnjax import InvalidInputError
from rnnjax.interop.torch import load_state_dict
from rnnjax.training import save_params

FAMILIES = {
    "mamba": "mamba", "falcon_mamba": "mamba", "mamba2": "mamba2", "xlstm": "xlstm",
    "recurrent_gemma": "recurrent_gemma", "qwen3_5": "gated_delta", "qwen3_5_text": "gated_delta",
    "olmo_hybrid": "olmo_hybrid",
}  # fmt: skip
"""The file beside this for each ``model_type`` of a config.json."""

TENSORS = (
    "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
"""Where the tensors of a folder are; the first that is there, as in transformers."""

# Fields that change nothing that a text model computes: of training, of generation, of programs.
_WITHOUT_EFFECT = {
    "architectures", "auto_map", "bos_token_id", "dtype", "eos_token_id", "id2label",
    "initializer_range", "is_decoder", "is_encoder_decoder", "label2id", "model_type",
    "output_attentions", "output_hidden_states", "pad_token_id", "return_dict", "sep_token_id",
    "torch_dtype", "transformers_version", "use_cache", "vocab_size_multiple", "_name_or_path",
    "_attn_implementation_autoset", "chunk_size_feed_forward", "problem_type",
}  # fmt: skip
_ONE_BY_ONE = {"num_hidden_layers", "num_blocks"}  # each of them has names, so a huge number hangs
_HUGE = 1e30
_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


class Fields:
    """The fields of a config.json, each of which is read once, or refused.

    A default is what the peer takes where the field is missing.

    Args:
        values: what the file holds.
        at: the name of the object in it, as in ``text_config``.
    """

    def __init__(self, values: Mapping[str, Any], at: str = "") -> None:
        self.values, self.at = values, at
        self.known = set(_WITHOUT_EFFECT)

    def take(self, name: str, default: Any = None) -> Any:
        """Return a field as it is; null is as if it was not there."""
        self.known.add(name)
        value = self.values.get(name)
        return default if value is None else value

    def expect(self, good: bool, name: str, expected: str) -> None:
        """Raise unless a field is good."""
        if not good:
            given = json.dumps(self.values[name])[:80] if name in self.values else "not there"
            raise InvalidInputError(
                f"{self.at}{name} of config.json must be {expected}, but is {given}; this program "
                "reads no other model"
            )

    def size(self, name: str, default: Any = None, least: int = 1, most: int = 2**31 - 1) -> int:
        """Return an integer from ``least`` to ``most``, that an array may have."""
        value, most = self.take(name, default), 1000 if name in _ONE_BY_ONE else most
        good = type(value) is int and least <= value <= most
        self.expect(good, name, f"an integer from {least} to {most}")
        return int(value)

    def divisor(self, name: str, heads: int, default: Any) -> int:
        """Return a number of heads, each of which is shared by as many of the ``heads``."""
        value = self.size(name, default)
        self.expect(heads % value == 0, name, f"a divisor of the {heads} heads that share them")
        return value

    def number(self, name: str, default: Any = None) -> float:
        """Return a number above 0, such that 1 divided by it is finite in float32."""
        value = self.take(name, default)
        good = type(value) in (int, float) and 1 / _HUGE < value < _HUGE
        good = good and self.values.get(name, value) is not None  # which may mean none at all
        self.expect(good, name, "a number above 0")
        return float(value)

    def pair(self, name: str, default: Any = None) -> tuple[float, float]:
        """Return two numbers, the lower first."""
        value = self.take(name, default)
        good = isinstance(value, list | tuple) and len(value) == 2
        good = good and all(type(x) is float or (type(x) is int and abs(x) < _HUGE) for x in value)
        good = good and value[0] <= value[1]
        self.expect(good, name, "two numbers, the lower first")
        return float(value[0]), float(value[1])

    def flag(self, name: str, default: Any = None) -> bool:
        """Return true or false."""
        value = self.take(name, default)
        self.expect(type(value) is bool, name, "true or false")
        return bool(value)

    def names(self, name: str, *supported: str, default: Any = None) -> tuple[str, ...]:
        """Return a list of names, each of which is supported."""
        value = self.take(name, default)
        good = isinstance(value, list | tuple) and all(one in supported for one in value)
        self.expect(good, name, f"a list of {' or '.join(map(repr, supported))}")
        return tuple(value)

    def kinds(self, every: int) -> tuple[str, ...]:
        """Return the kind of each layer: by default every so many-th one has full attention."""
        layers, both = self.size("num_hidden_layers", 32), ("linear_attention", "full_attention")
        usual = [both[(i + 1) % every == 0] for i in range(layers)]
        kinds = self.names("layer_types", *both, default=usual)
        self.expect(len(kinds) == layers, "layer_types", f"of {layers} layers (num_hidden_layers)")
        return kinds

    def only(self, name: str, *supported: Any) -> None:
        """Raise unless a field has a supported value; the first is the default."""
        value = self.take(name, supported[0])
        good = any(type(value) is type(one) and value == one for one in supported)
        self.expect(good, name, " or ".join(json.dumps(one) for one in supported))

    def ignore(self, *names: str) -> None:
        """Let fields be there that change nothing that is computed here."""
        self.known.update(names)

    def inside(self, name: str) -> "Fields":
        """Return the fields of an object in the file; its own `done` checks them."""
        value = self.take(name)
        self.expect(isinstance(value, dict), name, "an object")
        return Fields(value, f"{self.at}{name}.")

    def rotary(self, head_size: int, share: float) -> tuple[int, float]:
        """Return how many entries of a head are rotated by its position, and the base of rates.

        Older files have these fields, and ``share``, by themselves.
        """
        base = self.number("rope_theta", 10000.0)
        share, within = self.number("partial_rotary_factor", share), self
        if self.take("rope_parameters", None) is not None:
            within = self.inside("rope_parameters")
            base = within.number("rope_theta", base)
            share = within.number("partial_rotary_factor", share)
            within.ignore("mrope_section", "mrope_interleaved")  # text has one position per token
        for name in ("rope_type", "type"):
            within.only(name, "default")
        size = int(head_size * share)
        even = f"such that of {head_size} entries of a head an even number is rotated"
        within.expect(0 < size <= head_size and size % 2 == 0, "partial_rotary_factor", even)
        if within is not self:
            within.done()
        return size, base

    def done(self) -> None:
        """Raise if there is a field that was not read, with a value."""
        for name, value in self.values.items():
            if name not in self.known and value is not None:
                raise InvalidInputError(
                    f"{self.at}{ascii(name[:80])[1:-1]} of config.json is "
                    f"{json.dumps(value)[:80]}, but is not known here, so the model might be "
                    "another one; use a model without it"
                )


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A language model: ``family.apply(config, params, tokens, carry)`` runs it.

    Attributes:
        family: the module of the family; see `blocks`.
        config: its sizes.
        params: the tensors by the names in the file.
        path: the folder, or the one file, from which it was read.
        ends: the ids that end a text, as config.json and generation_config.json say; the first is
            written behind a document to learn from.
        left_out: the names of the tensors of the file that are in no text model.
    """

    family: ModuleType
    config: Any
    params: dict[str, Any]
    path: Path
    ends: list[int]
    left_out: tuple[str, ...] = ()

    @property
    def dtype(self) -> Any:
        """The type of keys and values: that of the embedding."""
        return self.params[embedding_of(self.family, self.config)].dtype

    @property
    def attends(self) -> bool:
        """Whether there is full attention, whose carry grows with the capacity."""
        return "full_attention" in getattr(self.config, "kinds", ())


def read(path: str | Path, dtype: Any = None) -> Model:
    """Read a folder as transformers writes it, or a .pth or .safetensors of RWKV-7, into memory.

    Args:
        path: the folder or the file.
        dtype: the type of all parameters; by default each has the type in the file.

    Raises:
        InvalidInputError: the config, or a tensor, does not fit what is supported.
        InteropError: a file is missing or damaged.
    """
    model = look(path)
    params = {name: jnp.array(x, dtype) for name, x in model.params.items()}  # copies
    return dataclasses.replace(model, params=params)


def look(path: str | Path) -> Model:
    """Return a model whose parameters are still in its files; see `read`."""
    path = Path(path)
    if path.suffix in (".pth", ".safetensors"):
        family = importlib.import_module("experiments.language_models.rwkv7")
        tensors, ends = load_state_dict(path), [0]  # which ends a text in their vocabulary
        config = family.Config.of({name: x.shape for name, x in tensors.items()})
    else:
        _companions(path)
        family, config, ends = read_config(path)
        tensors = load_state_dict(_tensor_file(path))
    tensors, left_out = fitting(family, config, tensors)
    return Model(family, config, tensors, path, ends, left_out)


def read_config(folder: Path) -> tuple[ModuleType, Any, list[int]]:
    """Return the module of the family, the sizes, and the ids that end a document."""
    file, generation = folder / "config.json", folder / "generation_config.json"
    values = _read_object(file)
    kind = values.get("model_type")
    if values.get("quantization_config"):
        raise InvalidInputError(
            f"{file} is of quantised weights (quantization_config), which are not read; get the "
            "folder with weights in bfloat16 or float32"
        )
    if not isinstance(kind, str) or kind not in FAMILIES:
        mixture = isinstance(kind, str) and ("moe" in kind or kind.startswith("kimi"))
        what = ", a mixture of experts," if mixture else ""
        raise InvalidInputError(
            f"model_type of {file} is {json.dumps(kind)[:80]}{what} but must be one of "
            f"{', '.join(FAMILIES)}; no other family is read"
        )
    family = importlib.import_module(f"experiments.language_models.{FAMILIES[kind]}")
    fields = Fields(values)
    config = family.read_config(fields)
    fields.done()
    places = [(file.name, values), (file.name, values.get("text_config") or {})]
    if generation.is_file():
        places.append((generation.name, _read_object(generation)))
    return family, config, _ends(places, config.vocabulary)


def _read_object(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_bytes(), object_hook=_plain)
    except OSError as error:
        raise InvalidInputError(
            f"{file} cannot be read ({error.strerror}); give the folder of a language model, with "
            "config.json, its tensors and tokenizer.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{file} is no JSON ({error}); get it again") from error
    if not isinstance(values, dict):
        raise InvalidInputError(f"{file} must hold an object of JSON; get it again")
    return values


def _plain(value: dict[str, Any]) -> Any:
    """Return an object of JSON as it is, or the number that transformers writes as an object."""
    return _FLOATS.get(str(value.get("__float__")), value)


def _ends(places: Sequence[tuple[str, Mapping[str, Any]]], vocabulary: int) -> list[int]:
    """Return the ids that end a text, of each place those that are in none before it."""
    ends: list[int] = []
    for name, place in places:
        given: Any = place.get("eos_token_id")
        found = given if isinstance(given, list) else [] if given is None else [given]
        if not all(type(one) is int and 0 <= one < vocabulary for one in found):
            raise InvalidInputError(
                f"eos_token_id of {name} must be ids below {vocabulary}, but is "
                f"{json.dumps(given)[:80]}; get the file again"
            )
        ends += (one for one in found if one not in ends)
    return ends


def _tensor_file(folder: Path) -> Path:
    """Return the file of a folder that holds, or names, the tensors."""
    for name in TENSORS:
        if (folder / name).is_file():
            return folder / name
    raise InvalidInputError(f"{folder} must have one of {', '.join(TENSORS)}; get it again")


def _companions(folder: Path) -> list[Path]:
    """Return the files that are written again as they are: the config, the tokenizer and the like.

    A link may lead to the blobs of a hub's cache, ``models--NAME/snapshots/REVISION/../../blobs``,
    but not elsewhere: what is written would hold a private file of whoever runs this.
    """
    endings, home = (".json", ".txt", ".model", ".jinja"), Path(os.path.realpath(folder))
    found = [file for file in folder.glob("*") if file.suffix in endings]
    for file in found:
        if Path(os.path.realpath(file)).parent not in (home, home.parent.parent / "blobs"):
            raise InvalidInputError(
                f"{file} must be a file of its own folder, but is a link to another one; copy what "
                "it should hold"
            )
    return sorted(file for file in found if ".index." not in file.name and file.is_file())


def embedding_of(family: ModuleType, config: Any) -> str:
    """Return the name of the embedding, which depends on the file in some families."""
    return str(config.embedding if hasattr(config, "embedding") else family.EMBEDDING)


def fitting(
    family: ModuleType, config: Any, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the tensors of a text model, and the names of others, or raise if they do not fit."""
    prefixes = getattr(family, "LEFT_OUT", ())
    left_out = tuple(sorted(name for name in tensors if name.startswith(prefixes)))
    found: Any = {name: x for name, x in tensors.items() if not name.startswith(prefixes)}
    if hasattr(family, "laid_out"):
        found = family.laid_out(config, found)
    expected = family.shapes(config)
    head, embedding = family.HEAD, embedding_of(family, config)
    if head not in expected and np.array_equal(found.get(head), found.get(embedding)):
        found.pop(head, None)  # a tied head that was written all the same
    for name in expected | found:
        x, shape = found.get(name), expected.get(name)
        if x is None or shape is None:
            why = "missing from the file" if x is None else "in the file, but in no such model"
            raise InvalidInputError(
                f"the tensor {name[:80]!r} is {why}; check that all files are of one model"
            )
        if x.shape != shape:
            raise InvalidInputError(
                f"the tensor {name!r} must have shape {shape}, as other sizes of the model say, "
                f"but has {x.shape}; check that all files are of one model"
            )
        if x.dtype not in (np.float32, np.float16, jnp.bfloat16):
            cure = "quantised weights are not read: get the others"
            if x.dtype == np.float64:
                cure = "save the model in float32, as by model.float() of PyTorch"
            raise InvalidInputError(
                f"the tensor {name!r} must be of float32, bfloat16 or float16, but is {x.dtype}; "
                f"{cure}"
            )
    return found, left_out


def check_new(folder: Path, model: Model) -> None:
    """Raise unless a folder is new, or an older one that `write` wrote.

    It is not that of the model, and holds no other files of tensors.
    """
    older = any((folder / name).exists() for name in TENSORS if name != "model.safetensors")
    home = model.path if model.path.is_dir() else model.path.parent
    if older or folder.resolve() == home.resolve():
        raise InvalidInputError(
            f"{folder} must be a new folder, but holds another model; choose another one"
        )


def write(folder: str | Path, model: Model, params: Mapping[str, Any] | None = None) -> Path:
    """Write a model as it was read: the same files, with other tensors.

    Args:
        folder: as `check_new` takes it.
        model: the model that was read.
        params: what to write instead of its parameters.

    Returns:
        what `read` reads: the folder; or the file of tensors, if the model came from one.

    Raises:
        InvalidInputError: the tensors do not fit; or `check_new` raises.
    """
    folder = Path(folder)
    check_new(folder, model)
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: np.asarray(x) for name, x in (params or model.params).items()}
    fitting(model.family, model.config, whole)
    if not model.path.is_dir():
        for file in model.path.parent.glob("rwkv_vocab*.txt"):
            shutil.copyfile(file, folder / file.name)
        save_params(folder / "model.safetensors", whole)
        return folder / "model.safetensors"
    for file in _companions(model.path):
        shutil.copyfile(file, folder / file.name)
    if model.left_out:
        old = load_state_dict(_tensor_file(model.path))
        whole |= {name: old[name] for name in model.left_out}
    kinds = {x.dtype.name for x in whole.values()}
    if len(kinds) == 1:  # by which transformers chooses the type of all
        values = json.loads((folder / "config.json").read_bytes())
        for place in (values, values.get("text_config")):
            if isinstance(place, dict):
                place["dtype" if "dtype" in place else "torch_dtype"] = min(kinds)
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    save_params(folder / "model.safetensors", whole)
    return folder
