"""What has to be said before JAX is used: that cores are devices, and that there are processes."""

import contextlib
import os
from typing import Any

import jax

from rnnjax.errors import InvalidInputError

# How many processes a launcher began, where JAX may not find it out: Open MPI 5 and MPICH.
_LAUNCHED = "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"


def start_processes(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    **options: Any,
) -> None:
    """Have the processes of a run meet, if there are several; before JAX is used for anything else.

    All processes run the same program, and each holds its share of every array (JAX's
    multi-controller model). Under SLURM, Open MPI 4, Kubernetes and on a Cloud TPU no numbers are
    needed: JAX reads them from what started the processes. Elsewhere each process is told three.
    A process that nobody told of others is alone, and the call does nothing.

    Args:
        coordinator_address: HOST:PORT where process 0 waits for the others; left out,
            JAX_COORDINATOR_ADDRESS.
        num_processes: how many there are; left out, JAX_NUM_PROCESSES. 1: this one is alone.
        process_id: which of them this is, from 0; left out, JAX_PROCESS_ID.
        options: the others of ``jax.distributed.initialize``: ``local_device_ids``, the GPUs of its
            machine that this process takes (JAX_LOCAL_DEVICE_IDS; SLURM and Open MPI give it one,
            and elsewhere it takes all), or ``cluster_detection_method="mpi4py"`` for another MPI.

    Raises:
        InvalidInputError: the numbers do not belong together, the others did not come, or JAX was
            used before.

    >>> start_processes(num_processes=1)
    """
    if jax.distributed.is_initialized():
        return
    known: dict[str, Any] = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    for name, value in known.items():
        if value is None:
            known[name] = os.environ.get(f"JAX_{name.upper()}") or None
    try:
        for name in ("num_processes", "process_id"):
            known[name] = None if known[name] is None else int(known[name])
        if known["num_processes"] == 1:
            return
        complete = None not in known.values()
        found_by = {"cluster_detection_method": "deactivate"} if complete else {}
        # JAX's own answer to SIGTERM would take it from the training loop, which agrees on a step.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(**known, **found_by | options)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        says = str(error).strip().splitlines()[0][:200].rstrip(".")
        told = {name: value for name, value in known.items() if value is not None} | options
        told |= {n: os.environ[n] for n in _LAUNCHED if os.environ.get(n, "1") != "1"}
        if not told:
            return
        raise InvalidInputError(
            "the processes of a run must meet before anything else uses JAX, with one "
            "coordinator_address (HOST:PORT), one num_processes and a process_id each, but "
            f"{told} came, and JAX says: {says}; start all of them alike, under another MPI with "
            'cluster_detection_method="mpi4py", or set JAX_NUM_PROCESSES=1 for one alone'
        ) from error


def use_cores() -> int:
    """Make each core of the CPU a device of its own; before JAX is used for anything else.

    XLA runs the products of one step on one core, and one small loop after the other: what runs
    side by side are the loops of several devices, over which ``fit(..., sharding="cores")`` divides
    the rows of a batch. What does not divide its batch stays on the first device, which is as fast
    as before. Where the environment has said how many devices a CPU is (JAX_NUM_CPU_DEVICES,
    XLA_FLAGS), or JAX has begun, that stays.

    Returns:
        how many there are; 1 where JAX was told to do without the CPU (JAX_PLATFORMS=cuda).

    >>> use_cores() == len(jax.devices("cpu"))
    True
    """
    said = jax.config.values["jax_num_cpu_devices"] > 0  # not a name of its own in every JAX
    if not said and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        affinity = getattr(os, "sched_getaffinity", None)
        cores = (os.cpu_count() or 1) if affinity is None else len(affinity(0))
        with contextlib.suppress(RuntimeError):  # it has begun
            jax.config.update("jax_num_cpu_devices", cores)
    try:
        return len(jax.local_devices(backend="cpu"))
    except RuntimeError:
        return 1
