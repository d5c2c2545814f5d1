"""The page "From one core to many hosts": its program, started by each of its commands."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/do/many-hosts.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PROGRAM = next(block for language, block in BLOCKS if language == "python")
EPOCHS = 20
# What a launcher tells its two processes; {} is the number of each.
LAUNCHERS = {
    "srun": {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2",
             "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "{}", "SLURM_LOCALID": "{}"},
    "mpirun": {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
               "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "{}",
               "OMPI_COMM_WORLD_LOCAL_RANK": "{}"},
}  # fmt: skip
LAUNCHER = """#!{python}
import os, subprocess, sys
command = sys.argv[sys.argv.index("python"):]
told = [{{name: value.format(i) for name, value in {variables!r}.items()}} for i in range(2)]
running = [subprocess.Popen(command, env=os.environ | each) for each in told]
sys.exit(max(abs(process.wait()) for process in running))
"""


def commands(word):
    """The block of commands with that word in it."""
    (found,) = {block for language, block in BLOCKS if language == "sh" and word in block}
    return found


@pytest.fixture(scope="module")
def start(begin, free_port):
    """Start a block of the page in a folder that has its program."""

    def start(folder, block):
        (folder / "train.py").write_text(PROGRAM)
        for name, variables in LAUNCHERS.items():
            launcher = folder / "bin" / name
            launcher.parent.mkdir(exist_ok=True)
            launcher.write_text(LAUNCHER.format(python=sys.executable, variables=variables))
            launcher.chmod(0o700)
        path = [str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        own = {"PATH": os.pathsep.join(path), "JAX_ENABLE_COMPILATION_CACHE": "false"}
        port = str(free_port())
        command = ["bash", "-ec", block.replace("8476", port)]
        return begin(command, cwd=folder, JAX_COORDINATOR_PORT=port, **own)

    return start


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The losses on one device."""
    program = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("alone"))
        exec(PROGRAM.replace("Sharding.over()", "None"), program)
    found = [entry["loss"] for entry in program["result"].history]
    assert len(found) == EPOCHS
    assert found[-1] < found[0] / 2
    return found


@pytest.mark.slow  # test_processes starts another program as srun does
@pytest.mark.parametrize("word", ["srun", "JAX_PROCESS_ID", "mpirun", "JAX_NUM_CPU_DEVICES"])
def test_every_way_to_start_has_the_losses_of_one_device(word, tmp_path, start, alone):
    process = start(tmp_path, commands(word) + "wait\n")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    assert out.count(f"epoch {EPOCHS}:") == 1  # the first process alone prints
    lines = (tmp_path / "run/epochs.jsonl").read_text().splitlines()
    found = [json.loads(line)["loss"] for line in lines]
    np.testing.assert_allclose(found, alone, rtol=1e-4)
    about = json.loads((tmp_path / f"run/checkpoints/{8 * EPOCHS}/about.json").read_text())
    assert about["value"]["about"]["devices"] == (4 if "DEVICES" in word else 2)


def test_the_manifest_tells_each_pod_what_it_needs():
    yaml = pytest.importorskip("yaml")
    manifest = yaml.safe_load(next(block for language, block in BLOCKS if language == "yaml"))
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    told = {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
    name = manifest["metadata"]["name"]
    # As JobSet names its pods: set, job, which of its replicas, which pod; below its service.
    assert told["JAX_COORDINATOR_ADDRESS"] == f"{name}-{job['name']}-0-0.{name}:8476"
    assert spec["parallelism"] == spec["completions"] == int(told["JAX_NUM_PROCESSES"])
    assert spec["completionMode"] == "Indexed"
    assert "job-completion-index" in told["JAX_PROCESS_ID"]["fieldRef"]["fieldPath"]
