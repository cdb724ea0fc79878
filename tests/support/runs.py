"""fairseq's own trainer on a tiny student, in a process of its own or in several, and what it leaves behind."""

import os
import signal
import sys
from pathlib import Path
from subprocess import PIPE, CompletedProcess, Popen

import torch

from benchmarks.recipes import read_recipe
from tests.support import ROOT, tiny
from tests.support.preloaded import Process

TRAIN = "import sys; from fairseq_cli.hydra_train import cli_main; sys.argv[0] = 'fairseq-hydra-train'; cli_main()"
NO_DROPOUT = [f"model.{name}={share}" for name, share in tiny.NO_DROPOUT.items()]
GLOO = [
    "distributed_training.distributed_world_size=2", "distributed_training.distributed_backend=gloo",
    # fairseq's default, pytorch_ddp, names a GPU to torch also where common.cpu=true.
    "distributed_training.ddp_backend=legacy_ddp", "common.cpu=true",
]  # fmt: skip


def recipe(name: str) -> dict:
    """A recipe of configs/."""
    return read_recipe(ROOT / "configs" / f"{name}.yaml")


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


def start(arguments: list[str], *, preloaded: bool = True, start_new_session: bool = False) -> Process | Popen:
    """The process of a command; ``python -c ...`` with torch and fairseq imported beforehand, or from scratch."""
    if preloaded and arguments[:2] == [sys.executable, "-c"]:
        return Process(arguments[2], arguments[3:], start_new_session=start_new_session)
    return Popen(
        arguments, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stdout=PIPE, stderr=PIPE,
        start_new_session=start_new_session,
        # A shell lets what it runs in the background ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def run(arguments: list[str], *, preloaded: bool = True) -> CompletedProcess:
    process = start(arguments, preloaded=preloaded)
    stdout, stderr = process.communicate(timeout=300)
    return CompletedProcess(arguments, process.returncode, stdout, stderr)


def start_workers(folder: Path, arguments: list[str]) -> list[Process]:
    """The processes of one run, as a cluster would start them."""
    rendezvous = folder.with_name(f"{folder.name}.rendezvous")
    rendezvous.unlink(missing_ok=True)
    started_by_hand = [
        *GLOO, "distributed_training.distributed_no_spawn=true",
        f"distributed_training.distributed_init_method=file://{rendezvous}",
    ]  # fmt: skip
    return [start([*arguments, *started_by_hand, f"distributed_training.distributed_rank={rank}"]) for rank in (0, 1)]


def finish(processes: list[Process]) -> list[str]:
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return [stdout for stdout, _ in outputs]


def saved(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def difference(a: dict, b: dict) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a)
