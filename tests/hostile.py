"""What every reader of PyTorch's files owes to a damaged one."""

import pathlib
import resource
import time
import warnings
from collections.abc import Iterable

from rnnjax.errors import InteropError
from rnnjax.interop import Model
from rnnjax.interop.torch import load, to_state_dict


def check_damaged(path: pathlib.Path, contents: Iterable[bytes]) -> dict[str, int]:
    """Each is a model or one sentence, within 5 s and 1 GiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = {"models": 0, "refusals": 0}
    for content in contents:
        path.write_bytes(content)
        start, refusal = time.perf_counter(), ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of keys that changed
                model = load(path)
        except InteropError as error:
            refusal = str(error)
            outcomes["refusals"] += 1
        else:
            outcomes["models"] += 1
            assert isinstance(model, Model)
            assert to_state_dict(model)
        assert refusal.isprintable()
        assert len(refusal) < 2000
        assert time.perf_counter() - start < 5
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 2**30
    return outcomes
