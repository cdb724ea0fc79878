"""SUPERB's tasks through s3prl on the demo's corpora: a student, its first weights, FBANK.

    make superb-demo [S3PRL=CLONE]
    python -m benchmarks.superb_demo CHECKPOINT --corpora demo/superb/superb.yaml --python .venv-superb/bin/python

A sweep of ``fairseq-star superb`` for each, in WORK, ``--jobs`` of them at a time, which share the cores: s3prl keeps
one busy, more or less. The same command goes on where it was broken off. Writes a dated .md and .json. What the
corpora are: manifests/demo/superb.py.
"""

import argparse
import json
import os
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from benchmarks.measure import ROOT, environment, heading, write_result
from benchmarks.s3prl_keywords import untrained
from fairseq_star.deploy.targets import load_target
from fairseq_star.formats import export, load_student
from fairseq_star.runtime.names import SUPERB_TASKS
from fairseq_star.superb.corpora import read_description
from fairseq_star.superb.experiment import Features
from fairseq_star.superb.programs.end_with_parent import end_with
from fairseq_star.superb.scores import COLUMNS
from fairseq_star.superb.sweep import Sweep, task_numbers
from fairseq_star.superb.tasks import TASKS
from fairseq_star.superb.toolkit import LOCAL, Environment, Toolkit, Upstream, exported, named, source_package
from manifests.preparing import run_script

FIRST = "student, first weights"
KEPT = ("experiment", "metrics", "notes", "seconds", "features", "environment")  # the rest lies in WORK


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a student, such as demo/long/checkpoint_best.pt")
    parser.add_argument("--corpora", type=Path, required=True, help="superb.yaml of manifests/demo/superb.py")
    parser.add_argument("--python", type=Path, help="interpreter of s3prl's environment")
    parser.add_argument("--s3prl", type=Path, metavar="CLONE", help="clone of s3prl")
    parser.add_argument("--tasks", nargs="+", choices=SUPERB_TASKS, default=list(SUPERB_TASKS), metavar="TASK")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "superb_demo", help="folder of the sweeps")
    parser.add_argument("--store-features", type=float, metavar="GB", help="of each sweep, as fairseq-star superb does")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="sweeps at a time (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    options = parser.parse_args(arguments)
    names = {str(options.python): "PYTHON", str(options.s3prl): "CLONE"}  # not where they lie on this machine
    told = [names.get(argument, argument) for argument in sys.argv[1:]]
    made_with = environment("cpu", shlex.join(["python", "-m", "benchmarks.superb_demo", *told]))
    description = read_description(options.corpora)
    tools = Environment.of(options.python, [TASKS[name] for name in options.tasks])
    source = source_package(options.s3prl, tools)
    sweeps = {}
    for name, upstream in upstreams(options).items():
        out = options.work.absolute() / name.replace(", ", "-").replace(" ", "-")
        toolkit = Toolkit(tools, source, out / "code")
        toolkit.copy()
        features = Features.of(out, options.store_features)
        sweeps[name] = Sweep(out, upstream, toolkit, description, options.tasks, features=features)
        sweeps[name].check()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.jobs)))
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), end_with, (os.getpid(),)) as pool:
        jobs = {name: pool.submit(sweep.perform) for name, sweep in sweeps.items()}
        rows, failures, results = {}, {}, {}
        for name, job in jobs.items():
            results[name], failed = job.result()
            rows[name] = task_numbers(results[name])
            failures |= {f"{name}: {experiment}": why for experiment, why in failed.items()}
    version = toolkit.version
    kept = {name: [{key: one[key] for key in KEPT} for one in found] for name, found in results.items()}
    result = {"made_with": made_with, "s3prl": version, "rows": rows, "failed": failures, "experiments": kept}
    result = json.loads(json.dumps(result).replace(f"{ROOT}/", ""))
    print(table(result))
    write_result(options.out, f"superb-demo-{made_with['date']}", table(result), result)


def upstreams(options: argparse.Namespace) -> dict[str, Upstream]:
    """What is compared."""
    folder = options.work.absolute()
    (folder / "student").mkdir(parents=True, exist_ok=True)
    first = folder / "first.s3prl.pt"
    if not first.exists():
        export(untrained(load_student(options.checkpoint, "checkpoint")), load_target("s3prl")(), first)
    return {
        "student": exported(options.checkpoint, "student", folder / "student"),
        FIRST: replace(named(LOCAL, first), title=FIRST),
        "FBANK": named("fbank", None),
    }


def table(result: dict) -> str:
    """Markdown of a result."""
    metrics = {(task.name, metric.name): metric for task in TASKS.values() for metric in task.metrics}
    columns = [key for key in COLUMNS if any(key[0] in row for row in result["rows"].values())]
    titles = [f"{task.upper()} {metrics[task, name].title}" for task, name in columns]
    lines = heading("SUPERB's tasks on synthetic corpora", result["made_with"])
    lines += [
        f"* {result['s3prl']}, unedited",
        "* corpora: manifests/demo/superb.py, minutes long; small heads, few steps: the tasks run, no more is shown",
        "",
        "| upstream | " + " | ".join(titles) + " |",
        "|---|" + "--:|" * len(titles),
    ]
    for name, row in result["rows"].items():
        cells = [
            f"{row[task][metric]:.{metrics[task, metric].digits}f}" if metric in row.get(task, {}) else "–"
            for task, metric in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if result["failed"]:
        lines += ["", "Without a number:", "", *(f"* {name}: {why}" for name, why in result["failed"].items())]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    run_script(main)
