"""Planted faults: whether the ordinary tests would notice what could go wrong.

    python -m tests.faults                 # every fault
    python -m tests.faults engine torch    # those whose room or name has one of these words
    python -m tests.faults --list          # only say which there are

Each fault is a small change, of the kind that a tired engineer makes, to one file of a copy of the
tree. The tests that should notice it run there, and then the file is put back. A fault is caught if
a test fails; a run that ends in another way, such as by an error before the first test, shows that
the fault or its targets need a repair, and counts as nothing. The exit status is 0 if all faults
are caught, else 1. Nothing in the tree itself is changed.
"""

import argparse
import contextlib
import dataclasses
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300.0  # seconds for the tests of one fault
PACKAGES = ("rnnjax", "experiments", "benchmarks")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        name: what is wrong, in a sentence.
        room: the part of the project.
        path: the file, from the root of the tree.
        old: what stands there, once.
        new: what is put in its place.
        tests: what should notice, as pytest takes it.
    """

    name: str
    room: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]


class StaleFaultError(Exception):
    """The text that a fault replaces is no more, or stands there more than once."""


def planted(fault: Fault, text: str) -> str:
    """The text of the file with the fault in it.

    Raises:
        StaleFaultError: the fault has to be adapted to what the file has become.
    """
    if text.count(fault.old) != 1 or fault.old == fault.new:
        raise StaleFaultError(
            f"fault {fault.name!r}: its text no longer stands once in {fault.path}; adapt it"
        )
    return text.replace(fault.old, fault.new)


def verdict(status: int | None, output: str) -> str:
    """What pytest's exit status (None: out of time) and output say of a fault.

    An error at the collection of a file ends with the status of a failed test as well, but names
    no test.
    """
    if status is None:
        return f"TIMEOUT after {PATIENCE:.0f} s"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+?::.+?)(?: - .*)?$", output, re.MULTILINE)
    if status == 1 and failed:
        return f"caught by {failed[1]}"
    if status == 0:
        return "MISSED"
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
    return f"BROKEN, status {status}: {last.strip()}"


class Copy:
    """A copy of the tree: the files that git knows, and those that it would be told of."""

    process: subprocess.Popen[bytes] | None = None
    patience = PATIENCE

    def __init__(self, folder: Path):
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-coz", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():  # else it is deleted, and git was not told yet
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        code = f"import {', '.join(PACKAGES)}; print(*({', '.join(PACKAGES)}), sep='\\n')"
        _, found = self.run(["-c", code])
        if found.count(f"from '{folder}{os.sep}") != len(PACKAGES):
            raise RuntimeError(f"the packages should be imported from the copy, but are:\n{found}")

    def run(
        self, arguments: Sequence[str], patience: float | None = PATIENCE
    ) -> tuple[int | None, str]:
        """Exit status (None: out of time) and output of Python, in the copy."""
        # A file, as whoever is left of a killed run would keep a pipe open. No bytecode, which is
        # told from that of a fault by the second in which its source was written.
        environment = os.environ | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        # What the tree's own tests have compiled is what a fault elsewhere leaves as it was.
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder, env=environment, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            status: int | None = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process = process
                status = process.wait(patience)
            if status is None:
                self.stop()
            output.seek(0)
            return status, output.read()

    def stop(self) -> None:
        """End what runs here, with whatever it has started itself."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def test(
        self, targets: Iterable[str], patience: float | None = PATIENCE
    ) -> tuple[int | None, str]:
        """Run pytest until the first failure."""
        return self.run(["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *targets], patience)

    def judge(self, fault: Fault) -> str:
        """The verdict on a fault; the file is afterwards what it was."""
        path = self.folder / fault.path
        text = path.read_text(encoding="utf-8")
        path.write_text(planted(fault, text), encoding="utf-8")
        try:
            return verdict(*self.test(fault.tests, self.patience))
        finally:
            path.write_text(text, encoding="utf-8")


def targets_of(faults: Iterable[Fault]) -> list[str]:
    """All tests of these faults, each once."""
    targets = dict.fromkeys(target for fault in faults for target in fault.tests)
    return [t for t in targets if "::" not in t or t.partition("::")[0] not in targets]


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant the faults asked for, and print what became of each."""
    parser = argparse.ArgumentParser(
        "python -m tests.faults", description="Plant faults, and see if the tests notice."
    )
    parser.add_argument("words", nargs="*", help="of the room or the name; by default all faults")
    parser.add_argument("--list", action="store_true", help="list the faults, and run nothing")
    parser.add_argument(
        "--skip-clean", action="store_true", help="do not see first that the tests pass without"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="how many copies work side by side"
    )
    given = parser.parse_args(arguments)
    faults = [
        fault for fault in FAULTS
        if not given.words or any(word in f"{fault.room}: {fault.name}" for word in given.words)
    ]  # fmt: skip
    if not faults or given.jobs < 1:
        parser.error("no fault has such a word" if not faults else "--jobs must be at least 1")
    for fault in faults:
        try:
            planted(fault, (ROOT / fault.path).read_text(encoding="utf-8"))
        except StaleFaultError as error:
            parser.exit(1, f"{error}\n")
        if given.list:
            print(f"{fault.room}: {fault.name} ({fault.path})")
    if given.list:
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        # Resolved, for where the temporary folder is a link.
        base = Path(folder).resolve()
        return run(faults, [Copy(base / str(i)) for i in range(given.jobs)], given.skip_clean)


def run(
    faults: Sequence[Fault],
    copies: Sequence[Copy],
    skip_clean: bool,
    missed: str = "",
    enough: float = 1.0,
) -> int:
    """Judge the faults in these copies, side by side; returns the exit status.

    That is 0 if such a part of them is caught, or ends otherwise than ``missed`` if that is given.
    """
    free: queue.Queue[Copy] = queue.Queue()
    for copy in copies:
        free.put(copy)

    def judge(fault: Fault) -> bool:
        copy, began = free.get(), time.monotonic()
        try:
            said = copy.judge(fault)
        finally:
            free.put(copy)
        print(f"{time.monotonic() - began:5.1f} s  {fault.room}: {fault.name}: {said}", flush=True)
        return said != missed if missed else said.startswith("caught")

    with ThreadPoolExecutor(len(copies)) as pool:
        try:
            if not skip_clean:
                targets = targets_of(faults)
                parts = [targets[i :: len(copies)] for i in range(len(copies))]
                for status, output in pool.map(
                    lambda copy, part: copy.test(part, None) if part else (0, ""), copies, parts
                ):
                    if status != 0:
                        print(f"{output}\nwithout any fault the tests end with status {status}")
                        return 1
            caught = list(pool.map(judge, faults))
        except BaseException:  # Ctrl-C and SIGTERM among them
            pool.shutdown(wait=False, cancel_futures=True)
            for copy in copies:
                copy.stop()
            raise
    of_room: dict[str, list[bool]] = {}
    for fault, noticed in zip(faults, caught, strict=True):
        of_room.setdefault(fault.room.partition("/")[0], []).append(noticed)
    for room, noticed in of_room.items():
        print(f"{room}: {sum(noticed)} of {len(noticed)}")
    for fault, noticed in zip(faults, caught, strict=True):
        if not noticed:
            print(f"not caught: {fault.name}")
    print(f"{sum(caught)} of {len(faults)} faults are caught")
    return 0 if sum(caught) >= enough * len(faults) else 1


FAULTS: tuple[Fault, ...] = (
    # ---- cells
    Fault(
        "the LSTM takes its forget gate for its candidate",
        "cells",
        "rnnjax/cells/lstm.py",
        "    i, f, g, o = jnp.split(activate_gates(",
        "    i, g, f, o = jnp.split(activate_gates(",
        ("tests/test_reference.py::test_a_drawn_composition_equals_the_reference",),
    ),
    Fault(
        "the GRU exchanges z and 1 - z",
        "cells",
        "rnnjax/cells/gru.py",
        "return GRUCarry((1 - z) * n + z * h)",
        "return GRUCarry(z * n + (1 - z) * h)",
        ("tests/test_reference.py::test_a_drawn_composition_equals_the_reference",),
    ),
    Fault(
        "the output gate of the peephole LSTM sees the old memory",
        "cells",
        "rnnjax/cells/peephole.py",
        "activate_gates(o + p_o * cell, (gate,))",
        "activate_gates(o + p_o * carry.cell, (gate,))",
        ("tests/test_reference.py::test_a_drawn_composition_equals_the_reference",),
    ),
    Fault(
        "layer normalisation divides by the root of the mean square, not the standard deviation",
        "cells",
        "rnnjax/cells/layernorm.py",
        "    variance = (centred * centred).mean(axis=-1, keepdims=True)\n",
        "    variance = (x * x).mean(axis=-1, keepdims=True)\n",
        ("tests/test_reference.py",),
    ),
    Fault(
        "a leaky unit keeps what it should lose",
        "cells",
        "rnnjax/cells/simple.py",
        "(1 - self.leak) * carry.hidden + self.leak * new",
        "self.leak * carry.hidden + (1 - self.leak) * new",
        ("tests/test_reference.py",),
    ),
    Fault(
        "the minLSTM scales its gates by their exponentials",
        "cells",
        "rnnjax/cells/minimal.py",
        "jax.nn.sigmoid(jax.nn.log_sigmoid(i) - jax.nn.log_sigmoid(f))",
        "jax.nn.sigmoid(i - f)",
        ("tests/test_reference.py",),
    ),
    Fault(
        "the convolutions of an even size are a place off",
        "cells",
        "rnnjax/cells/products.py",
        "return [((size - 1) // 2, size // 2) for",
        "return [(size // 2, (size - 1) // 2) for",
        ("tests/test_reference.py",),
    ),
    Fault(
        "the MGU with reset-before multiplies its gate behind the product",
        "cells",
        "rnnjax/cells/mgu.py",
        "else (f * h) @ kernel_n",
        "else f * (h @ kernel_n)",
        ("tests/test_reference.py",),
    ),
    Fault(
        "recurrent kernels begin as Glorot's",
        "cells",
        "rnnjax/cells/lstm.py",
        'bias: bool = False\n    kernel_init: str | Initializer = "glorot_uniform"\n',
        'bias: bool = False\n    kernel_init: str | Initializer = "orthogonal"\n',
        ("tests/test_cells.py::test_initial_parameters_have_the_defaults_of_keras",),
    ),
    # ---- engine
    Fault(
        "the backward loop subtracts what comes through the recurrent product",
        "engine",
        "rnnjax/engine/fused/recurrence.py",
        "d_state += steps.drop_state(",
        "d_state -= steps.drop_state(",
        ("tests/test_fused_forms.py::test_kernels_that_leave_the_cache",),
    ),
    Fault(
        "one form of the product's gradient multiplies with the kernel untransposed",
        "engine",
        "rnnjax/engine/fused/matmul.py",
        "contract(self._cast(rows), kernel, (1, 1)), d)",
        "contract(self._cast(rows), kernel, (1, 0)), d)",
        ("tests/test_fused_forms.py::test_the_plain_forms_of_accelerators",),
    ),
    Fault(
        "the fast path resets a step late",
        "engine",
        "rnnjax/engine/fused/method.py",
        "first, then = resets[0], jnp.concatenate([resets[1:], none])",
        "first, then = resets[0], resets",
        ("tests/test_sequence_laws.py::test_all_together",),
    ),
    Fault(
        "in reverse a reset cuts on the wrong side of its step",
        "engine",
        "rnnjax/engine/unroll.py",
        "            resets = jnp.concatenate([resets[1:], how.method.along.next(resets[:1])])\n",
        "            resets = jnp.asarray(resets)\n",
        ("tests/test_sequence_laws.py::test_all_together",),
    ),
    Fault(
        "in reverse the mask is ignored",
        "engine",
        "rnnjax/engine/unroll.py",
        "    steps = Steps.of(valid, resets, start, noise)\n",
        "    steps = Steps.of(None if reverse else valid, resets, start, noise)\n",
        ("tests/test_sequence_laws.py::test_all_together",),
    ),
    Fault(
        "in reverse the last output is held in the order of time",
        "engine",
        "rnnjax/engine/core/masking.py",
        "jax.lax.scan(step, zeros, (ys, valid, resets), reverse=reverse)[1]",
        "jax.lax.scan(step, zeros, (ys, valid, resets))[1]",
        ("tests/test_sequence_laws.py::test_the_last_output_is_held",),
    ),
    Fault(
        "the final carry of a row is that behind its padding",
        "engine",
        "rnnjax/engine/core/masking.py",
        "jax.tree.map(lambda o, n: jnp.where(expand(valid, n), n, o), old, new)",
        "new",
        ("tests/test_sequence_laws.py::test_all_together",),
    ),
    Fault(
        "the derivative of a step finds what was kept in another order",
        "engine",
        "rnnjax/engine/fused/residuals.py",
        "parts = dict(zip(self.written, pieces, strict=True))",
        "parts = dict(zip(self.written[::-1], pieces, strict=True))",
        ("tests/test_laws.py::test_law_1_in_float32",),
    ),
    Fault(
        "an update of one's own inherits the promise of the class above it",
        "cells",
        "rnnjax/cells/base.py",
        'if _origin(cls, "update") < _origin(cls, "coupling"):',
        'if _origin(cls, "update") > _origin(cls, "coupling"):',
        ("tests/test_declarations.py",),
    ),
    Fault(
        "a cell promises to couple no units, where a product in its update does",
        "cells",
        "rnnjax/cells/mgu.py",
        "return Coupling.ELEMENTWISE if self.reset_after else Coupling.ANY",
        "return Coupling.ELEMENTWISE",
        ("tests/test_declarations.py",),
    ),
    Fault(
        "prefix sums are chosen for a cell whose state may grow",
        "engine",
        "rnnjax/engine/auto.py",
        "cell.coupling is not Coupling.CONTRACTING",
        "cell.coupling < Coupling.AFFINE",
        ("tests/test_declarations.py", "tests/test_parallel.py"),
    ),
    Fault(
        "a field that is not compared is let through",
        "cells",
        "rnnjax/cells/base.py",
        "isinstance(value, dataclasses.Field) and not value.compare",
        "isinstance(value, dataclasses.Field) and value.compare is None",
        ("tests/test_arguments.py",),
    ),
    Fault(
        "a name that a cell does not take is dropped",
        "cells",
        "rnnjax/cells/base.py",
        "        unknown = [name for name in unknown if name not in takes]\n",
        "        unknown = []\n",
        ("tests/test_arguments.py",),
    ),
    Fault(
        "a cell is checked over a single axis of rows",
        "testing",
        "rnnjax/testing.py",
        "_BATCHES = (12,), (3, 2)\n",
        "_BATCHES = ((12,),)\n",
        ("tests/test_testing.py",),
    ),
    Fault(
        "a cell is checked without what comes back to its rows",
        "testing",
        "rnnjax/testing.py",
        "    gradients, out = derive(carry, x, params)\n",
        "    gradients, out = (carry, x, params), step(params, carry, x)\n",
        ("tests/test_testing.py",),
    ),
    Fault(
        "time gaps of a cell that is checked are below zero",
        "testing",
        "rnnjax/testing.py",
        "np.maximum(gaps, 0, out=gaps)",
        "np.maximum(gaps, -9, out=gaps)",
        ("tests/test_testing.py::test_a_kept_promise_passes",),
    ),
    Fault(
        "a coupling is checked at small states",
        "testing",
        "rnnjax/testing.py",
        "np.logspace(-2, 6, 64)",
        "np.logspace(-2, 2, 64)",
        ("tests/test_testing.py",),
    ),
    Fault(
        "what a masked step hands on has no gradient",
        "engine",
        "rnnjax/engine/fused/recurrence.py",
        "        d_carry = jax.tree.map(jnp.add, d_carry, d_old)\n",
        "",
        ("tests/test_sequence_laws.py::test_each_alone",),
    ),
    Fault(
        "the second bias has no gradient",
        "engine",
        "rnnjax/engine/fused/recurrence.py",
        '("bias", d_product), ("recurrent_bias", d_recurrent)',
        '("bias", d_product),',
        ("tests/test_fused_forms.py::test_kernels_that_leave_the_cache",),
    ),
    Fault(
        "raw inputs have no gradient",
        "engine",
        "rnnjax/engine/fused/recurrence.py",
        "d_raw = d[..., d_product.shape[-1] :].astype(xs.dtype)",
        "d_raw = jnp.zeros_like(xs[..., -layer.cell.raw_inputs :])",
        ("tests/test_raw_inputs.py::test_every_method_gives_the_numbers_of_the_step",),
    ),
    Fault(
        "a triangular system is solved backwards by the blocks before, not after",
        "engine",
        "rnnjax/engine/parallel/chunkwise.py",
        "known[..., end:, start:end].mT, x)",
        "known[..., end:, start:end].mT, 0 * x)",
        ("tests/test_linear_family.py",),
    ),
    Fault(
        "what is erased by key is erased by the key itself",
        "engine",
        "rnnjax/engine/parallel/chunkwise.py",
        "below = jnp.tril(across(part * key), -1)",
        "below = jnp.tril(across(key), -1)",
        ("tests/test_functions.py::test_a_matrix_memory",),
    ),
    Fault(
        "an update is given all steps at once",
        "engine/parallel",
        "rnnjax/engine/parallel/linear_recurrence.py",
        "apply_update = jax.vmap(functools.partial(cell.apply_update, params))",
        "apply_update = functools.partial(cell.apply_update, params)",
        ("tests/test_declarations.py::test_an_update_is_given_one_step",),
    ),
    Fault(
        "an interval of a state space does not turn the state",
        "cells",
        "rnnjax/cells/lru.py",
        "interval * decay, interval * angle",
        "interval * decay, angle",
        ("tests/test_raw_inputs.py::test_intervals_of_a_state_space",),
    ),
    Fault(
        "a parameter that the step itself reads has the gradient of one step alone",
        "engine",
        "rnnjax/engine/fused/recurrence.py",
        "jax.tree.map(jnp.add, d_so_far, (d_used, d_start))",
        "(d_used, d_start)",
        ("tests/test_laws.py::test_law_1_in_float32",),
    ),
    Fault(
        "with keep_every no gradient goes on to the segment before",
        "engine",
        "rnnjax/engine/fused/method.py",
        "lambda carry, inputs: again(inputs, carry), carry, pieces",
        "lambda carry, inputs: again(inputs, jax.lax.stop_gradient(carry)), carry, pieces",
        ("tests/test_fused_forms.py::test_an_odd_number_of_steps_over",),
    ),
    Fault(
        "the gradient passes recurrent dropout as if nothing were dropped",
        "engine",
        "rnnjax/engine/fused/recurrence.py",
        "steps.drop_state(times_transposed(d_recurrent).astype(d_state.dtype))",
        "times_transposed(d_recurrent).astype(d_state.dtype)",
        ("tests/test_sequence_laws.py::test_noise_is_the_same_by_every_method",),
    ),
    Fault(
        "the slope of tanh is that of the sigmoid",
        "engine",
        "rnnjax/cells/activations.py",
        "_per_gate(activations, activated, sigmoid=0.0, tanh=-1.0)",
        "_per_gate(activations, activated, sigmoid=0.0, tanh=0.0)",
        ("tests/test_cells.py::test_gate_slopes_are_the_derivatives",),
    ),
    Fault(
        "in reverse the inputs of a few steps at a time are taken in the order of time",
        "engine",
        "rnnjax/engine/fused/recurrence.py",
        "carry, cut((xs, per_step), length), reverse=self.reverse)",
        "carry, cut((xs, per_step), length))",
        ("tests/test_fused_forms.py::test_inputs_projected_a_few_steps_at_a_time",),
    ),
    Fault(
        "products of bfloat16 come out in bfloat16",
        "engine",
        "rnnjax/engine/fused/matmul.py",
        "preferred_element_type=at_least_float32(dtype)",
        "preferred_element_type=dtype",
        ("tests/test_fused_forms.py::test_sums_of_bfloat16_products_are_not_rounded_to_it",),
    ),
    Fault(
        "of what the rows of a vmap share, the gradient is that of the first",
        "engine",
        "rnnjax/engine/core/custom_primitive.py",
        "d if o else d.sum(axis=0)",
        "d if o else d[0]",
        ("tests/test_primitive.py::test_every_transformation",),
    ),
    Fault(
        "a program for another platform has the forms of the CPU",
        "engine",
        "rnnjax/engine/core/custom_primitive.py",
        "return jax.tree.leaves(_executed(call, platform, *flat))",
        'return jax.tree.leaves(_executed(call, "cpu", *flat))',
        ("tests/test_export.py::test_another_platform_gets_no_form_of_the_cpu",),
    ),
    # ---- layers
    Fault(
        "both directions read forward",
        "layers",
        "rnnjax/layers/bidirectional.py",
        "params[1], xs, carry[1], key=keys[1], reverse=True",
        "params[1], xs, carry[1], key=keys[1]",
        ("tests/test_sequence_laws.py::test_bidirectional_is_two_runs",),
    ),
    Fault(
        "all layers of a stack draw the same noise",
        "layers",
        "rnnjax/layers/stack.py",
        "jax.random.fold_in(key, i)",
        "jax.random.fold_in(key, 0)",
        ("tests/test_sequence_laws.py::test_each_cell_of_a_stack_draws_its_own",),
    ),
    Fault(
        "both directions draw the same noise",
        "layers",
        "rnnjax/layers/bidirectional.py",
        "keys = (None, None) if key is None else jax.random.split(key)",
        "keys = (key, key)",
        ("tests/test_sequence_laws.py::test_each_direction_draws_its_own",),
    ),
    Fault(
        "recurrent dropout drops the same units of all rows",
        "layers",
        "rnnjax/layers/regularized.py",
        "factors(key, self.recurrent_dropout, (*steps[1:], *units))",
        "factors(key, self.recurrent_dropout, units)",
        ("tests/test_sequence_laws.py::test_recurrent_dropout_by_hand",),
    ),
    Fault(
        "dropout of a sequence draws anew at each step",
        "layers",
        "rnnjax/layers/dropout.py",
        'shape = xs.shape if self.per == "step" else (1, *xs.shape[1:])',
        "shape = xs.shape",
        ("tests/test_sequence_laws.py::test_dropout_between_the_layers_of_a_stack",),
    ),
    Fault(
        "a learned carry is not where sequences begin",
        "layers",
        "rnnjax/layers/learned.py",
        '            params["initial_carry"],\n',
        "            self.cell.initial_carry(),\n",
        ("tests/test_sequence_laws.py::test_a_learned_carry_begins_every_sequence",),
    ),
    Fault(
        "the expectation of zoneout exchanges the old and the new",
        "layers",
        "rnnjax/engine/core/masking.py",
        "now + jnp.asarray(leak, now.dtype) * (before - now)",
        "before + jnp.asarray(leak, now.dtype) * (now - before)",
        ("tests/test_sequence_laws.py::test_zoneout_keeps_units",),
    ),
    Fault(
        "zoneout keeps the same units at all steps",
        "layers",
        "rnnjax/layers/regularized.py",
        "(steps[0], *getattr(carry, name).shape))",
        "(1, *getattr(carry, name).shape)).repeat(steps[0], 0)",
        ("tests/test_sequence_laws.py::test_zoneout_keeps_units",),
    ),
    Fault(
        "a prepared cell forgets its second bias",
        "layers",
        "rnnjax/layers/prepared.py",
        '            recurrent = cell.biased(recurrent, params, "recurrent_bias")\n',
        "",
        ("tests/test_prepare.py::test_every_form_computes_the_same_step",),
    ),
    Fault(
        "a kernel for inputs and state has them in the other order",
        "layers",
        "rnnjax/layers/prepared.py",
        "jnp.concatenate([x, state], axis=-1)",
        "jnp.concatenate([state, x], axis=-1)",
        ("tests/test_prepare.py::test_every_form_computes_the_same_step",),
    ),
    Fault(
        "a matrix memory is run step by step",
        "engine",
        "rnnjax/engine/auto.py",
        "if known and cell.has_memory:",
        "if not known and cell.has_memory:",
        ("tests/test_explain.py::test_auto_takes_products_for_a_matrix_memory",),
    ),
    Fault(
        "factors are stored however many rows there are",
        "engine",
        "rnnjax/engine/auto.py",
        "num_steps * rows * columns <= _FEW_NUMBERS",
        "num_steps * columns <= _FEW_NUMBERS",
        ("tests/test_parallel.py",),
    ),
    Fault(
        "a run on the cores goes on with others and says nothing",
        "training",
        "rnnjax/training/run_folder.py",
        'if about["devices"] != self.devices:',
        "if not about:",
        (
            "tests/experiments/test_scale.py::"
            "test_a_stopped_run_of_two_processes_goes_on_as_one_and_ends_like_it",
        ),
    ),
    # ---- wrappers
    Fault(
        "the wrappers return the carries of both directions in the wrong order",
        "wrappers",
        "rnnjax/layout.py",
        "return ((ahead, back), outputs) if return_carry",
        "return ((back, ahead), outputs) if return_carry",
        ("tests/test_nnx.py::test_bidirectional_equals_flax",),
    ),
    Fault(
        "outputs in the order of computation begin behind the last valid step",
        "wrappers",
        "rnnjax/layout.py",
        "jnp.where(times < lengths, lengths - 1 - times, times)",
        "jnp.where(times < lengths, lengths - times, times)",
        ("tests/test_linen.py::test_equals_flax",),
    ),
    Fault(
        "a cell of Flax's runs with its two functions exchanged",
        "wrappers",
        "rnnjax/layout.py",
        'options["recurrent_activation"] = module.gate_fn',
        'options["recurrent_activation"] = module.activation_fn',
        ("tests/test_linen.py::test_options_of_a_cell_are_heeded",),
    ),
    Fault(
        "a residual SimpleCell of Flax's runs without its hidden state",
        "wrappers",
        "rnnjax/layout.py",
        "recurrent = recurrent + jnp.eye(",
        "recurrent = recurrent + 0 * jnp.eye(",
        ("tests/test_linen.py::test_equals_flax",),
    ),
    # ---- packing
    Fault(
        "the last output of a packed sequence is the first of the next",
        "packing",
        "rnnjax/packing.py",
        "ys[self.starts + self.lengths - 1, self.rows]",
        "ys[(self.starts + self.lengths) % len(ys), self.rows]",
        ("tests/test_packing.py",),
    ),
    Fault(
        "the step before the end of a packed sequence begins a new one",
        "packing",
        "rnnjax/packing.py",
        "            resets[start + length, row] = True",
        "            resets[start + length - 1, row] = True",
        ("tests/test_packing.py",),
    ),
    # ---- training
    Fault(
        "a restored state has the optimiser of a new one",
        "training",
        "rnnjax/training/checkpoints.py",
        "return jax.tree.map(_like, TrainState(**plain), like)",
        "return TrainState(**vars(jax.tree.map(_like, TrainState(**plain), like)) | "
        "{'opt_state': jax.tree.map(jnp.zeros_like, like.opt_state)})",
        ("tests/training/test_fit.py::test_a_run_that_failed_goes_on_exactly",),
    ),
    Fault(
        "checkpoints do not hold the random key of the run",
        "training",
        "rnnjax/training/checkpoints.py",
        "lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf",
        "lambda leaf: 0 * jax.random.key_data(leaf) if _is_key(leaf) else leaf",
        ("tests/training/test_checkpoints.py::test_what_is_saved_comes_back_bit_for_bit",),
    ),
    Fault(
        "the checksums of a checkpoint's files are not compared",
        "training",
        "rnnjax/training/checkpoints.py",
        "if _checksum(path / name) != checksum:",
        "if not _checksum(path / name):",
        ("tests/training/test_checkpoints.py",),
    ),
    Fault(
        "a checkpoint whose own description is damaged is passed over without a word",
        "training",
        "rnnjax/training/checkpoints.py",
        "loss = -math.inf\n",
        "loss = math.inf\n",
        ("tests/training/test_checkpoints.py",),
    ),
    Fault(
        "what is renamed into its place is not on the disk yet",
        "training",
        "rnnjax/training/checkpoints.py",
        '            _to_disk(*new.rglob("*"), new)\n',
        "",
        ("tests/training/test_checkpoints.py",),
    ),
    Fault(
        "two processes may write to one run",
        "training",
        "rnnjax/training/files.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        ("tests/training/test_fit.py::test_two_processes_cannot_write_to_one_folder",),
    ),
    Fault(
        "a step that is skipped changes the optimiser",
        "training",
        "rnnjax/training/step.py",
        "(state.params, state.opt_state, state.carry),",
        "(state.params, opt_state, state.carry),",
        ("tests/training/test_step.py", "tests/training/test_fit.py"),
    ),
    Fault(
        "patience does not know the epoch before a stop",
        "training",
        "rnnjax/training/fitting.py",
        'self.history, self.means = about["history"], _Means(**about["means"])',
        'self.history, self.means = about["history"][:-1], _Means(**about["means"])',
        ("tests/training/test_fit.py",),
    ),
    Fault(
        "a resumed run reads the batches of its epoch from the first on",
        "training",
        "rnnjax/training/step.py",
        "jax.tree.map(lambda leaf: leaf[i], batches)",
        "jax.tree.map(lambda leaf: leaf[i - start], batches)",
        ("tests/training/test_step.py",),
    ),
    Fault(
        "steps that the mask leaves out count in the loss of a window",
        "training",
        "rnnjax/training/truncated.py",
        "counted = jnp.where(batch.counted, each, 0)",
        "counted = jnp.where(batch.counted, each, each)",
        ("tests/training/test_truncated.py",),
    ),
    Fault(
        "every device holds the whole of the optimiser's means",
        "training",
        "rnnjax/training/sharding.py",
        "                    return laid[names[start:], leaf.shape]\n",
        "                    return everywhere\n",
        (
            "tests/training/test_sharding.py::test_the_optimiser_lies_as_its_parameters_and_rules_decide",
        ),
    ),
    Fault(
        "rows that two processes have in common are taken twice",
        "training",
        "rnnjax/training/sharding.py",
        "if its_place != place and not constant:",
        "if its_place != place and constant:",
        ("tests/training/test_processes.py::test_what_one_cannot_do_ends_both",),
    ),
    Fault(
        "processes that do not find each other train each alone",
        "training",
        "rnnjax/training/processes.py",
        "        if not told:\n",
        "        if told:\n",
        ("tests/training/test_sharding.py::test_a_process_that_nobody_told_of_others_is_alone",),
    ),
    Fault(
        "Adam corrects the mean of the squares for a step too few",
        "training",
        "rnnjax/training/optimizers.py",
        "jnp.sqrt(1 - b2**t)",
        "jnp.sqrt(1 - b2**state.count)",
        ("tests/training/test_optimizers.py",),
    ),
    Fault(
        "an epoch that only equals the best one counts as better",
        "training",
        "rnnjax/training/hooks.py",
        "score < best - self.min_delta",
        "score <= best - self.min_delta",
        ("tests/training/test_hooks.py",),
    ),
    Fault(
        "a run that a hook ended goes on when it is called again",
        "training",
        "rnnjax/training/fitting.py",
        "(name in before if end is None else end)",
        "end",
        ("tests/training/test_hooks.py",),
    ),
    Fault(
        "a run that goes on reads its stream from the beginning",
        "training",
        "rnnjax/training/sources.py",
        "sum(1 for _ in itertools.islice(stream, first)) < first",
        "first < 0",
        ("tests/training/test_sources.py::test_a_run_goes_on_amid_an_epoch",),
    ),
    Fault(
        "the slowness penalty counts the pair across a reset",
        "training",
        "rnnjax/training/optimizers.py",
        "counted & ~resets[1:]",
        "counted & ~resets[:-1]",
        ("tests/training/test_penalties.py",),
    ),
    # ---- text
    Fault(
        "the temperature multiplies the logits",
        "text",
        "rnnjax/text/sampling.py",
        "keepdims=True)) / numbers.temperature",
        "keepdims=True)) * numbers.temperature",
        ("tests/text/test_sampling.py",),
    ),
    Fault(
        "top-k and top-p leave out the last character that they should keep",
        "text",
        "rnnjax/text/sampling.py",
        "    return jnp.where(below <= border, logits, -jnp.inf)\n",
        "    return jnp.where((below < border) | (below == 0), logits, -jnp.inf)\n",
        ("tests/text/test_sampling.py",),
    ),
    Fault(
        "the repetition penalty looks at the oldest characters",
        "text",
        "rnnjax/text/sampling.py",
        "known = known[max(0, len(known) - window) :]",
        "known = known[:window]",
        ("tests/text/test_sampling.py::test_the_penalty_looks_back_on_the_last_characters_alone",),
    ),
    Fault(
        "the ids of characters are those of the sorted vocabulary",
        "text",
        "rnnjax/text/vocabulary.py",
        "ids[self._code_points] = np.arange(len(self))",
        "ids[np.sort(self._code_points)] = np.arange(len(self))",
        ("tests/text/test_vocabulary.py",),
    ),
    Fault(
        "targets are the inputs themselves",
        "text",
        "rnnjax/text/batches.py",
        "ids[1 : length + 1].astype(np.int32)",
        "ids[:length].astype(np.int32)",
        ("tests/text/test_batches.py",),
    ),
    # ---- interop
    Fault(
        "the gates of a Keras GRU are read in Keras's order",
        "interop/keras",
        "rnnjax/interop/keras/arrays.py",
        'order = places("keras", owner)',
        "order = tuple(range(len(owner.gates)))",
        ("tests/interop/test_keras_models.py::test_weights_alone",),
    ),
    Fault(
        "the gates of a GRU are written to Keras in our order",
        "interop/keras",
        "rnnjax/interop/keras/arrays.py",
        'order = np.argsort(places("keras", unit.owner)).tolist()',
        "order = [*range(len(unit.owner.gates))]",
        ("tests/interop/test_keras_models.py::test_weights_alone",),
    ),
    Fault(
        "the gates of a Keras 1 LSTM are read in the order of the file",
        "interop/keras",
        "rnnjax/interop/keras/arrays.py",
        "{4: (0, 2, 1, 3), ",
        "{4: (0, 1, 2, 3), ",
        ("tests/interop/test_keras_old_files.py::test_keras_1",),
    ),
    Fault(
        "an exported step begins anew in each call",
        "interop",
        "rnnjax/interop/serving.py",
        "lambda carry, xs: model(xs, carry)",
        "lambda carry, xs: model(xs)",
        ("tests/test_export.py::test_a_model_is_one_program_with_its_state",),
    ),
    Fault(
        "a layer of Keras that begins with states is given the mask",
        "interop/keras",
        "rnnjax/interop/keras/graph.py",
        "natural = not use.states or self.version < 3",
        "natural = True",
        ("tests/interop/test_keras_graphs.py::test_a_graph_computes_what_keras_does",),
    ),
    Fault(
        "an average over all steps has the padding in it",
        "interop/keras",
        "rnnjax/interop/keras/operators.py",
        "if mask is None:\n        return x.mean(1)",
        "if True:\n        return x.mean(1)",
        ("tests/interop/test_keras_graphs.py::test_a_graph_computes_what_keras_does",),
    ),
    Fault(
        "a graph of Keras is written with the weights that it was read with",
        "interop/keras",
        "rnnjax/interop/keras/writing.py",
        "arrays[one] = array.astype(arrays[one].dtype)",
        "arrays[one] = arrays[one]",
        ("tests/interop/test_keras_graphs.py::test_a_graph_computes_what_keras_does",),
    ),
    Fault(
        "data with batch first is turned on its way in alone",
        "interop",
        "rnnjax/interop/model.py",
        "ys = [_turned(flow.xs, self.time_first or not flow.sequence) for flow in flows]",
        "ys = [flow.xs for flow in flows]",
        ("tests/interop/test_keras_graphs.py::test_axes_of_the_source",),
    ),
    Fault(
        "arrays in bfloat16 are written to HDF5 without saying so",
        "interop/keras",
        "rnnjax/interop/keras/files.py",
        "            if array.dtype == jnp.bfloat16:\n"
        '                dataset.attrs["dtype"] = "bfloat16"\n',
        "",
        ("tests/interop/test_keras_models.py::test_bfloat16",),
    ),
    Fault(
        "the second of two biases is lost on the way to Keras and Flax",
        "interop",
        "rnnjax/interop/arrays.py",
        'np.asarray(one["bias"]) + np.asarray(second)',
        'np.asarray(one["bias"])',
        ("tests/interop/test_torch_pickles.py::test_formats_of_one_bias_get_the_sum",),
    ),
    Fault(
        "the two biases of a PyTorch GRU are read the wrong way round",
        "interop/torch",
        "rnnjax/interop/torch/modules.py",
        '"bias": "bias_ih",\n        "recurrent_bias": "bias_hh",',
        '"bias": "bias_hh",\n        "recurrent_bias": "bias_ih",',
        ("tests/interop/test_torch.py",),
    ),
    Fault(
        "a layer is written to PyTorch with its kernels as they lie here",
        "interop/torch",
        "rnnjax/interop/torch/modules.py",
        'np.array(arrays[ours].T if ours.endswith("kernel") else arrays[ours], order="C")',
        'np.array(arrays[ours], order="C")',
        ("tests/interop/test_torch.py::test_our_models_load_strictly_and_compute_the_same",),
    ),
    Fault(
        "tensors in files of PyTorch are read in the order in which they lie",
        "interop/torch",
        "rnnjax/interop/torch/saved.py",
        "[step * storage.itemsize for step in steps]",
        "None",
        ("tests/interop/test_torch_pickles.py::test_drawn_files_are_read_to_the_bit",),
    ),
    Fault(
        "the order of bytes of a file of PyTorch is overlooked",
        "interop/torch",
        "rnnjax/interop/torch/saved.py",
        "flat.byteswap() if swapped else flat",
        "flat",
        ("tests/interop/test_torch_pickles.py::test_drawn_files_are_read_to_the_bit",),
    ),
    Fault(
        "entries of a file of PyTorch may lie in each other",
        "interop/torch",
        "rnnjax/interop/torch/saved.py",
        " or sum(sizes.values()) > length",
        "",
        ("tests/interop/test_torch_pickles.py::test_hostile_files_are_refused_in_a_sentence",),
    ),
    Fault(
        "a tensor may go on behind its storage",
        "interop/torch",
        "rnnjax/interop/torch/saved.py",
        "0 not in shape and last >= storage.size",
        "0 not in shape and last > storage.size",
        ("tests/interop/test_torch_pickles.py::test_hostile_pickles_are_refused_in_a_sentence",),
    ),
    Fault(
        "the two types of 16 bits in safetensors are taken for each other",
        "interop/torch",
        "rnnjax/interop/torch/files.py",
        '    "F16": np.float16,\n    "BF16": jnp.bfloat16,\n',
        '    "F16": jnp.bfloat16,\n    "BF16": np.float16,\n',
        ("tests/interop/test_torch_files.py::test_files_go_both_ways_to_the_bit",),
    ),
    Fault(
        "the gates of Flax's cells are read in the order of their names",
        "interop/flax",
        "rnnjax/layout.py",
        '{"kernel": _joined(tree, first, "kernel"), ',
        '{"kernel": _joined(tree, tuple(sorted(first)), "kernel"), ',
        ("tests/interop/test_flax.py",),
    ),
    Fault(
        "the gates of Flax's cells are written in the order of their names",
        "interop/flax",
        "rnnjax/interop/flax.py",
        "zip(names, kernels, biases, biased, strict=False)",
        "zip(sorted(names), kernels, biases, biased, strict=False)",
        ("tests/interop/test_flax.py::test_our_cells_run_in_flax",),
    ),
    Fault(
        "the gates of an ONNX LSTM are in our order",
        "interop/onnx",
        "rnnjax/interop/functions.py",
        '("LSTM", ("i", "o", "f", "g"))',
        '("LSTM", ("i", "f", "g", "o"))',
        ("tests/interop/test_onnx_export.py::test_every_cell",),
    ),
    Fault(
        "the second bias of an ONNX node is dropped",
        "interop/onnx",
        "rnnjax/interop/onnx/recurrent.py",
        'params["recurrent_bias"] = reordered(second, order, 0)',
        'params["recurrent_bias"] = 0 * reordered(second, order, 0)',
        ("tests/interop/test_onnx_nodes.py::test_some_drawn_nodes",),
    ),
    Fault(
        "two biases of an ONNX node are trained as one",
        "interop/onnx",
        "rnnjax/interop/onnx/read.py",
        '{"use_recurrent_bias": bool(second)}',
        '{"use_recurrent_bias": False}',
        ("tests/interop/test_onnx_import.py::test_fine_tuning_is_that_of_torch",),
    ),
    Fault(
        "the mean of a batch normalisation of ONNX is trained",
        "interop/onnx",
        "rnnjax/interop/onnx/read.py",
        "name in node.inputs[3:]",
        "name in node.inputs[5:]",
        ("tests/interop/test_onnx_import.py::test_what_is_no_weight_is_not_trained",),
    ),
    Fault(
        "each array of an ONNX graph is bounded, and not all of them",
        "interop/onnx",
        "rnnjax/interop/onnx/operators.py",
        'at.run.left["elements"] -= made',
        'at.run.left["elements"] -= 0',
        ("tests/interop/test_onnx_control.py::test_all_that_a_graph_makes_is_bounded",),
    ),
    Fault(
        "the counter of an ONNX loop is not known",
        "interop/onnx",
        "rnnjax/interop/onnx/control.py",
        "values: list[Any] = [state if is_known(state) else None for state in states]",
        "values: list[Any] = [None for _ in states]",
        ("tests/interop/test_onnx_control.py::test_a_loop_that_counts_in_a_state_runs",),
    ),
    Fault(
        "the exported softmax is over the batch",
        "interop/onnx",
        "rnnjax/interop/functions.py",
        '"Softmax", {"axis": -1})',
        '"Softmax", {"axis": 1})',
        ("tests/interop/test_onnx_export.py::test_the_reference_of_onnx_agrees",),
    ),
    Fault(
        "the last output of an exported row is that of the last step, not of its last valid one",
        "interop/onnx",
        "rnnjax/interop/onnx/export.py",
        'return self.add("Squeeze", end, self.ints(0))',
        'return self.add("Gather", ys, self.constant("i", np.int64(-1)), axis=0)',
        ("tests/interop/test_onnx_export.py::test_every_option",),
    ),
    Fault(
        "backwards a slice ends one step early",
        "interop/onnx",
        "rnnjax/interop/onnx/operators.py",
        "slice(start, end, max(step, -(2**63) + 1))",
        "slice(start, max(end, -x.shape[axis]), max(step, -(2**63) + 1))",
        ("tests/interop/test_onnx_nodes.py::test_a_slice_goes_backwards_to_the_first_step",),
    ),
    Fault(
        "the mean of a window counts what is around it",
        "interop/onnx",
        "rnnjax/interop/onnx/operators.py",
        'whole = bool(at.get("count_include_pad", 0))',
        'whole = not at.get("count_include_pad", 0)',
        ("tests/interop/test_onnx_nodes.py::test_windows_stand_where_onnx_has_them",),
    ),
    Fault(
        "what is converted to safetensors is written as a file of Keras",
        "interop/convert",
        "rnnjax/interop/convert.py",
        'torch.save if suffix == ".safetensors" else keras.save',
        "keras.save",
        ("tests/interop/test_convert.py::test_between_all_formats",),
    ),
    Fault(
        "all layers of a read model draw the same noise",
        "interop/convert",
        "rnnjax/interop/model.py",
        "key = None if context.key is None else jax.random.fold_in(context.key, i)",
        "key = context.key",
        ("tests/interop/test_model.py::test_each_layer_draws_its_own",),
    ),
    # ---- experiments
    Fault(
        "the alphabet's state is reset behind each letter",
        "experiments/alphabet",
        "experiments/alphabet/model.py",
        "carry = carry if self.config.stateful else self.cell.initial_carry()",
        "carry = self.cell.initial_carry()",
        ("tests/experiments/test_alphabet.py",),
    ),
    Fault(
        "the alphabet's state goes on into the next epoch",
        "experiments/alphabet",
        "experiments/alphabet/model.py",
        "            (params, opt_state, _), losses = jax.lax.scan(\n"
        "                update, (*state, self.cell.initial_carry()), (inputs, targets)\n"
        "            )\n"
        "            return (params, opt_state), losses.mean()\n"
        "\n"
        "        params = self.init(key)\n"
        "        (params, _), losses = jax.lax.scan(\n"
        "            epoch, (params, optimizer.init(params)), length=self.config.epochs\n"
        "        )\n",
        "            state, losses = jax.lax.scan(update, state, (inputs, targets))\n"
        "            return state, losses.mean()\n"
        "\n"
        "        params = self.init(key)\n"
        "        start = (params, optimizer.init(params), self.cell.initial_carry())\n"
        "        (params, *_), losses = jax.lax.scan(epoch, start, length=self.config.epochs)\n",
        ("tests/experiments/test_alphabet.py",),
    ),
    Fault(
        "the text to validate on is trained on as well",
        "experiments/text_generator",
        "experiments/text_generator/data.py",
        "ids[:validation], ids[validation:test], ids[test:]",
        "ids[:test], ids[validation:test], ids[test:]",
        ("tests/experiments/test_text_generator.py::test_the_parts_of_a_text_are_the_text",),
    ),
    Fault(
        "the preset on the command line is ignored",
        "experiments/text_generator",
        "experiments/text_generator/__main__.py",
        "return load_preset(known.preset)",
        'return load_preset("tutorial")',
        (
            "tests/experiments/test_text_generator_options.py::test_epochs_that_are_given_count_more_than_the_steps_of_a_preset",
        ),
    ),
    Fault(
        "the last character of the prime text is read twice",
        "experiments/text_generator",
        "experiments/text_generator/generate.py",
        "text[at : max(0, len(text) - 1)]",
        "text[at:]",
        ("tests/experiments/test_generation.py::test_every_filter_reaches_the_draws",),
    ),
    Fault(
        "the rows of an evaluation read their first character twice",
        "experiments/text_generator",
        "experiments/text_generator/model.py",
        "early = begins + np.arange(-_WARM_UP, 0)[:, None]",
        "early = begins + np.arange(1 - _WARM_UP, 1)[:, None]",
        (
            "tests/experiments/test_text_generator.py::test_each_row_of_an_evaluation_has_read_what_comes_before",
        ),
    ),
    Fault(
        "streams forget their state with the chance to keep it",
        "experiments/text_generator",
        "experiments/text_generator/model.py",
        "jax.random.bernoulli(forget_key, 1 - forget, (len(inputs), 1))",
        "jax.random.bernoulli(forget_key, forget, (len(inputs), 1))",
        ("tests/experiments/test_text_generator.py::test_the_loss_drops_and_forgets_in_training",),
    ),
    Fault(
        "nothing is dropped in training",
        "experiments/text_generator",
        "experiments/text_generator/model.py",
        "after, losses = model.losses(params, before, inputs, targets, key)",
        "after, losses = model.losses(params, before, inputs, targets)",
        ("tests/experiments/test_text_generator.py::test_the_loss_drops_and_forgets_in_training",),
    ),
    Fault(
        "it is the update that is clipped, and not the gradient",
        "experiments/text_generator",
        "experiments/text_generator/train.py",
        "optax.chain(optax.clip_by_global_norm(options.clip_norm), optimizer)",
        "optax.chain(optimizer, optax.clip_by_global_norm(options.clip_norm))",
        (
            "tests/experiments/test_text_generator_options.py::test_it_is_the_gradient_that_is_clipped",
        ),
    ),
    Fault(
        "the schedule counts updates for steps where gradients are accumulated",
        "experiments/text_generator",
        "experiments/text_generator/train.py",
        "step = updates * options.accumulate",
        "step = updates",
        (
            "tests/experiments/test_text_generator_options.py::test_a_cosine_ends_with_the_run_whatever_is_accumulated",
        ),
    ),
    Fault(
        "biases decay too",
        "experiments/text_generator",
        "experiments/text_generator/train.py",
        "lambda leaf: leaf.ndim > 1, params",
        "lambda leaf: leaf.ndim > 0, params",
        ("tests/experiments/test_text_generator_options.py::test_weights_decay_but_not_biases",),
    ),
    Fault(
        "padded sequences keep the lengths that they had before they were cut",
        "experiments/cookbook",
        "experiments/cookbook/common/data.py",
        "return array, np.minimum(lengths, length)",
        "return array, lengths",
        ("tests/experiments/cookbook/test_common.py",),
    ),
    Fault(
        "a program that misses its bound ends as if it had reached it",
        "experiments/cookbook",
        "experiments/cookbook/common/report.py",
        "return 0 if all(one.holds for one in self.accepts) else 1",
        "return 0",
        ("tests/experiments/cookbook/test_common.py",),
    ),
    Fault(
        "a unit's correlation is that of the blocks by which it was chosen",
        "experiments/text_tools",
        "experiments/text_tools/properties.py",
        "reported=_correlation(table[odd], states[odd]),",
        "reported=_correlation(table[~odd], states[~odd]),",
        ("tests/experiments/test_inspection.py",),
    ),
    Fault(
        "the T-maze exchanges the rewards of a wrong turn and of a step",
        "experiments/t_maze",
        "experiments/t_maze/environment.py",
        "[REWARD_GOAL, REWARD_WRONG_TURN, 0.0]",
        "[REWARD_GOAL, 0.0, REWARD_WRONG_TURN]",
        ("tests/experiments/test_t_maze.py",),
    ),
    Fault(
        "episodes of the T-maze end a step behind their limit",
        "experiments/t_maze",
        "experiments/t_maze/environment.py",
        "ended = turned | (time == self.step_limit)",
        "ended = turned | (state.time == self.step_limit)",
        ("tests/experiments/test_t_maze.py",),
    ),
    Fault(
        "advantages flow back over the end of an episode",
        "experiments/t_maze",
        "experiments/t_maze/training.py",
        "going_on = jnp.where(ended, 0.0, discount)",
        "going_on = discount",
        ("tests/experiments/test_t_maze.py",),
    ),
    Fault(
        "the T-maze punishes an unsure policy",
        "experiments/t_maze",
        "experiments/t_maze/training.py",
        "            - self.config.entropy_weight * entropy\n",
        "            + self.config.entropy_weight * entropy\n",
        ("tests/experiments/test_t_maze.py::test_the_loss_against_its_definition",),
    ),
    # ---- the linear family, all steps at once, online
    Fault(
        "an LRU takes its inputs in whole, however long it remembers",
        "cells/family",
        "rnnjax/cells/lru.py",
        "lets_in = gamma * real, gamma * imag",
        "lets_in = real, imag",
        ("tests/test_reference.py",),
    ),
    Fault(
        "an sLSTM begins with a stabilizer of zero",
        "cells/family",
        "rnnjax/cells/slstm.py",
        "kept = jnp.where(n == 0, i, f + m)",
        "kept = f + m",
        ("tests/test_linear_family.py",),
    ),
    Fault(
        "any numbers may be the carry of an sLSTM",
        "layers/family",
        "rnnjax/cells/composite.py",
        '        if hasattr(part, "free"):\n',
        "        if False:\n",
        ("tests/test_linear_family.py",),
    ),
    Fault(
        "an mLSTM divides by what it has of 1, not by 1",
        "cells/family",
        "rnnjax/cells/mlstm.py",
        "least = jnp.exp(-jnp.maximum(stabilizer, 0))",
        "least = jnp.exp(-jnp.maximum(0 * stabilizer, 0))",
        ("tests/test_reference.py",),
    ),
    Fault(
        "a chunk's memory keeps its stabilizer across a reset",
        "engine/matrices",
        "rnnjax/engine/parallel/chunkwise.py",
        "before = jnp.where(resets[..., None], start.stabilizer, before)",
        "before = jnp.where(resets[..., None], before, before)",
        ("tests/test_parallel.py",),
    ),
    Fault(
        "what a chunk erases of what stood there before has not decayed",
        "engine/matrices",
        "rnnjax/engine/parallel/chunkwise.py",
        "seen = part * keeps * key",
        "seen = part * key",
        ("tests/test_parallel.py",),
    ),
    Fault(
        "what a chunk reads behind a mask is divided by where it is empty",
        "engine/matrices",
        "rnnjax/engine/parallel/chunkwise.py",
        "reads = jnp.where(expand(valid, reads), reads, 1)",
        "pass",
        ("tests/test_testing.py::test_a_kept_promise_passes",),
    ),
    Fault(
        "a NaN before a reset goes into the products of a chunk",
        "engine/matrices",
        "rnnjax/engine/parallel/chunkwise.py",
        "return without(steps, memory), without(before, carry), spoils",
        "return memory, without(before, carry), spoils",
        ("tests/test_parallel.py::test_no_nan_crosses_a_reset",),
    ),
    Fault(
        "what stands behind the loop is read out of masked steps too",
        "engine/family",
        "rnnjax/engine/core/readout.py",
        "return zero_masked(ys, per_step.valid)",
        "return zero_masked(ys, None)",
        ("tests/test_linear_family.py",),
    ),
    Fault(
        "masked inputs go into the first product",
        "engine/masks",
        "rnnjax/engine/unroll.py",
        "    xs = zero_masked(xs, marks.valid)\n",
        "",
        ("tests/test_sequence_laws.py::test_whatever_is_masked_has_no_influence",),
    ),
    Fault(
        "a reset multiplies the state by zero, which leaves a NaN one",
        "engine/masks",
        "rnnjax/engine/core/masking.py",
        "lambda start, leaf: jnp.where(expand(resets, leaf), start, leaf), self.start, carry",
        "lambda start, leaf: (m := expand(resets, leaf)) * start + ~m * leaf, self.start, carry",
        ("tests/test_sequence_laws.py::test_a_reset_cuts_a_nan_off",),
    ),
    Fault(
        "Newton's states are taken, however far they are from the cell's own step",
        "engine/newton",
        "rnnjax/engine/parallel/newton.py",
        "states, ys = _unless(found.residual <= self._tolerance(carry), found.value, instead)",
        "states, ys = _unless(found.residual <= jnp.inf, found.value, instead)",
        ("tests/test_newton.py",),
    ),
    Fault(
        "what comes back through a step does so by its factors, and not their transpose",
        "engine/parallel",
        "rnnjax/engine/parallel/linear_recurrence.py",
        "element = transposed(factors), d_states, resets",
        "element = factors, d_states, resets",
        ("tests/test_parallel.py::test_prefix_sums_have_the_numbers_of_a_loop",),
    ),
    Fault(
        "the same on an accelerator",
        "engine/parallel",
        "rnnjax/engine/parallel/linear_recurrence.py",
        "back = transposed(factors)",
        "back = factors",
        ("tests/test_parallel.py::test_prefix_sums_have_the_numbers_of_a_loop",),
    ),
    Fault(
        "a state crosses a reset between two parts of a prefix sum",
        "engine/parallel",
        "rnnjax/engine/parallel/linear_recurrence.py",
        "first, constants = without(other[2], one[:2])",
        "first, constants = one[:2]",
        ("tests/test_parallel.py::test_a_reset_drops_whatever_came_before_it",),
    ),
    Fault(
        "a part of a prefix sum forgets that it has a reset",
        "engine/parallel",
        "rnnjax/engine/parallel/linear_recurrence.py",
        "both = None if cut is None or resets is None else cut | resets",
        "both = resets",
        ("tests/test_parallel.py::test_a_reset_drops_whatever_came_before_it",),
    ),
    Fault(
        "what comes back to a row crosses the step before which it begins anew",
        "engine/parallel",
        "rnnjax/engine/parallel/linear_recurrence.py",
        "return without(resets, like(times(factors, total), entering)), total",
        "return like(times(factors, total), entering), total",
        ("tests/test_parallel.py::test_prefix_sums_have_the_numbers_of_a_loop",),
    ),
    Fault(
        "what comes back to the state before the steps of a device is not sent on",
        "engine/parallel",
        "rnnjax/engine/parallel/linear_recurrence.py",
        "constants = [c.at[0].add(b) for c, b in zip(constants, d_before, strict=True)]",
        "",
        ("tests/test_parallel.py", "tests/test_shard_map.py"),
    ),
    Fault(
        "the start of a single row keeps its axis",
        "engine/parallel",
        "rnnjax/engine/core/masking.py",
        "per_step=per_step, start=start, recurrent=recurrent), carry",
        "per_step=per_step, recurrent=recurrent), carry",
        ("tests/test_parallel.py::test_a_single_row_begins_anew_from_a_carry_of_its_own",),
    ),
    Fault(
        "devices that divide the steps take each other's ends forward, in reverse too",
        "engine/parallel",
        "rnnjax/engine/parallel/linear_recurrence.py",
        "last, befores = jax.lax.scan(step, first, every, reverse=reverse)",
        "last, befores = jax.lax.scan(step, first, every)",
        ("tests/test_parallel.py",),
    ),
    Fault(
        "in reverse a reset at a device's first step is not that of the device before",
        "engine/parallel",
        "rnnjax/engine/unroll.py",
        "how.method.along.next(resets[:1])",
        "jnp.zeros_like(resets[:1])",
        ("tests/test_parallel.py",),
    ),
    Fault(
        "a kernel in reverse takes the steps of a block forward",
        "engine/kernel",
        "rnnjax/engine/pallas/tpu.py",
        "for k in range(block)[:: -1 if reverse else 1]:",
        "for k in range(block):",
        ("tests/test_kernel.py",),
    ),
    Fault(
        "a kernel whose last block is not full takes it for one that is",
        "engine/kernel",
        "rnnjax/engine/pallas/tpu.py",
        "if num_steps % block == 0:",
        "if num_steps % block < block:",
        ("tests/test_kernel.py",),
    ),
    Fault(
        "a GPU's kernel in reverse takes its steps forward",
        "engine/kernel",
        "rnnjax/engine/pallas/gpu.py",
        "t = num_steps - 1 - k if reverse else k",
        "t = k",
        ("tests/test_kernel.py",),
    ),
    Fault(
        "what the programs of a GPU's kernel sum is that of the first",
        "engine/kernel",
        "rnnjax/engine/pallas/gpu.py",
        "start + tiles.get(out.sum(axis=0), form.shape, rows)",
        "start + tiles.get(out[0], form.shape, rows)",
        ("tests/test_kernel.py",),
    ),
    Fault(
        "a kernel leaves out what a user's own cell rounds",
        "engine/kernel",
        "rnnjax/engine/pallas/interpreter.py",
        "return bits == (kind.nexp, kind.nmant)",
        "return bits <= (kind.nexp, kind.nmant)",
        ("tests/test_kernel.py",),
    ),
    Fault(
        "a program's products have the precision of where it is lowered",
        "engine",
        "rnnjax/engine/core/custom_primitive.py",
        "with jax.default_matmul_precision(self.precision):",
        "with jax.default_matmul_precision(context_precision()):",
        ("tests/test_primitive.py",),
    ),
    Fault(
        "rows that the types of arrays divide are gathered on every device",
        "engine",
        "rnnjax/cells/devices.py",
        "results = PartitionSpec(*rows), PartitionSpec(time, *rows)",
        "results = PartitionSpec(), PartitionSpec()",
        ("tests/test_shard_map.py",),
    ),
    Fault(
        "a method forgets the precision that it was given",
        "engine",
        "rnnjax/engine/unroll.py",
        "with how.method.precisely():",
        "with jax.default_matmul_precision(None):",
        ("tests/test_explain.py",),
    ),
    Fault(
        "parity asks for the number of zeros",
        "experiments/tasks",
        "experiments/tasks/data.py",
        "return _prefixes(bits, bits.cumsum(axis=0) % 2, shortest)",
        "return _prefixes(bits, (1 - bits).cumsum(axis=0) % 2, shortest)",
        ("tests/experiments/test_tasks.py::test_words_and_what_is_to_be_said_of_each_beginning",),
    ),
    Fault(
        "a kernel is lowered where XLA divides the program over devices",
        "engine/kernel",
        "rnnjax/engine/core/custom_primitive.py",
        "platform if alone else",
        "platform if True else",
        ("tests/test_kernel.py",),
    ),
    Fault(
        "what a parameter did before a reset goes on behind it",
        "online",
        "rnnjax/online.py",
        "without(reset, state.influence)",
        "without(None, state.influence)",
        ("tests/test_online.py",),
    ),
    Fault(
        "an online learner forgets what the steps before the last one did",
        "online",
        "rnnjax/online.py",
        "total += factor[..., None, None, :] * m",
        "total += 0 * factor[..., None, None, :] * m",
        ("tests/test_online.py",),
    ),
    Fault(
        "small networks with few rows are divided over the cores too",
        "training/cores",
        "rnnjax/training/sharding.py",
        "if largest * rows < _LEAST_WORK:",
        "if largest * rows < 0:",
        ("tests/training/test_cores.py",),
    ),
    # ---- benchmarks
    Fault(
        "ratios are those of the baseline to the others",
        "benchmarks",
        "benchmarks/reports.py",
        "[ours / theirs for ours, theirs in",
        "[theirs / ours for ours, theirs in",
        ("tests/test_benchmarks.py",),
    ),
    Fault(
        "a result that is not a number agrees with every baseline",
        "benchmarks",
        "benchmarks/timing.py",
        "if not result.distance <= question.allowed(contender):",
        "if result.distance > question.allowed(contender):",
        ("tests/test_benchmarks.py",),
    ),
    Fault(
        "the time of a step is that of all steps",
        "benchmarks",
        "benchmarks/questions/lengths.py",
        '1e6 * seconds / point.settings["shape"]["time"]',
        "1e6 * seconds",
        ("tests/test_benchmarks.py",),
    ),
)

if __name__ == "__main__":
    sys.exit(main())
