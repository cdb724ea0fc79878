"""How near ``fairseq-star plan`` comes to the run that it plans: time an update, and peak memory.

    python manifests/demo/corpus.py demo/corpus
    python -m benchmarks.plan_run [--minutes 10] [--config-name demo] [OVERRIDE ...]

Plans a recipe, then trains it for as many updates as the plan says take so long, in a process of its own, without
validating or saving, which a plan does not count. An update's time is taken between the first and the last line of the
run's log, its peak from the kernel's count of the process, without its data workers. Measure on an idle machine. Writes
a dated .md and .json.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import ROOT, environment, heading, write_result
from fairseq_star.errors import StarError
from manifests.preparing import run_script

PEAK = "peak bytes:"
# The peak is told by the process itself: the kernel's count for its parent includes data workers, which begin as large.
TRAIN = f"""
from fairseq_cli.hydra_train import cli_main
from fairseq_star.profiling.memory import process_bytes
cli_main()
print("{PEAK}", process_bytes("VmHWM"))
"""
PLAN = "from fairseq_star.cli import main; import sys; main(sys.argv[1:])"
EVERY = 20  # updates between two lines of the log


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of the run (default %(default)s)")
    parser.add_argument("--config-dir", default=str(ROOT / "configs"), help="default: configs")
    parser.add_argument("--config-name", default="demo", help="recipe (default %(default)s)")
    parser.add_argument("--steps", default="5", help="of `plan` (default %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("overrides", nargs="*", help="as of fairseq-hydra-train (default: the demo corpus and teacher)")
    options = parser.parse_args(arguments)
    if not options.overrides:
        teacher = ROOT / "assets" / "demo_teacher" / "demo_hubert.pt"
        options.overrides = [f"task.data={ROOT / 'demo' / 'corpus'}", f"task.teacher={teacher}"]
    return options


def main(arguments: list[str] | None = None) -> None:
    """Plan, run, compare, write."""
    options = parse(arguments)
    made_with = environment("cpu", shlex.join(["python", "-m", "benchmarks.plan_run", *sys.argv[1:]]))
    recipe = ["--config-dir", options.config_dir, "--config-name", options.config_name]
    overrides = [f"common.user_dir={ROOT / 'fairseq_star'}", *options.overrides]
    planned = json.loads(_output([PLAN, "plan", *recipe, *overrides, "--steps", options.steps, "--json"]))
    updates = max(2 * EVERY, round(options.minutes * 60 / planned["seconds_an_update"]))
    log = _output(
        [
            TRAIN, *recipe, *overrides, f"optimization.max_update={updates}", "lr_scheduler.warmup_updates=1",
            "checkpoint.no_save=true", "dataset.disable_validation=true", "common.log_format=json",
            f"common.log_interval={EVERY}", "common.tensorboard_logdir=null",
        ]
    )  # fmt: skip
    found = taken(log)
    result = {
        "environment": made_with,
        "updates": updates,
        "planned": {"seconds": planned["seconds_an_update"], "MiB": planned["peak_bytes"] / 2**20},
        "taken": {"seconds": found, "MiB": int(log.rpartition(PEAK)[2]) / 2**20},
    }
    rows = []
    for name, unit in (("seconds", "an update, s"), ("MiB", "peak memory, MiB")):
        plan, run = result["planned"][name], result["taken"][name]
        rows.append(f"| {unit} | {plan:,.3f} | {run:,.3f} | {plan / run - 1:+.1%} |")
    title = f"A plan and its run, {updates:,} updates"
    lines = [*heading(title, made_with), "", "| | planned | taken | off |", "|---|--:|--:|--:|", *rows, ""]
    write_result(options.out, f"plan-{made_with['date']}", "\n".join(lines), result)
    print("\n".join(lines))


def taken(log: str) -> float:
    """Seconds an update between the first and the last line of a run's log, in JSON.

    Raises:
        StarError: the log has no two of them.
    """
    lines = [json.loads(line[line.index("{") :]) for line in log.splitlines() if "[train_inner]" in line]
    if len(lines) < 2:
        raise StarError("plan_run: the run's log has fewer than two lines; give more --minutes")
    first, last = ((float(line["num_updates"]), float(line["wall"])) for line in (lines[0], lines[-1]))
    return (last[1] - first[1]) / (last[0] - first[0])


def _output(arguments: list[str]) -> str:
    """What a Python command prints.

    Raises:
        StarError: it failed; with the last line of what it said.
    """
    process = subprocess.run([sys.executable, "-c", *arguments], cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        raise StarError(f"plan_run: {(process.stderr.strip().splitlines() or ['no message'])[-1]}")
    return process.stdout


if __name__ == "__main__":
    run_script(main)
