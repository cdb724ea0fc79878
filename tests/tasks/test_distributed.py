"""Several processes: what one process computes, logs and stores, whoever starts them."""

import io
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from fairseq.distributed import utils as distributed_utils

import fairseq_star  # noqa: F401  (registers, as --user-dir does)
from tests.support import ROOT, runs
from tests.support.runs import GLOO, NO_DROPOUT, difference, finish, saved, start_workers

# Random crops, shuffling, Adam and the schedule are on. Clipping is not: with it a gradient of the wrong scale would
# pass. 13 utterances in batches of 2: the seventh batch has one, and in each epoch's last update a worker has nothing.
OPTIONS = [
    *NO_DROPOUT, "common.cpu=true", "dataset.batch_size=2", "optimization.clip_norm=0.0",
    "optimization.max_update=20", "optimization.lr=[1e-3]",
    "task.max_sample_size=12000", "checkpoint.save_interval_updates=8", "dataset.validate_interval_updates=8",
]  # fmt: skip


def logged(output: str, names=("loss", "layerwise", "intra_layer", "padding", "wpb", "bsz", "num_updates", "gnorm")):
    """What each update and each validation logged, as tuples of numbers."""
    lines = [line for line in output.splitlines() if "train_inner" in line]
    updates = [[float(re.search(rf" {name}=([\d.e+-]+)", line)[1]) for name in names] for line in lines]
    valid = [re.search(r"subset \| loss ([\d.]+)", line) for line in output.splitlines()]
    return updates, [float(found[1]) for found in valid if found]


@pytest.mark.parametrize("update_freq", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_two_processes_are_one_process(update_freq, uneven, teacher_path, tmp_path):
    """Weights after 20 updates, and all that is logged; the cache of the two holds each utterance once."""

    def arguments(name: str, update_freq: int, *options: str) -> list[str]:
        return runs.hydra_arguments(
            uneven, teacher_path, tmp_path / name, *OPTIONS, f"optimization.update_freq=[{update_freq}]", *options
        )

    [alone] = finish([runs.start(arguments("one", 2 * update_freq))])
    first, second = finish(start_workers(tmp_path / "two", arguments("two", update_freq)))
    one, two = (saved(tmp_path / name / "checkpoint_last.pt") for name in ("one", "two"))
    assert one["optimizer_history"][-1]["num_updates"] == two["optimizer_history"][-1]["num_updates"] == 20
    assert difference(one["model"], two["model"]) < 1e-5

    (updates, valid), (expected_updates, expected_valid) = logged(first), logged(alone)
    assert len(updates) == len(expected_updates) == 20
    assert len(valid) == len(expected_valid) >= 3
    for got, expected in zip(updates, expected_updates, strict=True):
        assert got == pytest.approx(expected, rel=1e-3, abs=2e-3)
    assert valid == pytest.approx(expected_valid, rel=1e-3)
    assert "train_inner" not in second, "the second worker repeats nothing"


def test_two_processes_share_a_teacher_cache(uneven, teacher_path, tmp_path):
    cache = tmp_path / "cache"
    arguments = runs.hydra_arguments(
        uneven, teacher_path, tmp_path / "run", *NO_DROPOUT, "dataset.batch_size=2", "optimization.max_update=4",
        f"task.teacher_cache={cache}",
    )  # fmt: skip
    finish(start_workers(tmp_path / "run", arguments))
    entries = {path: path.stat().st_mtime_ns for path in cache.rglob("*.states")}
    assert len(entries) == 13 + 3
    assert not list(cache.rglob("unfinished/*"))
    finish([runs.start([*arguments, f"checkpoint.save_dir={tmp_path / 'again'}"])])
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.states")} == entries, "computed anew"


# Launchers. fairseq counts GPUs in all of them; here two are pretended, and gloo on the CPU does the work.
PROGRAM = """
import sys, torch
torch.cuda.device_count = lambda: 2
torch.cuda.set_device = lambda device: None
from fairseq_cli.hydra_train import cli_main
if __name__ == "__main__":
    sys.argv[0] = "fairseq-hydra-train"
    cli_main()
"""


def launched(how: str, folder: Path, arguments: list[str]) -> list[subprocess.Popen]:
    program = folder / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(*command: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, *arguments, *GLOO], cwd=ROOT, env={**environment, **variables}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    if how == "torchrun":
        return [
            start(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program))
        ]
    if how == "spawn":
        return [start(sys.executable, str(program))]
    scontrol = folder / "bin" / "scontrol"  # what fairseq asks for the first node's name
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\necho localhost\n")
    scontrol.chmod(0o755)
    arguments = [*arguments, "distributed_training.distributed_port=29517"]
    slurm = {
        "SLURM_JOB_NODELIST": "node1", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "2",
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
    }  # fmt: skip
    return [
        start(sys.executable, str(program), **slurm, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in (0, 1)
    ]


def test_what_one_process_sends_the_others_when_resuming_is_allowed():
    """fairseq takes the tensors out of a checkpoint and sends the rest as a torch file (a whole resume is slow, in
    test_faults.py)."""
    tensors, buffer = [], io.BytesIO()
    sent = distributed_utils._split_tensors_from_obj({"model": {"weight": torch.ones(2)}}, tensors)
    torch.save(sent, buffer)
    buffer.seek(0)
    [weight] = distributed_utils._put_tensors_in_obj(torch.load(buffer), tensors)["model"].values()
    assert torch.equal(weight, torch.ones(2))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["spawn", "torchrun", "slurm"])
def test_launchers(how, uneven, teacher_path, tmp_path):
    options = [*NO_DROPOUT, "dataset.batch_size=2", "optimization.max_update=3"]
    _, _, _, *arguments = runs.hydra_arguments(uneven, teacher_path, tmp_path / "run", *options)
    output = "".join(finish(launched(how, tmp_path, arguments)))
    assert "training on 2 devices" in output
    assert [update[5] for update in logged(output)[0]] == [4, 3, 4], (
        "utterances of both workers; one is a batch by itself"
    )
    assert saved(tmp_path / "run" / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 3


def test_fsdp_without_fairscale_says_so(train):
    if find_spec("fairscale"):
        pytest.skip("fairscale is installed")
    finished = train("distributed_training.ddp_backend=fully_sharded")
    assert finished.returncode == 1
    assert "pip install fairscale" in finished.stderr


def test_the_slurm_script_is_warned_and_queues_itself_again(tmp_path):
    """With stand-ins for SLURM: USR1 becomes SIGTERM for srun, and status 0 after it means queue again."""
    called = tmp_path / "called"
    for name, script in {
        "srun": f'echo "srun $*" >> {called}\nif [ "$FAIL" ]; then exit 3; fi\ntrap "exit 0" TERM\nsleep 20 & wait',
        "scontrol": f'echo "scontrol $*" >> {called}',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_NTASKS": "16"}
    script = ["bash", str(ROOT / "configs" / "slurm.sbatch"), "starhubert_960h", "task.data=d"]
    job = subprocess.Popen(script, env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    while not called.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)  # the stand-in's trap
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == 0
    srun, scontrol = called.read_text().splitlines()
    assert "--config-name starhubert_960h" in srun
    assert "distributed_world_size=16" in srun
    assert srun.endswith("task.data=d")
    assert scontrol == "scontrol requeue 77"
    called.unlink()
    failed = subprocess.run(script, env={**environment, "FAIL": "1"}, timeout=60)
    assert failed.returncode == 3
    assert "requeue" not in called.read_text()
