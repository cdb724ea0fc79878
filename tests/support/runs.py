"""fairseq's own trainer on a tiny student, in a process of its own or in several, and what it leaves behind."""

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from tests.support import ROOT, tiny

TRAIN = "import sys; from fairseq_cli.hydra_train import cli_main; sys.argv[0] = 'fairseq-hydra-train'; cli_main()"
NO_DROPOUT = [f"model.{name}=0.0" for name in ("dropout", "attention_dropout", "activation_dropout", "dropout_input")]
GLOO = [
    "distributed_training.distributed_world_size=2", "distributed_training.distributed_backend=gloo",
    # fairseq's default, pytorch_ddp, names a GPU to torch also where common.cpu=true.
    "distributed_training.ddp_backend=legacy_ddp", "common.cpu=true",
]  # fmt: skip


def hydra_arguments(
    data: Path, teacher: Path, save_dir: Path, *overrides: str, config="starhubert_100h", config_dir="configs"
) -> list[str]:
    """The README's command on a tiny student, three layers of 16, one batch of four utterances an update."""
    student = [f"+model.{name}={value!r}" for name, value in tiny.STUDENT.items() if name != "encoder_layers"]
    return [
        sys.executable, "-c", TRAIN, "--config-dir", str(config_dir), "--config-name", config,
        "common.user_dir=fairseq_star", f"task.data={data}", f"task.teacher={teacher}",
        "dataset.train_subset=train", "dataset.num_workers=0", "dataset.batch_size=4", "optimization.update_freq=[1]",
        f"checkpoint.save_dir={save_dir}", "common.tensorboard_logdir=null", "common.log_interval=1",
        "model.encoder_layers=3", *student,
        "optimization.max_update=6", "lr_scheduler.warmup_updates=2", *overrides,
    ]  # fmt: skip


def start(arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # A shell lets what it runs in the background ignore Ctrl-C, and children inherit that.
    hear_ctrl_c = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=hear_ctrl_c,
    )  # fmt: skip


def run(arguments: list[str]) -> subprocess.CompletedProcess:
    process = start(arguments)
    stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


def start_workers(folder: Path, arguments: list[str]) -> list[subprocess.Popen]:
    """The processes of one run, as a cluster would start them."""
    rendezvous = folder.with_name(f"{folder.name}.rendezvous")
    rendezvous.unlink(missing_ok=True)
    started_by_hand = [
        *GLOO, "distributed_training.distributed_no_spawn=true",
        f"distributed_training.distributed_init_method=file://{rendezvous}",
    ]  # fmt: skip
    return [start([*arguments, *started_by_hand, f"distributed_training.distributed_rank={rank}"]) for rank in (0, 1)]


def finish(processes: list[subprocess.Popen]) -> list[str]:
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return [stdout for stdout, _ in outputs]


def saved(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def difference(a: dict, b: dict) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a)
