"""One run of an ablation: a recipe as a method changes it, trained by fairseq in a process of its own."""

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

import yaml

from benchmarks.ablation_methods import UNITS_FILE, Method
from benchmarks.measure import ROOT
from benchmarks.recipes import read_recipe
from fairseq_star.checkpoint import read_checkpoint
from fairseq_star.errors import StarError
from fairseq_star.manifest import write_lines


def train(
    method: Method, seed: int, folder: Path, options: argparse.Namespace, *, every: int = 50, keep: int = 1
) -> None:
    """fairseq-hydra-train on the recipe as the method changes it; resumes what is there.

    Args:
        every, keep: updates between two saves, and how many of them stay beside the last (-1: all, and each epoch's,
            which fairseq saves instead where both fall together).

    Raises:
        StarError: the training ended with another status than 0, or early.
    """
    if _is_finished(folder / "checkpoint_last.pt", options.updates):
        return
    status = _run_fairseq(folder, _config(method, seed, folder, options, every, keep), options)
    if status or not _is_finished(folder / "checkpoint_last.pt", options.updates):
        raise StarError(f"ablation: training {folder.name} ended with status {status}; see {folder / 'train.log'}")


def fill_cache(method: Method, options: argparse.Namespace) -> None:
    """One epoch of a method, thrown away: after it no run's time has the teacher's in it.

    Raises:
        StarError: the training ended with another status than 0.
    """
    folder = options.out / "first_epoch"
    if (folder / "done").is_file():
        return
    config = _config(method, 0, folder, options, every=0, keep=1)
    config["optimization"] |= {"max_update": 0, "max_epoch": 1}
    config["lr_scheduler"] |= {"_name": "fixed", "warmup_updates": 0}
    config["checkpoint"]["no_save"] = True
    if status := _run_fairseq(folder, config, options):
        raise StarError(f"ablation: filling the teacher cache ended with status {status}; see {folder / 'train.log'}")
    (folder / "done").touch()


def _run_fairseq(folder: Path, config: dict, options: argparse.Namespace) -> int:
    """Its status; output and CPU time are kept in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text("# @package _group_\n" + yaml.safe_dump(config), encoding="utf-8")
    command = "from fairseq_cli.hydra_train import cli_main; cli_main()"
    arguments = ["--config-dir", str(folder), "--config-name", "recipe"]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(options.threads))
    before = _seconds_of_children()
    with open(folder / "train.log", "a", encoding="utf-8") as log:
        status = subprocess.run(
            [sys.executable, "-c", command, *arguments],
            cwd=ROOT, env={**os.environ, **threads}, stdout=log, stderr=subprocess.STDOUT, check=False,
        ).returncode  # fmt: skip
    write_lines(_seconds_file(folder), [f"{cpu_seconds(folder) + _seconds_of_children() - before:.1f}\n"])
    return status


def cpu_seconds(folder: Path) -> float:
    """CPU time that a run's training took, its start included: with one thread, seconds on a machine left to it."""
    path = _seconds_file(folder)
    return float(path.read_text(encoding="utf-8")) if path.is_file() else 0.0


def updates_of(checkpoint: Path) -> int:
    """How many updates a checkpoint has seen."""
    return read_checkpoint(str(checkpoint), "ablation")["optimizer_history"][-1]["num_updates"]


def recipe(options: argparse.Namespace) -> dict:
    """The config that all methods change."""
    return read_recipe(options.config)


def _config(method: Method, seed: int, folder: Path, options: argparse.Namespace, every: int, keep: int) -> dict:
    config = recipe(options)
    units = str(options.out / "units.npz")
    criterion = method.criterion | {
        "units": [units if name == UNITS_FILE else name for name in method.criterion.get("units", ())] or None
    }
    config["common"] |= {"seed": seed, "tensorboard_logdir": None, "user_dir": str(ROOT / "fairseq_star")}
    config["checkpoint"] |= {"save_dir": str(folder), "save_interval_updates": every, "keep_interval_updates": keep}
    config["checkpoint"]["no_epoch_checkpoints"] = keep != -1
    config["dataset"] |= {"num_workers": 0, "disable_validation": True}
    if options.batch_size:
        config["dataset"]["batch_size"] = options.batch_size
    config["optimization"]["max_update"] = options.updates
    config["lr_scheduler"]["warmup_updates"] = max(1, options.updates // 10)
    config["criterion"] |= criterion
    config["model"] |= method.model
    config["task"] |= {"data": str(options.train_data), "teacher": str(options.teacher), **method.task}
    if not method.needs_maps:
        config["task"]["teacher_cache"] = str(options.out / "teacher_cache")
    return config


def _seconds_file(folder: Path) -> Path:
    return folder / "cpu_seconds.txt"


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _is_finished(checkpoint: Path, updates: int) -> bool:
    return checkpoint.is_file() and updates_of(checkpoint) >= updates
