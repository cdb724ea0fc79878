"""Before a sweep: its steps, disk and (from a few measured steps of each task) hours, or a SLURM job array of it."""

import copy
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from fairseq_star.errors import StarError
from fairseq_star.manifest import write_lines
from fairseq_star.superb import parsing
from fairseq_star.superb.experiment import Features, Run
from fairseq_star.superb.sweep import Sweep, disk, work
from fairseq_star.superb.tasks import Experiment

_SCRIPT = """#!/bin/bash
#SBATCH --job-name=superb
#SBATCH --array=0-{last}
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --output={out}/slurm-%A_%a.log
# An index an experiment; finished ones are skipped, so the whole array may be submitted again.
# Partition, account and time are your cluster's: sbatch --partition=... --time=... {script}
experiments=({names})
cd {here}
{command} --only "${{experiments[$SLURM_ARRAY_TASK_ID]}}"
"""

STORED = (
    " Hours are of steps whose features are stored; the first use of an utterance costs what it does without. "
    "Features of all audio would take {:.1f} GB of the {:.1f} allowed."
)


def plan(sweep: Sweep, measure: int) -> str:
    """Return a table of all experiments.

    Args:
        measure: steps to train each task for its hours, 0 for none. Files of that are removed.
    """
    seconds: dict[str, float | str] = {}
    stored = sweep.features is not None and sweep.features.limit
    if measure:
        layers = sweep.shape["layers"]
        for one in sweep.experiments():
            if one.task.needs_training and one.task.name not in seconds:
                if stored:
                    _measure(sweep, one, measure, layers)  # the same utterances, whose features are stored then
                seconds[one.task.name] = _measure(sweep, one, measure, layers)
        if stored:
            shutil.rmtree(_store(sweep).folder, ignore_errors=True)
    lines = ["| experiment | steps | utterances | disk GB | hours of training |", "|---|--:|--:|--:|--:|"]
    total_disk, hours = 0, 0.0
    for one in sweep.experiments():
        config = sweep.config(one)
        steps = config["runner"].get("total_steps", 0)
        took = seconds.get(one.task.name)
        time = f"{took * steps / 3600:.1f}" if isinstance(took, float) else took or "–"
        hours += took * steps / 3600 if isinstance(took, float) else 0
        total_disk += disk(one, config)
        utterances = f"{work(config):,}" if steps else "–"
        lines.append(f"| {one.name} | {steps:,} | {utterances} | {disk(one, config) / 1e9:.1f} | {time} |")
    lines.append(f"| all | | | {total_disk / 1e9:.1f} | {f'{hours:.1f}' if measure else '–'} |")
    lines.append(
        "\nDisk: checkpoints of heads of the published sizes. Hours: training alone, on this machine under its present "
        "load, without s3prl's evaluations on dev in between."
        + (STORED.format(sweep.feature_bytes() / 1e9, sweep.features.limit / 1e9) if stored else "")
        + ("" if measure else " `--measure 20` trains 20 steps of each task to estimate them.")
    )
    return "\n".join(lines)


def _measure(sweep: Sweep, experiment: Experiment, steps: int, layers: int) -> float | str:
    """Seconds a step, or the error."""
    folder = sweep.out / "plan" / experiment.name
    shutil.rmtree(folder, ignore_errors=True)
    config = copy.deepcopy(sweep.config(experiment))
    config["runner"] |= {"total_steps": steps, "log_step": steps, "eval_step": steps + 1, "save_step": steps + 1}
    run = Run(experiment, folder, config, sweep.toolkit, sweep.upstream, sweep.device, sweep.seed, layers, _wait,
              _store(sweep))  # fmt: skip
    try:
        run.perform(evaluate=False)
        found = parsing.steps_done(parsing.read([folder / "train.err"]))
    except StarError as error:
        return str(error)
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)
    return found[2] / found[0] if found and found[0] else "s3prl showed no progress"


def _store(sweep: Sweep) -> Features | None:
    """Store of the measurements, which is removed after them."""
    return sweep.features and replace(sweep.features, folder=sweep.out / "plan-features")


def _wait(phase: str, process: subprocess.Popen, err: object) -> None:
    process.wait()


def write_array(sweep: Sweep, command: list[str]) -> Path:
    """Write a SLURM job array to ``out/array.sbatch``, an index an experiment, and return its path.

    Args:
        command: this sweep's, without ``--slurm``.
    """
    names = list(dict.fromkeys(one.group for one in sweep.experiments()))
    path = sweep.out / "array.sbatch"
    text = _SCRIPT.format(
        last=len(names) - 1, out=shlex.quote(str(sweep.out)), script=shlex.quote(str(path)), names=" ".join(names),
        here=shlex.quote(str(Path.cwd())), command=shlex.join(command),
    )  # fmt: skip
    write_lines(path, [text])
    return path
