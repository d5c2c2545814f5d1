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
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300.0  # seconds for the tests of one fault
PACKAGES = ("rnnjax", "experiments", "benchmarks")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One planted fault."""

    name: str  # what is wrong, in a sentence
    room: str  # the file as a word, such as engine/auto
    path: str  # the file, from the root of the tree
    old: str  # what stands there, once
    new: str  # what is put in its place
    tests: tuple[str, ...]  # what should notice, as pytest takes it


class StaleFaultError(Exception):
    """The text that a fault replaces is no more, or stands there more than once."""


def planted(fault: Fault, text: str) -> str:
    """The text of the file with the fault in it.

    Raises:
        StaleFaultError: the fault has to be adapted to what the file has become.
    """
    if text.count(fault.old) != 1 or fault.old == fault.new:
        raise StaleFaultError(
            f"fault {fault.name!r}: its text no longer stands once in {fault.path}; adapt it in "
            f"TABLE of tests/faults.py, and run `python -m tests.faults {fault.room}`"
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
    for fault, noticed in zip(faults, caught, strict=True):
        if not noticed:
            print(f"not caught: {fault.name}")
    print(f"{sum(caught)} of {len(faults)} faults are caught")
    return 0 if sum(caught) >= enough * len(faults) else 1


# Each fault is a sentence, and a line of a file with its change, "{{old => new}}". Above stand the
# file and the tests that should notice, where they are others than those of the fault before.
CHANGE = re.compile(r"\{\{(.*?) => (.*?)\}\}", re.DOTALL)
TABLE = (
    "benchmarks/questions/lengths.py tests/test_benchmarks.py",
    "the time of a step is that of all steps",
    '1e6 * seconds{{ / point.settings["shape"]["time"] => }}',
    "benchmarks/reports.py",
    "ratios are those of the baseline to the others",
    "[{{ours / theirs => theirs / ours}} for ours, theirs in",
    "benchmarks/timing.py",
    "a result that is not a number agrees with every baseline",
    "if{{ not => }} result.distance {{<= => >}} question.allowed(contender):",
    "experiments/alphabet/model.py tests/experiments/test_alphabet.py",
    "the alphabet's state is reset behind each letter",
    "carry = {{carry if self.config.stateful else  => }}self.cell.initial_carry()",
    "the alphabet's state goes on into the next epoch",
    "{{(params, opt_state, _), => state,}} losses = jax.lax.scan(\n"
    "                update, {{(*state, self.cell.initial_carry()) => state}}, (inputs, targets)\n"
    "            )\n"
    "            return {{(params, opt_state) => state}}, losses.mean()\n\n"
    "        params = self.init(key)\n"
    "        (params, {{ => *}}_), losses = jax.lax.scan(\n"
    "            epoch, (params, optimizer.init(params){{ => , self.cell.initial_carry()}}),",
    "experiments/cookbook/tagging.py tests/experiments/cookbook/test_everyday.py",
    "padding changes the sum over all taggings",
    "return {{jnp.where(valid[:, None], after, before) => after}}, None",
    "experiments/cookbook/recommendation.py tests/experiments/cookbook/test_everyday.py",
    "a lane is reset one step late",
    "np.arange(len(one) - 1) == {{0 => 1}} for one in found",
    "experiments/cookbook/common/data.py tests/experiments/cookbook/test_common.py",
    "padded sequences keep the lengths that they had before they were cut",
    "return array, {{np.minimum(lengths, length) => lengths}}",
    "experiments/cookbook/common/report.py",
    "a program that misses its bound ends as if it had reached it",
    "return 0{{ if all(one.holds for one in self.accepts) else 1 => }}",
    "experiments/cookbook/common/dynamics.py tests/experiments/cookbook/test_dynamics.py",
    "exponents are of columns that are not made orthogonal again",
    "return (state, {{columns => pushed}}), jnp.log(jnp.abs(jnp.diagonal(triangle)))",
    "the memory by lag begins with the first input",
    "(slopes**2).sum(axis=(1, 3)).mean(axis=0))){{[::-1] => }}",
    "experiments/cookbook/dynamics.py",
    "Dale's law holds for what a neuron receives",
    'sign = signs(len(kernel := params["cell"]["recurrent_kernel"])){{ => .T}}',
    "experiments/forecast/intervals.py tests/experiments/forecast/test_intervals.py",
    "an interval is made of scores that are not known at its origin",
    "found[since : max(t + 1{{ - k => }}, since), :, k - 1]",
    "intervals go on as they were after a miss",
    "{{base * np.exp(excess) => base}}",
    "experiments/forecast/model.py tests/experiments/forecast/test_forecast.py",
    "a gap has a weight in the loss",
    "np.where({{known => True}}, then[:, None], len(place) + problem.horizon)",
    "how long a group trains is chosen by what comes behind its cut",
    "np.isfinite(each){{ & (then <= part.stop)[:, None] => }}",
    "experiments/language_models/blocks.py tests/experiments/language_models/test_attention.py",
    "a token sees those of the document before",
    "same = {{document.T[:, None, :, None] == seen.documents[:, :, None] => jnp.bool_(True)}}",
    "a window has a token more",
    "visible &= back {{< => <=}} window",
    "experiments/language_models/evaluate.py",
    "tests/experiments/language_models/test_commands.py"
    "::test_evaluate_counts_the_bits_of_the_whole_text",
    "every piece of a text begins anew",
    "model.params, {{begin if window else carry => begin}}, part[:-1]",
    "experiments/language_models/finetune.py",
    "tests/experiments/language_models/test_commands.py"
    "::test_what_is_frozen_stays_and_types_are_those_of_the_folder",
    "what is frozen decays all the same",
    'return {name: {{"kept" if name in frozen else  => }}"trained" for name in params}',
    "experiments/language_models/folders.py tests/experiments/language_models/test_folders.py",
    "a field of a config that nobody knows is let through",
    "if name not in self.known and value is {{not  => }}None:",
    "experiments/language_models/gated_delta.py"
    " tests/experiments/language_models/test_gated_delta.py",
    "queries of gated delta networks are divided by the root of another size",
    "Memory(q * c.{{memory_key_size => memory_value_size}}**-0.5",
    "experiments/language_models/generate.py",
    "tests/experiments/language_models/test_commands.py"
    "::test_generate_writes_the_most_probable_text",
    "the last token of a prompt is read twice",
    "carry = read_prompt(model, carry, ids[:{{-1 => }}])",
    "experiments/language_models/generate.py tests/experiments/language_models/test_commands.py",
    "the first piece of a text is decoded without its prompt",
    "text = Decoder(tokenizer, {{ids.tolist() => []}})",
    "experiments/language_models/folders.py tests/experiments/language_models/test_folders.py",
    "an id that ends a turn is not read",
    "if generation.is_file(){{ => and False}}:",
    "experiments/language_models/mamba.py tests/experiments/language_models/test_mamba.py",
    "a new document reads the convolution's window of the one before",
    '*blocks.taps(params, "conv1d"), window{{, resets=resets => }})',
    "experiments/language_models/mamba2.py tests/experiments/language_models/test_mamba2.py",
    "the norm of Mamba-2 is one of all groups",
    'blocks.rms_norm(params, "norm", y, c.epsilon{{, groups=c.groups => }})',
    "experiments/language_models/olmo_hybrid.py"
    " tests/experiments/language_models/test_olmo_hybrid.py",
    "the norm of a memory of Olmo Hybrid has the epsilon of the other norms",
    "params[c.embedding][tokens], {{dataclasses.replace(c, epsilon=EPSILON) => c}}",
    "beta of Olmo Hybrid ends at 1",
    'most_beta={{2 if fields.flag("linear_allow_neg_eigval", True) else  => }}1',
    "experiments/language_models/recurrent_gemma.py"
    " tests/experiments/language_models/test_recurrent_gemma.py",
    "the first token of a document is taken in as any other",
    "{{jnp.where(first[..., None], 1, root) => root}} * i * u",
    "experiments/language_models/rwkv7.py tests/experiments/language_models/test_rwkv7.py",
    "the first token of a document is mixed with that of the one before",
    "jnp.where({{resets[..., None] => False}}, 0, before)",
    "the rate scales the key at which RWKV-7 reads what it removes",
    "removal_query={{kappa => heads(rate) * kappa}}, removal_key",
    "experiments/language_models/texts.py tests/experiments/language_models/test_folders.py",
    "the parts of a long document lose a token between them",
    "document[at : at + length{{ + 1 => }}]",
    "a tokenizer cuts a corpus short where its file says so",
    "self.tokenizer.{{no_truncation => no_padding}}()",
    "experiments/language_models/xlstm.py tests/experiments/language_models/test_xlstm.py",
    "the stabilizer of xLSTM goes on from a document to the next",
    "kept = jnp.where(first, {{-jnp.inf => decay}}, decay)",
    "the normalizer of xLSTM is at least 1 of what is divided by the stabilizer's exponential",
    "jnp.maximum(jnp.abs(read[..., -1]), {{jnp.exp(-m) => 1}})",
    "experiments/t_maze/environment.py tests/experiments/test_t_maze.py",
    "the T-maze exchanges the rewards of a wrong turn and of a step",
    "[REWARD_GOAL, {{REWARD_WRONG_TURN, 0.0 => 0.0, REWARD_WRONG_TURN}}]",
    "episodes of the T-maze end a step behind their limit",
    "ended = turned | ({{ => state.}}time == self.step_limit)",
    "experiments/t_maze/training.py",
    "advantages flow back over the end of an episode",
    "going_on = {{jnp.where(ended, 0.0, discount) => discount}}",
    "tests/experiments/test_t_maze.py::test_the_loss_against_its_definition",
    "the T-maze punishes an unsure policy",
    "            {{- => +}} self.config.entropy_weight * entropy\n",
    "experiments/tasks/data.py",
    "tests/experiments/test_tasks.py::test_words_and_what_is_to_be_said_of_each_beginning",
    "parity asks for the number of zeros",
    "return _prefixes(bits, {{bits => (1 - bits)}}.cumsum(axis=0) % 2, shortest)",
    "experiments/tasks/data.py tests/experiments/test_tasks.py",
    "keys ask for the values of others",
    "np.put_along_axis(answers, at, {{values => values[::-1]}}, axis=0)",
    "a card is repeated a step too late",
    "*_said_last(suits[: longest + {{1 => 0}} - k])",
    "experiments/tasks/networks.py tests/experiments/test_published.py",
    "a Legendre unit reads its memory of the step before",
    "x[..., :-1] + {{memory => carry.cell}} @ params",
    "experiments/tasks/series.py tests/experiments/test_published.py",
    "NARMA10 sums nine values",
    "0.05 * y[t] * past{{ => [1:]}}.sum()",
    "Mackey-Glass reads a past that is a step too near",
    "for i in range(step * substeps, (step + 1) * substeps):\n"
    "            {{delayed = history[i => delayed = history[(i + 1)}} % len(history)].copy()",
    "a readout penalises its bias",
    "[penalty, {{0 * penalty[:, :1] => penalty[:, -1:]}}]",
    "experiments/text_generator/__main__.py",
    "tests/experiments/test_text_generator_options.py"
    "::test_epochs_that_are_given_count_more_than_the_steps_of_a_preset",
    "the preset on the command line is ignored",
    'return load_preset({{known.preset => "tutorial"}})',
    "experiments/text_generator/data.py",
    "tests/experiments/test_text_generator.py::test_the_parts_of_a_text_are_the_text",
    "the text to validate on is trained on as well",
    "ids[:{{validation => test}}], ids[validation:test], ids[test:]",
    "experiments/text_generator/generate.py",
    "tests/experiments/test_generation.py::test_every_filter_reaches_the_draws",
    "the last character of the prime text is read twice",
    "text[at{{ : max(0, len(text) - 1) => :}}]",
    "experiments/text_generator/model.py",
    "tests/experiments/test_text_generator.py"
    "::test_each_row_of_an_evaluation_has_read_what_comes_before",
    "the rows of an evaluation read their first character twice",
    "early = begins + np.arange({{- => 1 - }}_WARM_UP, {{0 => 1}})[:, None]",
    "tests/experiments/test_text_generator.py::test_the_loss_drops_and_forgets_in_training",
    "streams forget their state with the chance to keep it",
    "jax.random.bernoulli(forget_key, {{1 -  => }}forget, (len(inputs),))",
    "nothing is dropped in training",
    "after, losses = model.losses(params, before, inputs, targets{{, key => }})",
    "experiments/text_generator/train.py",
    "tests/experiments/test_text_generator_options.py::test_it_is_the_gradient_that_is_clipped",
    "it is the update that is clipped, and not the gradient",
    "chain({{ => optimizer, }}optax.clip_by_global_norm(options.clip_norm){{, optimizer => }})",
    "tests/experiments/test_text_generator_options.py"
    "::test_a_cosine_ends_with_the_run_whatever_is_accumulated",
    "the schedule counts updates for steps where gradients are accumulated",
    "step = updates{{ * options.accumulate => }}",
    "tests/experiments/test_text_generator_options.py::test_weights_decay_but_not_biases",
    "biases decay too",
    "lambda leaf: leaf.ndim > {{1 => 0}}, params",
    "experiments/text_tools/properties.py tests/experiments/test_inspection.py",
    "a unit's correlation is that of the blocks by which it was chosen",
    "reported=_correlation(table[{{ => ~}}odd], states[{{ => ~}}odd]),",
    "rnnjax/cells/activations.py tests/test_cells.py::test_gate_slopes_are_the_derivatives",
    "the slope of tanh is that of the sigmoid",
    "_per_gate(activations, activated, sigmoid=0.0, tanh={{-1 => 0}}.0)",
    "rnnjax/cells/base.py tests/test_declarations.py",
    "an update of one's own inherits the promise of the class above it",
    "if update {{< => >}} coupling:",
    "rnnjax/cells/declarations.py tests/test_arguments.py",
    "a field that is not compared is let through",
    "isinstance(value, dataclasses.Field) and {{not  => }}value.compare{{ =>  is None}}",
    "a name that a cell does not take is dropped",
    "    unknown = [{{name for name in unknown if name not in takes => }}]\n",
    "rnnjax/meshes.py tests/test_shard_map.py",
    "rows that the types of arrays divide are gathered on every device",
    "results = PartitionSpec({{*rows => }}), PartitionSpec({{time, *rows => }})",
    "rnnjax/cells/gru.py tests/test_reference.py",
    "the GRU exchanges z and 1 - z",
    "return GRUCarry({{(1 - z) * n + z => z * n + (1 - z)}} * h)",
    "rnnjax/cells/layernorm.py",
    "layer normalisation divides by the root of the mean square, not the standard deviation",
    "    variance = ({{centred * centred => x * x}}).mean(axis=-1, keepdims=True)\n",
    "tests/test_laws.py::test_law_13_every_number_can_learn_from_where_it_begins",
    "layer normalisation begins with gains of 0, so that nothing before them learns",
    'gain = Param(params["kernel"].shape[-1:], "{{ones => zeros}}")\n',
    "rnnjax/cells/lru.py tests/test_reference.py",
    "an LRU takes its inputs in whole, however long it remembers",
    "lets_in = {{gamma * real, gamma * => real,}} imag",
    "tests/test_declarations.py::test_intervals_of_a_state_space",
    "an interval of a state space does not turn the state",
    "decay, angle = -interval * jnp.exp(nu), {{interval *  => }}jnp.exp(theta)",
    "rnnjax/cells/lstm.py tests/test_cells.py::test_initial_parameters_have_the_defaults_of_keras",
    "recurrent kernels begin as Glorot's",
    ': bool = False\n    kernel_init: str | Initializer = "{{glorot_uniform => orthogonal}}"\n',
    "tests/test_reference.py",
    "the LSTM takes its forget gate for its candidate",
    "    i, {{f, g => g, f}}, o = jnp.split(activate_gates(",
    "rnnjax/cells/mgu.py",
    "the MGU with reset-before multiplies its gate behind the product",
    "else {{(f * h) => f * (h}} @ kernel_n{{ => )}}",
    "tests/test_declarations.py",
    "a cell promises to couple no units, where a product in its update does",
    "return Coupling.ELEMENTWISE{{ if self.reset_after else Coupling.ANY => }}",
    "rnnjax/cells/minimal.py tests/test_reference.py",
    "the minLSTM scales its gates by their exponentials",
    "jax.nn.sigmoid({{jax.nn.log_sigmoid(i) - jax.nn.log_sigmoid(f) => i - f}})",
    "rnnjax/cells/mlstm.py",
    "an mLSTM divides by what it has of 1, not by 1",
    "least = jnp.exp(-jnp.maximum({{ => 0 * }}stabilizer, 0))",
    "rnnjax/cells/peephole.py",
    "the output gate of the peephole LSTM sees the old memory",
    "activate_gates(o + p_o * {{ => carry.}}cell, (gate,))",
    "rnnjax/cells/products.py",
    "the convolutions of an even size are a place off",
    "return [({{ => size // 2, }}(size - 1) // 2{{, size // 2 => }}) for",
    "rnnjax/cells/simple.py",
    "a leaky unit keeps what it should lose",
    "{{ => self.leak * carry.hidden + }}(1 - self.leak) * {{carry.hidden + self.leak *  => }}",
    "rnnjax/cells/slstm.py tests/test_linear_family.py",
    "an sLSTM begins with a stabilizer of zero",
    "kept = {{jnp.where(n == 0, i, f + m) => f + m}}",
    "rnnjax/engine/auto.py tests/test_declarations.py tests/test_parallel.py",
    "prefix sums are chosen for a cell whose state may grow",
    "cell.coupling {{is not => <}} Coupling.{{CONTRACTING => AFFINE}}",
    "tests/test_explain.py::test_auto_takes_products_for_a_matrix_memory",
    "a matrix memory is run step by step",
    "if {{ => not }}known and cell.has_memory:",
    "tests/test_parallel.py",
    "factors are stored however many rows there are",
    "num_steps * {{rows *  => }}columns <= _FEW_NUMBERS",
    "rnnjax/engine/core/custom_primitive.py tests/test_primitive.py::test_every_transformation",
    "of what the rows of a vmap share, the gradient is that of the first",
    "d if o else d{{.sum(axis=0) => [0]}}",
    "tests/test_export.py::test_another_platform_gets_no_form_of_the_cpu",
    "a program for another platform has the forms of the CPU",
    'return jax.tree.leaves(_executed(call, {{platform => "cpu"}}, *flat))',
    "tests/test_primitive.py::test_no_residuals_are_stored_where_the_gradient_is_stopped",
    "residuals that no backward pass reads are stored",
    'if call.kind == "{{forward => backward}}" and not any(used[',
    "tests/test_explain.py::test_all_products_have_the_precision_of_the_method",
    "a program's products have the precision of where it is lowered",
    "with jax.default_matmul_precision({{self.precision => context_precision()}}):",
    "tests/test_kernel.py",
    "a kernel is lowered where XLA divides the program over devices",
    "platform if {{alone => True}} else",
    "rnnjax/engine/core/masking.py tests/test_reference.py",
    "in reverse the last output is held in the order of time",
    "jax.lax.scan(step, zeros, (ys, valid, resets){{, reverse=reverse => }})[1]",
    "the expectation of zoneout exchanges the old and the new",
    "{{now => before}} + jnp.asarray(leak, now.dtype) * ({{before - now => now - before}})",
    "tests/test_laws.py::test_law_1_unroll_equals_a_loop_of_step",
    "the final carry of a row is that behind its padding",
    "{{jax.tree.map(lambda o, n: jnp.where(expand(valid, n), n, o), old, new) => new}}",
    "tests/test_laws.py::test_law_3_a_reset_cuts_a_nan_off",
    "a reset multiplies the state by zero, which leaves a NaN one",
    "{{jnp.where( => (m := }}expand(resets, leaf){{, start, leaf) => ) * start + ~m * leaf}}, ",
    "tests/test_parallel.py::test_it_gives_the_numbers_of_the_scan",
    "the start of a single row keeps its axis",
    "per_step=per_step, {{start=start,  => }}recurrent=recurrent), carry",
    "rnnjax/engine/core/masking.py tests/test_linear_family.py",
    "the readout after the loop reads masked steps too",
    "return zero_masked(ys, {{per_step.valid => None}})",
    "rnnjax/engine/fused/matmul.py tests/test_reference.py",
    "one form of the product's gradient multiplies with the kernel untransposed",
    "contract(self._cast(rows), kernel, (1, {{1 => 0}})), d)",
    "tests/test_fused_forms.py::test_sums_of_bfloat16_products_are_not_rounded_to_it",
    "products of bfloat16 come out in bfloat16",
    "dtype = {{at_least_float32( => }}jnp.promote_types(left.dtype, right.dtype){{) => }}",
    "rnnjax/engine/fused/method.py tests/test_laws.py::test_law_1_unroll_equals_a_loop_of_step",
    "with keep_every no gradient goes on to the segment before",
    " carry, inputs: again(inputs, {{carry => jax.lax.stop_gradient(carry)}}), carry, pieces",
    "tests/test_laws.py::test_law_1_unroll_equals_a_loop_of_step",
    "the fast path resets a step late",
    "first, then = resets[0], {{jnp.concatenate([resets[1:], none]) => resets}}",
    "rnnjax/engine/fused/recurrence.py",
    "a parameter that the step itself reads has the gradient of one step alone",
    "{{jax.tree.map(jnp.add, d_so_far,  => }}(d_used, d_start){{) => }}",
    "what a masked step hands on has no gradient",
    "{{        d_carry = jax.tree.map(jnp.add, d_carry, d_old)\n => }}",
    "tests/test_reference.py::test_a_drawn_composition_equals_the_reference",
    "the backward loop subtracts what comes through the recurrent product",
    "d_state {{+ => -}}= steps.drop_state(",
    "the second bias has no gradient",
    '("bias", d_projected),{{ ("recurrent_bias", d_recurrent) => }}',
    "tests/test_declarations.py::test_what_only_an_update_reads_by_every_method",
    "raw features have no gradient",
    "_replace(raw={{d_raw => jax.tree.map(jnp.zeros_like, d_raw)}})",
    "tests/test_laws.py::test_law_6_noise_is_the_same_by_every_method",
    "the gradient passes recurrent dropout as if nothing were dropped",
    "{{steps.drop_state( => }}times_transposed(d_recurrent).astype(d_state.dtype){{) => }}",
    "tests/test_fused_forms.py::test_inputs_projected_a_few_steps_at_a_time",
    "in reverse the inputs of a few steps at a time are taken in the order of time",
    "split_time((xs, per_step), length){{, reverse=self.reverse => }}",
    "rnnjax/engine/fused/residuals.py tests/test_laws.py::test_law_1_unroll_equals_a_loop_of_step",
    "the derivative of a step finds what was kept in another order",
    "parts = dict(zip(self.written{{ => [::-1]}}, pieces, strict=True))",
    "rnnjax/engine/pallas/gpu.py tests/test_kernel.py",
    "a GPU's kernel in reverse takes its steps forward",
    "t = {{num_steps - 1 - k if reverse else  => }}k",
    "what the programs of a GPU's kernel sum is that of the first",
    "start + tiles.get(out{{.sum(axis=0) => [0]}}, form.shape, rows)",
    "rnnjax/engine/pallas/interpreter.py",
    "a kernel leaves out what a user's own cell rounds",
    "return bits {{= => <}}= (kind.nexp, kind.nmant)",
    "rnnjax/engine/pallas/tpu.py",
    "a kernel in reverse takes the steps of a block forward",
    "for k in range(block){{[:: -1 if reverse else 1] => }}:",
    "a kernel whose last block is not full takes it for one that is",
    "if num_steps % block {{== 0 => < block}}:",
    "rnnjax/engine/parallel/chunkwise.py tests/test_linear_family.py",
    "a triangular system is solved backwards by the blocks before, not after",
    "known[..., end:, start:end].mT, {{ => 0 * }}x)",
    "tests/test_functions.py::test_a_matrix_memory",
    "what is erased by key is erased by the key itself",
    "below = across({{part *  => }}key, key, decays)",
    "tests/test_testing.py::test_a_kept_promise_passes",
    "what a chunk reads behind a mask is divided by where it is empty",
    "{{reads = jnp.where(expand(valid, reads), reads, 1) => pass}}",
    "tests/test_parallel.py::test_no_nan_crosses_a_reset",
    "a NaN before a reset goes into the products of a chunk",
    "return {{without(steps, memory) => memory}}, without(before, carry), spoils",
    "tests/test_parallel.py",
    "a chunk's memory keeps its stabilizer across a reset",
    "before = jnp.where(resets[..., None], {{start.stabilizer => before}}, before)",
    "what a chunk erases of what stood there before has not decayed",
    "part * {{keeps *  => }}key, value",
    "tests/test_functions.py",
    "a removal is read after the decay of its step",
    "earlier = _decays({{jnp.roll(sums, 1, -3 if by_key else -2) => sums}}, strict, by_key)",
    "rnnjax/cells/matrix.py tests/test_functions.py",
    "heads that share a key take each other's",
    "leaf.reshape(*before, {{groups, size // groups => size // groups, groups}}, *after)",
    "rnnjax/engine/parallel/linear_recurrence.py",
    "devices that divide the steps take each other's ends forward, in reverse too",
    "last, befores = jax.lax.scan(step, first, every{{, reverse=reverse => }})",
    "tests/test_declarations.py::test_an_update_is_given_one_step",
    "an update is given all steps at once",
    "updated = {{jax.vmap( => }}functools.partial(apply_update, cell, params){{) => }}",
    "tests/test_parallel.py::test_prefix_sums_have_the_numbers_of_a_loop",
    "what comes back through a step does so by its factors, and not their transpose",
    "element = {{transposed(factors) => factors}}, d_states, resets",
    "the same on an accelerator",
    "back = {{transposed(factors) => factors}}",
    "what comes back to a row crosses the step before which it begins anew",
    "return{{ without(resets, => }} like(times(factors, total), entering){{) => }}, total",
    "tests/test_parallel.py::test_a_reset_drops_whatever_came_before_it",
    "a state crosses a reset between two parts of a prefix sum",
    "first, constants = {{without(other[2], one[:2]) => one[:2]}}",
    "a part of a prefix sum forgets that it has a reset",
    "both = {{None if earlier is None or resets is None else earlier |  => }}resets",
    "tests/test_parallel.py tests/test_shard_map.py",
    "what comes back to the state before the steps of a device is not sent on",
    "{{constants = [c.at[0].add(b) for c, b in zip(constants, d_before, strict=True)] => }}",
    "rnnjax/engine/core/validation.py",
    "in reverse a reset at a device's first step is not that of the device before",
    "{{along.next => jnp.zeros_like}}(self.resets[:1])",
    "tests/test_laws.py::test_law_1_unroll_equals_a_loop_of_step",
    "in reverse a reset cuts on the wrong side of its step",
    "{{concatenate([self.resets[1:], along.next(self.resets[:1])] => asarray(self.resets}}",
    "rnnjax/engine/unroll.py",
    "in reverse the mask is ignored",
    "    per_step = StepMarks({{ => None if reverse else }}valid, resets, noise.zoneout, raw)\n",
    "tests/test_reference.py",
    "masked inputs go into the first product",
    "{{    xs = zero_masked(xs, marks.valid)\n => }}",
    "tests/test_explain.py",
    "a method forgets the precision that it was given",
    "with {{how.method.precisely( => jax.default_matmul_precision(None}}):",
    "rnnjax/interop/c/__init__.py tests/interop/test_c.py",
    "the error of weights of 8 bits is measured on those that are not rounded",
    "int8.error(exact, {{closed => exact}}, ",
    "rnnjax/interop/c/lowering.py tests/interop/test_c.py",
    "a row of a table is looked up outside of it in C",
    "inside = ({{i >= 0 => i > 0}})",
    "the logarithm of a small gate is that of its rounded value in C",
    'if name == "log" and {{id(given[0]) in self._gates => not self._gates}}:',
    "rnnjax/interop/c/writer.py tests/interop/test_c.py",
    "a reshape forgets its order",
    'x.transpose({{p["dimensions"] or  => }}range(x.ndim))',
    "nothing minus a number is the number in C",
    "(1\\.0f \\*|0\\.0f {{\\+ => [+-]}})",
    "a new state overwrites the old one that is read after it",
    "if into and alike{{ and max(uses.get(into, [0])) <= first => }}:",
    "the entries of a table are taken for those of the old state",
    "alike = all({{not one.table and  => }}np.array_equal(at[0].places, one.places) for one in at)",
    "rnnjax/interop/layers.py tests/interop/test_c_models.py",
    "a layer that runs backward is written as C",
    "return {{not self.reverse and  => }}_runs_forward(self.cell)",
    "rnnjax/interop/keras/config.py",
    "tests/interop/test_keras_old_files.py::test_masks_of_keras_2_go_to_keras_3",
    "a mask that Keras 2 merged is not given to Keras 3",
    "({{isinstance(masks[0], list) or  => }}(call.states and call.mask))",
    "rnnjax/interop/keras/operators.py tests/interop/test_c_models.py",
    "a convolution of the past reads across a reset",
    "seen = sequence[:, first : first + time] {{== => <=}} sequence[:, lags:]",
    "rnnjax/interop/c/program.py tests/interop/test_c_models.py",
    "a decoder goes on from one step to the next in C",
    "if given or ({{layer.has_state if timeless else => timeless or}} not layer.streams):",
    "a graph may mix steps if it mixes no rows",
    "(any if {{jax.tree.leaves(start) => True}} else all)(verdicts)",
    "a state that is learned begins as zeros in C",
    "carry[name] = {{layer.cell.start(model.params[layer.name], (1,)) => carry[name]}}",
    "rnnjax/interop/arrays.py",
    "tests/interop/test_torch_files.py::test_formats_of_one_bias_get_the_sum",
    "the second of two biases is lost on the way to Keras and Flax",
    'one["bias"] = one["bias"]{{ + second => }}',
    "rnnjax/interop/convert.py tests/interop/test_convert.py::test_between_all_formats",
    "what is converted to safetensors is written as a file of Keras",
    '{{torch.save if suffix == ".safetensors" else  => }}keras.save',
    "rnnjax/interop/flax.py tests/interop/test_flax.py::test_our_cells_run_in_flax",
    "the gates of Flax's cells are written in the order of their names",
    "zip({{places => sorted(places)}}, np.split(arrays[name], len(places), axis=-1), strict=True)",
    "rnnjax/interop/functions.py tests/interop/test_onnx_export.py::test_every_cell",
    "the gates of an ONNX LSTM are in our order",
    '("LSTM", ("i", "{{o", "f", "g => f", "g", "o}}"))',
    "tests/interop/test_onnx_export.py::test_embedding_dropout_and_dense_layers",
    "the exported softmax is over the batch",
    '"Softmax", {"axis": {{- => }}1})',
    "rnnjax/interop/keras/arrays.py",
    "tests/interop/test_keras_graphs.py::test_a_graph_computes_what_keras_does",
    "a graph of Keras is written with the weights that it was read with",
    "arrays[one] = {{array.astype( => }}arrays[one]{{.dtype) => }}",
    "tests/interop/test_keras_graphs.py::test_a_graph_computes_what_keras_does",
    "the gates of a Keras GRU are read in Keras's order",
    'order = {{places("keras", owner => tuple(range(len(owner.gates))}})',
    "the gates of a GRU are written to Keras in our order",
    ' = {{np.argsort(places("keras",  => [*range(len(}}unit.owner{{)).tolist() => .gates))]}}',
    "tests/interop/test_keras_old_files.py::test_keras_1",
    "the gates of a Keras 1 LSTM are read in the order of the file",
    "{4: (0, {{2, 1 => 1, 2}}, 3), ",
    "rnnjax/interop/keras/files.py tests/interop/test_keras_models.py",
    "arrays in bfloat16 are written to HDF5 without saying so",
    "{{            if array.dtype == jnp.bfloat16:\n"
    '                dataset.attrs["dtype"] = "bfloat16"\n'
    " => }}",
    "rnnjax/interop/keras/graph.py",
    "tests/interop/test_keras_graphs.py::test_a_graph_computes_what_keras_does",
    "a layer of Keras that begins with states is given the mask",
    "natural = {{not use.states or self.version < 3 => True}}",
    "rnnjax/interop/keras/operators.py",
    "an average over all steps has the padding in it",
    "if {{mask is None => True}}:\n        return x.mean(1)",
    "additive attention multiplies queries and keys",
    "jnp.tanh(query[:, :, None] {{+ => *}} key[:, None])",
    "a mask ends at a layer that is applied at each step",
    "ys.reshape(*x.shape[:2], *ys.shape[1:]), {{flow.mask => None}})",
    "rnnjax/interop/model.py tests/interop/test_keras_graphs.py::test_axes_of_the_source",
    "data with batch first is turned on its way in alone",
    "[{{_turned(flow.xs, self.time_first or not flow.sequence) => flow.xs}} for flow in flows]",
    "tests/interop/test_model.py::test_each_layer_draws_its_own",
    "all layers of a read model draw the same noise",
    " = {{None if context.key is None else jax.random.fold_in(context.key, i) => context.key}}",
    "rnnjax/interop/onnx/control.py",
    "tests/interop/test_onnx_control.py::test_a_loop_that_counts_in_a_state_runs",
    "the counter of an ONNX loop is not known",
    ": list[Any] = [{{state if is_known(state) else  => }}None for {{state => _}} in states]",
    "rnnjax/interop/onnx/export.py tests/interop/test_onnx_export.py::test_every_option",
    "a node of ONNX that runs in reverse is written as one that runs forward",
    "op_type, attributes = attributes_to_onnx(cell, reverse={{reverse => False}})",
    "a node of ONNX takes no notice of the lengths",
    'inputs = [values[count], *held, "lengths" * {{lengths => False}}, *starts,',
    "rnnjax/interop/onnx/operators.py",
    "tests/interop/test_onnx_control.py::test_all_that_a_graph_makes_is_bounded",
    "each array of an ONNX graph is bounded, and not all of them",
    "at.run.left[at.budget] -= {{y.size => 0}} if is_fixed(y.size) else 0",
    "tests/interop/test_onnx_nodes.py::test_a_slice_goes_backwards_to_the_first_step",
    "backwards a slice ends one step early",
    "slice(start, {{end => max(end, -x.shape[axis])}}, min(max(step, 1 - 2**31), 2**31 - 1))",
    "tests/interop/test_onnx_nodes.py::test_windows_stand_where_onnx_has_them",
    "the mean of a window counts what is around it",
    'if {{ => not }}at.get("count_include_pad", 0):',
    "rnnjax/interop/onnx/read.py",
    "tests/interop/test_onnx_import.py::test_what_is_no_weight_is_not_trained",
    "the mean of a batch normalisation of ONNX is trained",
    '"BatchNormalization": {{3 => 5}}}',
    "rnnjax/interop/onnx/recurrent.py tests/interop/test_onnx_nodes.py::test_drawn_nodes",
    "the second bias of an ONNX node is dropped",
    'params["recurrent_bias"] = {{ => 0 * }}reordered(second, order, 0)',
    "tests/interop/test_onnx_import.py::test_fine_tuning_is_that_of_torch",
    "two biases of an ONNX node are trained as one",
    'options["use_recurrent_bias"] = {{bool(second) => False}}',
    "tests/interop/test_onnx_nodes.py::test_drawn_nodes",
    "the peepholes of an ONNX node are read in the order of the file",
    "P[i].reshape(3, -1){{[_PEEPHOLES] => }}",
    "rnnjax/interop/serving.py tests/test_export.py::test_a_model_is_one_program_with_its_state",
    "an exported step begins anew in each call",
    "model(xs{{, jax.tree.unflatten(tree, state) => }})",
    "rnnjax/interop/torch/files.py",
    "tests/interop/test_torch_files.py::test_an_index_that_does_not_fit_is_refused_in_a_sentence",
    "an index may name files outside of its folder",
    'set("{{/ => }}\\\\:\\0")',
    "tests/interop/test_torch_files.py::test_safetensors_go_both_ways_to_the_bit",
    "the two types of 16 bits in safetensors are taken for each other",
    '"F16": {{np.float16, "BF16": jnp.bfloat16 => jnp.bfloat16, "BF16": np.float16}}, "I64"',
    "rnnjax/interop/torch/modules.py tests/interop/test_torch.py",
    "the two biases of a PyTorch GRU are read the wrong way round",
    '"bias": "{{bias_ih => bias_hh}}",\n        "recurrent_bias": "{{bias_hh => bias_ih}}",',
    "tests/interop/test_torch.py::test_our_models_load_strictly_and_compute_the_same",
    "a layer is written to PyTorch with its kernels as they lie here",
    'np.array(arrays[ours]{{.T if ours.endswith("kernel") else arrays[ours] => }}, order="C")',
    "rnnjax/interop/torch/saved.py",
    "tests/interop/test_torch_files.py::test_drawn_files_are_read_to_the_bit",
    "tensors in files of PyTorch are read in the order in which they lie",
    "{{[step * storage.itemsize for step in steps] => None}}",
    "the order of bytes of a file of PyTorch is overlooked",
    "flat{{.byteswap() if swapped else flat => }}",
    "tests/interop/test_torch_files.py::test_hostile_files_are_refused_in_a_sentence",
    "entries of a file of PyTorch may lie in each other",
    "{{ or sum(sizes.values()) > length => }}",
    "tests/interop/test_torch_files.py::test_hostile_files_are_refused_in_a_sentence",
    "a tensor may go on behind its storage",
    "0 not in shape and last >{{= => }} storage.size",
    "rnnjax/layers/bidirectional.py tests/test_reference.py",
    "both directions read forward",
    "params[1], inputs[1], carry[1], key=keys[1]{{, reverse=True => }}",
    "tests/test_laws.py::test_each_cell_draws_its_own",
    "both directions draw the same noise",
    "keys = ({{None, None) if key is None else jax.random.split( => key, }}key)",
    "rnnjax/layers/dropout.py tests/test_laws.py::test_dropout_between_the_layers_of_a_stack",
    "dropout of a sequence draws anew at each step",
    'shape = xs.shape{{ if self.per == "step" else (1, *xs.shape[1:]) => }}',
    "rnnjax/layers/learned.py tests/test_arguments.py",
    "any numbers may be the carry of an sLSTM",
    'if {{hasattr(part, "free") => False}}:\n',
    "tests/test_reference.py",
    "a learned carry is not where sequences begin",
    '            {{params[" => self.cell.}}initial_carry{{"] => ()}},\n',
    "rnnjax/layers/prepared.py tests/test_prepare.py::test_every_form_computes_the_same_step",
    "a prepared cell takes the kernel of the inputs for that of the state",
    'self.states.multiply(state, params["{{recurrent_ => }}kernel"])',
    "a kernel for inputs and state has them in the other order",
    "jnp.concatenate([{{x, state => state, x}}], axis=-1)",
    "rnnjax/layers/regularized.py tests/test_laws.py::test_recurrent_dropout_by_hand",
    "recurrent dropout drops the same units of all rows",
    "factors(key, self.recurrent_dropout, {{(*steps[1:], *units) => units}})",
    "tests/test_laws.py::test_zoneout_keeps_units",
    "zoneout keeps the same units at all steps",
    "({{steps[0] => 1}}, *getattr(carry, name).shape)){{ => .repeat(steps[0], 0)}}",
    "rnnjax/layers/stack.py tests/test_laws.py::test_each_cell_draws_its_own",
    "all layers of a stack draw the same noise",
    "jax.random.fold_in(key, {{i => 0}})",
    "rnnjax/flax_cells.py tests/test_flax_wrappers.py::test_bidirectional_equals_flax",
    "the wrappers return the carries of both directions in the wrong order",
    "return (({{forward_carry, backward_carry => backward_carry, forward_carry}}), outputs) if",
    "tests/test_flax_wrappers.py::test_equals_flax",
    "outputs in the order of computation begin with the padding",
    "flip_sequences(leaf, {{ends => None}}, len(steps) - 1, True)",
    "a residual SimpleCell of Flax's runs without its hidden state",
    "] += {{ => 0 * }}jnp.eye(",
    "a cell of Flax's runs with its two functions exchanged",
    'options["recurrent_activation"] = {{gate_fn => activation_fn}}',
    "tests/interop/test_flax.py",
    "the gates of Flax's cells are read in the order of their names",
    "leaves.get(place, none) for place in {{among => sorted(among)}}]",
    "rnnjax/online.py tests/test_online.py",
    "what a parameter did before a reset goes on behind it",
    "without({{reset => None}}, state.influence)",
    "an online learner forgets what the steps before the last one did",
    "total += {{ => 0 * }}factor[..., None, None, :] * m",
    "rnnjax/packing.py tests/test_packing.py",
    "the last output of a packed sequence is the first of the next",
    "ys[{{ => (}}self.starts + self.lengths{{ - 1 => ) % len(ys)}}, self.rows]",
    "the step before the end of a packed sequence begins a new one",
    "resets[{{1: => :-1}}] |= mask[:-1] & ~mask[1:]",
    "rnnjax/testing.py tests/test_testing.py",
    "a cell is checked over a single axis of rows",
    "_BATCHES = ({{12,), (3, 2 => (12,),}})\n",
    "a cell is checked without what comes back to its rows",
    ", out = {{derive(carry, x, params => (carry, x, params), step(params, carry, x}})\n",
    "a coupling is checked at small states",
    "np.logspace(-2, {{6 => 2}}, 64)",
    "tests/test_testing.py::test_a_kept_promise_passes",
    "time gaps of a cell that is checked are below zero",
    "np.maximum(gaps, {{0 => -9}}, out=gaps)",
    "tests/test_testing.py::test_a_number_that_cannot_learn_from_where_it_begins_is_named",
    "a number that others wake as they learn is said to begin dead",
    "for _ in range({{3 => 0}}):\n",
    "a parameter of which half can learn is passed over",
    "if dead := np.{{sum => all}}(np.any(",
    "rnnjax/text/batches.py tests/text/test_batches.py",
    "targets are the inputs themselves",
    "found[..., {{1: => :-1}}].astype(np.int32)",
    "rnnjax/text/sampling.py tests/text/test_sampling.py",
    "the temperature multiplies the logits",
    'keepdims=True)) {{/ => *}} numbers["temperature"]',
    "top-k and top-p leave out the last character that they should keep",
    " jnp.where({{below <= border => (below < border) | (below == 0)}}, logits, -jnp.inf)\n",
    "tests/text/test_sampling.py::test_sequences_have_the_distribution_of_the_equations",
    "the repetition penalty looks at the oldest characters",
    "known = known[{{max(0, len(known) - window) : => :window}}]",
    "rnnjax/text/vocabulary.py tests/text/test_vocabulary.py",
    "the ids of characters are those of the sorted vocabulary",
    "enumerate({{ => sorted(}}self.characters{{ => )}})}",
    "rnnjax/training/checkpoints.py",
    "tests/training/test_fit.py::test_a_run_that_was_ended_goes_on_exactly",
    "a restored state has the optimiser of a new one",
    "return {{jax.tree.map(as_keys, state, like) => TrainState(**vars(jax.tree.map(as_keys, "
    "state, like)) | dict(opt_state=jax.tree.map(jnp.zeros_like, like.opt_state)))}}",
    "tests/training/test_checkpoints.py",
    "the checksums of a checkpoint's files are not compared",
    "if{{ =>  not}} _checksum(path / name){{ != checksum => }}:",
    "a checkpoint whose own description is damaged is passed over without a word",
    "loss = {{- => }}math.inf\n",
    "a run resumes from a format that this version does not know",
    'if known["format"] {{!= => is}} _FORMAT',
    "what is renamed into its place is not on the disk yet",
    '{{            to_disk(*new.rglob("*"), new)\n => }}',
    "rnnjax/training/files.py",
    "tests/training/test_fit.py::test_two_processes_cannot_write_to_one_folder",
    "two processes may write to one run",
    "fcntl.{{LOCK_EX => LOCK_SH}} | fcntl.LOCK_NB",
    "rnnjax/training/fitting.py tests/training/test_fit.py",
    "patience does not know the epoch before a stop",
    'self.history, self.means = about["history"]{{ => [:-1]}}, _Means(**about["means"])',
    "tests/training/test_sources.py",
    "rows that fill no batch are left out of validation",
    "if {{rest => False}} and isinstance(evaluate, Minibatches)",
    "a smaller batch of validation weighs as much as the others",
    "sources.append(({{left.size / evaluate.batch_size => 1.0}}, source))",
    "tests/training/test_hooks.py",
    "a hook keeps parameters that the next step donates",
    "        params = {{_copied(state.params, self.sharding) => state.params}}\n        shown",
    "a run that a hook ended goes on when it is called again",
    "{{(name in before if end is None else end) => end}}",
    "rnnjax/training/hooks.py",
    "an epoch that only equals the best one counts as better",
    "score <{{ => =}} best - self.min_delta",
    "rnnjax/training/optimizers.py tests/training/test_optimizers.py",
    "Adam corrects the mean of the squares for a step too few",
    "jnp.sqrt(1 - b2 ** (state.count{{ + 1 => }}))",
    "the slowness penalty counts the pair across a reset",
    "{{& ~resets[1:]) => & ~resets[:-1])}}",
    "rnnjax/training/processes.py",
    "tests/training/test_sharding.py::test_a_process_that_nobody_told_of_others_is_alone",
    "processes that do not find each other train each alone",
    "        if {{not  => }}told:\n",
    "tests/training/test_sharding.py::test_by_a_signal_the_first_process_ends_last",
    "process 0 ends first where a signal ends all processes",
    "{{            _end_last()\n => }}            signal.raise_signal(self.signal)",
    "rnnjax/training/run_folder.py",
    "tests/training/test_fit.py::test_a_run_elsewhere_goes_on_and_that_is_said",
    "a run on the cores goes on with others and says nothing",
    'if {{about["devices"] != self.devices => not about}}:',
    "rnnjax/training/sharding.py",
    "tests/training/test_sharding.py",
    "a mean of the parameters in the carry is divided like rows",
    "0 if divides {{and not like  => }}else None",
    "tests/training/test_processes.py::test_what_one_cannot_do_ends_both",
    "rows that two processes have in common are taken twice",
    "if other != index and {{not  => }}constant:",
    "tests/training/test_sharding.py",
    "small networks with few rows are divided over the cores too",
    "if largest * rows < {{_LEAST_WORK => 0}}:",
    "rnnjax/training/sources.py tests/training/test_sources.py::test_a_run_goes_on_amid_an_epoch",
    "a run that goes on reads its stream from the beginning",
    "{{sum(1 for _ in itertools.islice(stream, first)) < first => first < 0}}",
    "rnnjax/training/state.py",
    "tests/training/test_checkpoints.py::test_what_is_saved_comes_back_bit_for_bit",
    "checkpoints do not hold the random key of the run",
    "return {{ => 0 * }}jax.random.key_data(leaf) if is_key(leaf) else leaf",
    "rnnjax/training/step.py tests/training/test_step.py tests/training/test_fit.py",
    "a step that is skipped changes the optimiser",
    "(state.params, {{state. => }}opt_state, state.carry),",
    "tests/training/test_step.py",
    "a resumed run reads the batches of its epoch from the first on",
    "jax.tree.map(lambda leaf: leaf[i{{ =>  - start}}], batches)",
    "rnnjax/training/truncated.py tests/training/test_truncated.py",
    "steps that the mask leaves out count in the loss of a window",
    "counted = jnp.where(batch.counted, each, {{0 => each}})",
)


def read(table: Iterable[str]) -> Iterator[Fault]:
    """Yield the faults of the table."""
    path, tests, words = "", (), iter(table)
    for word in words:
        if "/" in word.split()[0]:
            named = word.split()
            path = named.pop(0) if not word.startswith("tests/") else path
            tests = tuple(named) or tests
        else:
            change = next(words)
            old, new = (CHANGE.sub(rf"\g<{side}>", change) for side in (1, 2))
            room = path.removeprefix("rnnjax/").removesuffix(".py")
            yield Fault(word, room, path, old, new, tests)


FAULTS = tuple(read(TABLE))

if __name__ == "__main__":
    sys.exit(main())
