"""What first weights sliced out of the teacher give beside random ones, judged by STaR's loss and by probes.

    python -m benchmarks.slicing [--suite seeds] [--out demo/slicing] [--updates 300] [--seeds 1 2 3] [--jobs 2]
    python -m benchmarks.slicing --suite curve --updates 3200 --seeds 1 --max-utterances 120 [--random-run demo/long]
    python -m benchmarks.slicing --suite hard --seeds 1 --teacher demo/long/checkpoint_best.pt  # after make demo-long
    python -m benchmarks.slicing --seeds 1 --data demo/real --batch-size 2 --out demo/slicing-real --name real

``seeds`` is the demo's student begun in both ways, ``curve`` a long run on its way beside one from random weights,
``hard`` a teacher that is narrow and well trained already, ``sizes`` smaller students, ``data`` little speech to slice
and train with, ``objectives`` what else a sliced student can be asked for, and ``steps`` what each step of slicing is
worth before any training. Random weights are trained as configs/demo.yaml says, sliced ones as configs/demo_sliced.yaml
does; both have a warm-up of a tenth of the updates, then one cosine. The loss is STaR's, layer-wise and intra-layer,
mean over the utterances of valid.tsv, each processed alone. Phones and keywords are probed as by ``fairseq-star probe
--seeds 0``, phones in ``seeds`` with all utterances. Real speech: ``python -m benchmarks.real_speech``. Finished runs
and probes are kept in OUT and not done again. Writes RESULTS/slicing-DATE-SUITE.md and .json after every run, and for
``curve`` a .png.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from benchmarks import ablation
from benchmarks.ablation_curve import draw
from benchmarks.measure import ROOT, environment, heading, write_result
from benchmarks.slicing_arms import RANDOM, SLICED, STEPS, arms_of
from benchmarks.slicing_measures import (
    POINTS,
    earlier_points,
    margin_kept,
    random_points,
    read_tasks,
    run_arm,
    run_curve,
    slice_untrained,
    teacher_name,
    teacher_row,
)
from fairseq_star.analysis.probe.run import TEACHER
from fairseq_star.errors import StarError
from fairseq_star.formats import load_teacher
from fairseq_star.runtime.names import KEYWORD, PHONE
from manifests.preparing import run_script

GOAL_LOSS, GOAL_PHONES = 90.0, 0.795  # of the sliced student after 300 updates, in every seed
GOAL_MARGIN = 0.99  # of the teacher's over random weights, at the end of the curve
SUITES = ("seeds", "curve", "sizes", "data", "objectives", "steps", "hard")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line (see the module's text), train, judge and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, conflict_handler="resolve"
    )
    ablation.add_arguments(parser)
    parser.add_argument("--suite", choices=SUITES, default="seeds", help="which students (default %(default)s)")
    parser.set_defaults(out=ROOT / "demo" / "slicing", updates=300, max_utterances=150, noisy=False, snrs=[])
    parser.add_argument(
        "--sliced-config", type=Path, default=ROOT / "configs" / "demo_sliced.yaml",
        help="default: configs/demo_sliced.yaml",
    )  # fmt: skip
    parser.add_argument("--random-run", type=Path, default=ROOT / "demo" / "long", help="of curve; default: demo/long")
    parser.add_argument(
        "--random-curve", type=Path, default=ROOT / "benchmarks" / "results" / "curve-2026-11-29.json",
        help="a curve of before: phones of a random run on its way (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--name", help="of the results (default: the suite's)")
    options = ablation.check(parser.parse_args(arguments))
    if options.suite in ("curve", "steps") and len(options.seeds) != 1:
        raise StarError(f"--suite {options.suite}: is of one seed; give one with --seeds")
    options.phone_utterances = None if options.suite == "seeds" else options.max_utterances
    read_tasks(load_teacher(str(options.teacher), option="--teacher"), options)  # are the labels right?
    about = environment("cpu", shlex.join(["python", "-m", "benchmarks.slicing", *(arguments or sys.argv[1:])]))
    report = {"curve": _curve, "steps": _steps}.get(options.suite, _students)
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), ablation.set_threads, (options.threads,)) as pool:
        print("\n".join(report(pool, about, options)))


def _students(pool: ProcessPoolExecutor, about: dict, options: argparse.Namespace) -> list[str]:
    """Every student of a suite with every seed, and the teacher."""
    arms = arms_of(options, load_teacher(str(options.teacher), option="--teacher"))
    wanted = [(arm.name, seed) for arm in arms for seed in options.seeds]
    longest_first = sorted(arms, key=lambda arm: not arm.sliced)
    jobs = {pool.submit(teacher_row, options): TEACHER}
    jobs |= {
        pool.submit(run_arm, arm, seed, options): (arm.name, seed) for arm in longest_first for seed in options.seeds
    }
    done, lines = {}, []
    for job in tqdm(as_completed(jobs), options.suite, len(jobs), unit="run", disable=None):
        done[jobs[job]] = job.result()
        rows = [done[one] for one in wanted if one in done]
        lines = _told(students_table(rows, done.get(TEACHER), options), "Students sliced out of their teacher", about)
        _write(options, lines, {"environment": about, "students": rows, TEACHER: done.get(TEACHER)})
    return lines


def students_table(rows: Sequence[dict], teacher: dict | None, options: argparse.Namespace) -> list[str]:
    """Return the lines of Markdown for students and their teacher; the goals, where the suite is what they are of."""
    phones = "all" if options.phone_utterances is None else options.phone_utterances
    lines = [
        f"* {options.updates:,} updates; phones and keywords told right in %, 95 % intervals over test speakers; "
        f"probes of {phones} (phones) and {options.max_utterances} (keywords) training and test utterances",
        "",
        "| student | seed | parameters | GMACs | untrained: loss | phones | trained: loss | phones | keywords | "
        "CPU seconds | of them slicing (wall) |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        before, after, sliced = row.get("untrained"), row["trained"], row["slicing"]
        cells = [row["name"], row["seed"], f"{row['parameters'] / 1e6:.2f} M", f"{row['macs'] / 1e9:.1f}"]
        cells += [f"{before['loss']:,.1f}", _percent(before[PHONE])] if before else ["", ""]
        cells += [f"{after['loss']:,.1f}", _percent(after[PHONE]), _percent(after[KEYWORD])]
        cells += [f"{row['cpu_seconds']:.0f}", f"{sliced['wall_seconds']:.0f}" if sliced else ""]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if teacher:
        size = f"{teacher['parameters'] / 1e6:.2f} M | {teacher['macs'] / 1e9:.1f}"
        told = f"{_percent(teacher[PHONE])} | {_percent(teacher[KEYWORD])}"
        lines.append(f"| {TEACHER} | | {size} | | | | {told} | | |")
    sliced = [row["trained"] for row in rows if row["name"] == SLICED]
    if options.suite == "seeds" and sliced:
        loss, least = max(one["loss"] for one in sliced), min(one[PHONE][0] for one in sliced)
        lines += [
            "",
            f"Goals, in every seed: loss at most {GOAL_LOSS:g}: {_met(loss <= GOAL_LOSS)} (greatest {loss:.1f}); "
            f"phones at least {GOAL_PHONES:.1%}: {_met(least >= GOAL_PHONES)} (least {least:.2%}).",
        ]
    return lines


def _curve(pool: ProcessPoolExecutor, about: dict, options: argparse.Namespace) -> list[str]:
    """A long sliced run on its way, and one from random weights."""
    jobs = {SLICED: pool.submit(run_curve, options), TEACHER: pool.submit(teacher_row, options)}
    if (options.random_run / "checkpoint_last.pt").is_file():
        jobs[RANDOM] = pool.submit(random_points, options)
    found = {name: job.result() for name, job in jobs.items()}
    points, teacher = {name: found[name]["points"] for name in jobs if name != TEACHER}, found[TEACHER]
    earlier, margins = earlier_points(teacher[PHONE], options.random_curve), {}
    [seed], encoder = options.seeds, load_teacher(str(options.teacher), option="--teacher")
    folders = {
        SLICED: options.out / f"curve-{SLICED}-{seed}-{options.updates}",
        RANDOM: options.out / f"curve-{RANDOM}",
    }
    for name in points if RANDOM in points else ():
        end = folders[name] / f"point-{max(points[name])}"
        margins[name] = margin_kept(
            end, folders[RANDOM] / "point-0", options.out / teacher_name(options), encoder, options
        )
    lines = _told(curve_table(points, teacher, margins, options), "A sliced student over the updates", about)
    if earlier:
        told = "; ".join(f"{number:,}: {_percent(values)}" for number, values in earlier.items())
        lines += [f"Phones of an earlier run from random weights, {options.random_curve.name}: {told}.", ""]
    curves = {
        name: [(number, *one[PHONE]) for number, one in sorted(of_one.items())] for name, of_one in points.items()
    }
    if earlier:  # a run as long; its first weights are like those of the other
        curves[RANDOM] = [*curves.get(RANDOM, ())[:1], *((number, *values) for number, values in earlier.items())]
    _write(options, lines, {"environment": about, "margin_kept": margins, "earlier": earlier, **found})
    picture = options.results / f"{_result_name(options)}.png"
    draw({**curves, TEACHER: [(0, *teacher[PHONE])]}, picture, linear_to=POINTS[0])
    return lines


def curve_table(
    points: Mapping[str, Mapping[int, dict]], teacher: dict, margins: Mapping[str, Sequence[float] | None],
    options: argparse.Namespace,
) -> list[str]:  # fmt: skip
    """Return the lines of Markdown for students at some of their updates, and whether the goal is met."""
    lines = [
        f"* sliced: one run and one schedule of {options.updates:,} updates (warm-up of a tenth, then a cosine), seed "
        f"{options.seeds[0]}, judged on its way; phones and keywords told right in %, {options.max_utterances} "
        "training and test utterances",
        *([f"* random: {options.random_run.name}, judged before and after"] if RANDOM in points else []),
        "",
        "| first weights | updates | loss | phones | keywords |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, of_one in points.items():
        lines += [
            f"| {name} | {number:,} | {one['loss']:,.1f} | {_percent(one[PHONE])} | {_percent(one[KEYWORD])} |"
            for number, one in sorted(of_one.items())
        ]
    lines += [f"| {TEACHER} | | | {_percent(teacher[PHONE])} | {_percent(teacher[KEYWORD])} |", ""]
    for name, margin in margins.items():
        told = _percent(margin) if margin else "not measurable"
        line = (
            f"Of the teacher's margin over random weights, in phones, kept at the end from {name} ones, in %: {told}."
        )
        if name == SLICED and margin:
            line += f" The goal, {GOAL_MARGIN:.0%}: {_met(margin[0] >= GOAL_MARGIN)}."
        lines.append(line)
    return lines


def _steps(pool: ProcessPoolExecutor, about: dict, options: argparse.Namespace) -> list[str]:
    """What each step of slicing is worth, untrained."""
    jobs = {name: pool.submit(slice_untrained, name, options) for name in STEPS}
    rows, lines = [], []
    for job in tqdm(jobs.values(), options.suite, unit="student", disable=None):
        rows.append(job.result())
        lines = _told(steps_table(rows), "What each step of slicing is worth, before any training", about)
        _write(options, lines, {"environment": about, "students": rows})
    return lines


def steps_table(rows: Sequence[dict]) -> list[str]:
    """Return the lines of Markdown for students that were sliced in other ways."""
    depth = len(rows[0]["slicing"]["unexplained"])
    lines = [
        f"* loss on valid.tsv; a student whose states are all zero has {rows[0]['loss_of_zero']:,.1f}. Unexplained: "
        "share of the variance of the kept channels, on the utterances that were sliced with, by state",
        "",
        f"| slicing | loss | {' | '.join(map(str, range(depth)))} | CPU seconds |",
        "|---|--:|" + "--:|" * (depth + 1),
    ]
    for row in rows:
        shares = " | ".join(f"{share:.1%}" for share in row["slicing"]["unexplained"])
        lines.append(f"| {row['name']} | {row['loss']:,.1f} | {shares} | {row['cpu_seconds']:.0f} |")
    return lines


def _told(table: Sequence[str], title: str, about: dict) -> list[str]:
    return [*heading(title, about), *table, ""]


def _write(options: argparse.Namespace, lines: Sequence[str], values: dict) -> None:
    write_result(options.results, _result_name(options), "\n".join(lines), values)


def _result_name(options: argparse.Namespace) -> str:
    return f"slicing-{date.today()}-{options.name or options.suite}"


def _percent(values: Sequence[float]) -> str:
    accuracy, low, high = values
    return f"{100 * accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _met(goal: bool) -> str:
    return "met" if goal else "not met"


if __name__ == "__main__":
    run_script(main)
