"""What a sweep will take: steps and disk at once, hours after a few measured steps of each task."""

import copy
import shutil
import subprocess

from fairseq_star.errors import StarError
from fairseq_star.superb import parsing
from fairseq_star.superb.experiment import Run
from fairseq_star.superb.sweep import Sweep, disk, work
from fairseq_star.superb.tasks import Experiment
from fairseq_star.superb.upstream import look_into


def plan(sweep: Sweep, measure: int) -> str:
    """A table of all experiments.

    Args:
        measure: steps that each task is trained to tell its hours; 0 for none. What it writes is removed.
    """
    seconds: dict[str, float | str] = {}
    if measure:
        layers = look_into(sweep.upstream, sweep.toolkit)["layers"]
        for one in sweep.experiments():
            if one.task.needs_training and one.task.name not in seconds:
                seconds[one.task.name] = _measure(sweep, one, measure, layers)
    lines = ["| experiment | steps | utterances heard | disk GB | hours of training |", "|---|--:|--:|--:|--:|"]
    total_disk, hours = 0, 0.0
    for one in sweep.experiments():
        config = sweep.config(one)
        steps = config["runner"].get("total_steps", 0)
        took = seconds.get(one.task.name)
        told = f"{took * steps / 3600:.1f}" if isinstance(took, float) else took or "–"
        hours += took * steps / 3600 if isinstance(took, float) else 0
        total_disk += disk(one, config)
        heard = f"{work(config):,}" if steps else "–"
        lines.append(f"| {one.name} | {steps:,} | {heard} | {disk(one, config) / 1e9:.1f} | {told} |")
    lines.append(f"| all | | | {total_disk / 1e9:.1f} | {f'{hours:.1f}' if measure else '–'} |")
    lines.append(
        "\nDisk: checkpoints of heads of the published sizes. Hours: training alone, on this machine as busy as it is; "
        "evaluations on dev, which s3prl runs in between, come on top."
        + ("" if measure else " `--measure 20` trains so many steps of each task to tell them.")
    )
    return "\n".join(lines)


def _measure(sweep: Sweep, experiment: Experiment, steps: int, layers: int) -> float | str:
    """Seconds a step; why not, where it failed."""
    folder = sweep.out / "plan" / experiment.name
    shutil.rmtree(folder, ignore_errors=True)
    config = copy.deepcopy(sweep.config(experiment))
    config["runner"] |= {"total_steps": steps, "log_step": steps, "eval_step": steps + 1, "save_step": steps + 1}
    run = Run(experiment, folder, config, sweep.toolkit, sweep.upstream, sweep.device, sweep.seed, layers, _wait)
    try:
        run.perform(evaluate=False)
        found = parsing.steps_done(parsing.read([folder / "train.err"]))
    except StarError as error:
        return str(error)
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)
    return found[2] / found[0] if found and found[0] else "s3prl showed no progress"


def _wait(phase: str, process: subprocess.Popen, err: object) -> None:
    process.wait()
