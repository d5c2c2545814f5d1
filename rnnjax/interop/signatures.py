"""What a file is that a reader does not read, and which reader does."""

from collections.abc import Sequence

HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
TORCH_STREAM = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of a file that torch.save wrote before PyTorch 1.6, after its protocol."""


def describe(start: bytes, members: Sequence[str] = ()) -> str | None:
    """A file in words, by its first bytes and the members of an archive; None if it is unknown.

    >>> describe(bytes(4) + b"TFL3")[:15]
    'a TFLite model,'
    """
    inside = {member.partition("/")[2] for member in members}
    if start[4:8] == b"TFL3":
        return "a TFLite model, which is compiled; load the Keras model that it was converted from"
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        return (
            "a TorchScript program, whose code is not run; load it in PyTorch, and save its "
            "parameters: torch.save(module.state_dict(), 'model.pt')"
        )
    if "data.pkl" in inside or start[2:].startswith(TORCH_STREAM):
        return "a file of torch.save; call rnnjax.interop.torch.load"
    if start[8:10] == b'{"':
        return "a .safetensors file; call rnnjax.interop.torch.load"
    if start.startswith(HDF5) or "config.json" in members:
        return "a model of Keras; call rnnjax.interop.keras.load"
    return None
