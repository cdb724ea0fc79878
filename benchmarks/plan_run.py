"""How near ``fairseq-star plan`` comes to the run that it plans: time an update, and peak memory.

    python manifests/demo/corpus.py demo/corpus
    python -m benchmarks.plan_run [--minutes 10] [--config-name demo] [OVERRIDE ...]

Plans a recipe, then trains it for as many updates as the plan says take so long, in a process of its own, without
validating or saving, which a plan does not count. A machine that is shared changes its speed within minutes, so the run
is halted for a further plan after each part (``--rounds``), and each plan is compared with the part that follows it. An
update's time is taken between the first and the last line that the run logs in a part, its peak from the kernel's count
of the process, without its data workers. Measure on an idle machine. Writes a dated .md and .json.
"""

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import ROOT, environment, heading, write_result
from fairseq_star.errors import StarError
from manifests.preparing import run_script

PEAK = "peak bytes:"
# The peak is told by the process itself: the kernel's count for its parent includes data workers, which begin as large.
TRAIN = f"""
from fairseq_cli.hydra_train import cli_main
from fairseq_star.runtime.job import process_bytes
cli_main()
print("{PEAK}", process_bytes("VmHWM"), flush=True)
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
    parser.add_argument("--rounds", type=int, default=4, help="plans, and parts of the run (default %(default)s)")
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
    planning = [PLAN, "plan", *recipe, *overrides, "--steps", options.steps, "--json"]
    plans = [json.loads(_output(planning))]
    part = max(2 * EVERY, round(options.minutes * 60 / plans[0]["seconds_an_update"] / options.rounds))
    training = [
        TRAIN, *recipe, *overrides, f"optimization.max_update={part * options.rounds}", "lr_scheduler.warmup_updates=1",
        "checkpoint.no_save=true", "dataset.disable_validation=true", "common.log_format=json",
        f"common.log_interval={EVERY}", "common.tensorboard_logdir=null",
    ]  # fmt: skip
    parts = []
    with Run(training) as run:
        for number in range(1, options.rounds + 1):
            parts.append(taken(run.until(number * part)))
            if number < options.rounds:
                with run.halted():
                    plans.append(json.loads(_output(planning)))
        peak = int(run.end().rpartition(PEAK)[2])
    rounds = [{"planned": plan["seconds_an_update"], "taken": own} for plan, own in zip(plans, parts, strict=True)]
    result = {
        "environment": made_with,
        "updates": part * options.rounds,
        "rounds": rounds,
        "time off": statistics.median(one["planned"] / one["taken"] - 1 for one in rounds),
        "MiB": {"planned": [plan["peak_bytes"] / 2**20 for plan in plans], "taken": peak / 2**20},
    }
    text = "\n".join([*heading(f"A plan and its run, {result['updates']:,} updates", made_with), *table(result)])
    write_result(options.out, f"plan-{made_with['date']}", text, result)
    print(text)


def table(result: dict) -> list[str]:
    """Markdown."""
    planned, peak = statistics.median(result["MiB"]["planned"]), result["MiB"]["taken"]
    lines = ["", "| | planned | taken | off |", "|---|--:|--:|--:|"]
    for number, one in enumerate(result["rounds"], 1):
        off = one["planned"] / one["taken"] - 1
        lines.append(f"| an update, s, part {number} | {one['planned']:.3f} | {one['taken']:.3f} | {off:+.1%} |")
    lines.append(f"| median | | | {result['time off']:+.1%} |")
    return [*lines, f"| peak memory, MiB | {planned:,.0f} | {peak:,.0f} | {planned / peak - 1:+.1%} |", ""]


class Run:
    """A training in a process of its own, which can be halted."""

    def __init__(self, arguments: list[str]):
        self.folder = tempfile.TemporaryDirectory()
        log = Path(self.folder.name) / "log"
        log.touch()
        self.log, self.text, self.seen = log.open(), "", 0  # characters of the text
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", *arguments], cwd=ROOT, stdout=file, stderr=file, start_new_session=True
            )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()
        self.folder.cleanup()

    def until(self, updates: int) -> str:
        """Wait for so many updates; what was logged since the last call.

        Raises:
            StarError: the run failed; with the last line of what it said.
        """
        while True:
            ended = self.process.poll() is not None
            self.text += self.log.read()
            if ended and self.process.returncode:
                raise StarError(f"plan_run: {(self.text.strip().splitlines() or ['no message'])[-1]}")
            new = self.text[self.seen :]
            if ended or any(int(line["num_updates"]) >= updates for line in logged(new)):
                self.seen = len(self.text)
                return new
            time.sleep(0.2)

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Stop all its processes meanwhile."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGCONT)

    def end(self) -> str:
        """Wait for the end; all that it said."""
        self.until(sys.maxsize)
        return self.text


def logged(log: str) -> list[dict]:
    """A log's lines of updates, in JSON; one that is still being written is left out."""
    whole = log[: log.rfind("\n") + 1]
    return [json.loads(line[line.index("{") :]) for line in whole.splitlines() if "[train_inner]" in line]


def taken(log: str) -> float:
    """Seconds an update between the first and the last line of a part of a run's log.

    Raises:
        StarError: the log has no two of them.
    """
    lines = logged(log)
    if len(lines) < 2:
        raise StarError("plan_run: the run's log has fewer than two lines; give more --minutes or fewer --rounds")
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
