"""How the processes of a run meet, before JAX is used."""

import dataclasses
import os
import re
from typing import Any

import jax

from rnnjax.errors import InvalidInputError

_VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
}


@dataclasses.dataclass(frozen=True)
class Processes:
    """Which of several processes this one is; by default the only one.

    All processes run the same program on the same data, and each holds its share of every array
    (JAX's multi-controller model). `start` has them meet.
    """

    coordinator: str | None = None
    """HOST:PORT where process 0 waits for the others; by default JAX_COORDINATOR_ADDRESS."""
    processes: int | None = None
    """How many there are; by default JAX_NUM_PROCESSES."""
    process: int | None = None
    """Which of them this is, from 0; by default JAX_PROCESS_ID."""

    def start(self) -> None:
        """Meet the other processes, if there are any; before JAX is used for anything else.

        Raises:
            InvalidInputError: the three do not belong together, or the others did not come.

        >>> Processes().start()  # the only process has nobody to meet
        >>> Processes("localhost:1234", processes=2).start()
        Traceback (most recent call last):
        ...
        rnnjax.errors.InvalidInputError: several processes need a coordinator, ...
        """
        coordinator, count, index = dataclasses.astuple(self.or_environment())
        if coordinator is None and count in (None, 1) and index is None:
            return
        if coordinator is None or count is None or index is None:
            raise InvalidInputError(
                "several processes need a coordinator, their number and which of them this is, but "
                f"came as coordinator {coordinator}, processes {count} and process {index}; give "
                "all three"
            )
        if not re.fullmatch(r".+:\d+", coordinator):
            raise InvalidInputError(
                f"the coordinator must be HOST:PORT, but is {coordinator!r}; name the machine of "
                "process 0 and a free port on it"
            )
        if not 0 <= index < count:
            raise InvalidInputError(
                f"the process must be from 0 to {count - 1}, one less than their number, but is "
                f"{index}; number the processes from 0"
            )
        # The CPU's own collectives stay within a process; other platforms do not read this.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # JAX's own answer to SIGTERM would take it from the training loop, which agrees on a step.
        jax.config.update("jax_enable_preemption_service", False)
        try:
            jax.distributed.initialize(coordinator, num_processes=count, process_id=index)
        except RuntimeError as error:
            raise InvalidInputError(
                f"process {index} of {count} could not meet the others at {coordinator} "
                f"({str(error).splitlines()[0][:200]}); start all of them, with the same "
                "coordinator and number, each once"
            ) from error

    def or_environment(self) -> "Processes":
        """The same, with what is left out taken from the environment.

        Raises:
            InvalidInputError: a variable should be a number and is none.
        """
        found: dict[str, Any] = {}
        for name, variable in _VARIABLES.items():
            value = os.environ.get(variable)
            if value and getattr(self, name) is None:
                if name != "coordinator" and not value.isdigit():
                    raise InvalidInputError(
                        f"{variable} must be a number, but is {value!r}; set it to one, or unset it"
                    )
                found[name] = value if name == "coordinator" else int(value)
        return dataclasses.replace(self, **found)
