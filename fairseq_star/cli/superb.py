"""``fairseq-star superb``."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_star.errors import StarError
from fairseq_star.runtime.names import SUPERB_TASKS

if TYPE_CHECKING:
    from fairseq_star.superb.corpora import Description
    from fairseq_star.superb.sweep import Sweep

RUN = "run"
ACTIONS = (RUN, "check", "plan", "table")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "WHAT is one of:\n"
        "  STUDENT  a checkpoint: export it, run s3prl on every task, write the table\n"
        "  nothing  the same, for the upstream that -u names\n"
        "  check    check the corpora and s3prl's environment only\n"
        "  plan     print steps and disk, with --measure hours\n"
        "  table    print the table of the results so far\n"
        "See docs/superb.md."
    )
    parser.add_argument("what", metavar="WHAT", nargs="?", default=RUN, help="see below")
    parser.add_argument("--corpora", type=Path, required=True, help="superb.yaml: the place of each corpus")
    parser.add_argument("--tasks", nargs="+", choices=SUPERB_TASKS, default=list(SUPERB_TASKS), metavar="TASK",
                        help=f"which tasks (default: {' '.join(SUPERB_TASKS)})")  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("runs/superb"), help="folder of the sweep (default: %(default)s)"
    )
    parser.add_argument("--student", help="the checkpoint, for plan and table")
    parser.add_argument("-u", "--upstream", help="an upstream of s3prl's instead, such as hubert_base or fbank")
    parser.add_argument("-k", "--upstream-file", type=Path, help="its file, if it takes one")
    parser.add_argument("--name", help="name in the table (default: the checkpoint's)")
    parser.add_argument(
        "--s3prl", type=Path, metavar="CLONE", help="clone of s3prl (default: the package in --python's environment)"
    )
    parser.add_argument("--python", type=Path, help="interpreter of s3prl's environment (default: .venv-superb's)")
    parser.add_argument("--convention", choices=("paper", "s3prl"), default="paper",
                        help="STaR's changes of s3prl's settings, or none (default: paper)")  # fmt: skip
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="TASK.SETTING=VALUE", help="change a setting of s3prl's"
    )
    parser.add_argument("--lr", choices=("auto",), help="auto: try a grid of rates for each task, choose on dev")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where s3prl's environment has a GPU")
    parser.add_argument("--seed", type=int, default=1337, help="s3prl's (default: %(default)s)")
    parser.add_argument(
        "--measure", type=int, default=0, metavar="STEPS", help="plan: train this many steps of each task"
    )
    parser.add_argument(
        "--store-features", type=float, metavar="GB",
        help="compute the features of each utterance once, alone, in float16, and keep up to GB of them in --out (0: "
             "none, with the same numbers)",
    )  # fmt: skip
    parser.add_argument("--only", metavar="EXPERIMENT", help="only one experiment, such as er-fold1")
    parser.add_argument("--slurm", action="store_true", help="write a job array instead of running")


def run(arguments: argparse.Namespace) -> None:
    """Check, plan, run or print the table, by ``arguments.what``.

    Raises:
        StarError: an option that does not fit, a faulty corpus or s3prl environment, or an experiment that failed.
    """
    from fairseq_star.superb import plan, scorers, table
    from fairseq_star.superb.corpora import corpus_faults, count_files, read_description
    from fairseq_star.superb.tasks import TASKS

    description = read_description(arguments.corpora)
    corpora = list(dict.fromkeys(TASKS[name].corpus for name in arguments.tasks))
    if arguments.what != "table":
        faults = [fault for name in corpora for fault in corpus_faults(name, description)]
        if faults:
            raise StarError("\n".join(faults) + f"\n{len(faults)} to fix before anything is trained")
    if arguments.what == "check":
        for name in corpora:
            files = ", ".join(f"{part or name} {count:,}" for part, count in count_files(name, description).items())
            print(f"{name}: {files}")
    sweep = _sweep(arguments, description)
    if arguments.what != "table":
        sweep.check()
        for sentence in scorers.missing_scorers(arguments.tasks, description, sweep.toolkit.environment):
            print(sentence, file=sys.stderr)
    if arguments.what == "check":
        print(f"{sweep.toolkit.environment.python}: {sweep.toolkit.version}, {sweep.device}; nothing is missing")
        return
    if arguments.what == "plan":
        print(plan.plan(sweep, arguments.measure))
        return
    if arguments.slurm:
        command = [argument for argument in sys.argv[1:] if argument != "--slurm"]
        path = plan.write_array(sweep, ["fairseq-star", *command])
        print(f"{path}: sbatch it; then `fairseq-star superb table ...`")
        return
    if sweep.features and sweep.features.limit and arguments.what != "table":
        sizes = sweep.feature_bytes() / 1e9, sweep.features.limit / 1e9
        print("features of all audio would take {:.1f} GB; up to {:.1f} GB are stored".format(*sizes), file=sys.stderr)
    results, failed = sweep.results() if arguments.what == "table" else sweep.perform()
    if arguments.only is None:
        counts = {name: count_files(name, description) for name in corpora}
        made = table.made_with(sweep, shlex.join(["fairseq-star", *sys.argv[1:]]))
        outcome = table.Outcome(
            sweep.upstream.title, sweep.upstream.cost, results, failed, counts, not description.any_size, made
        )
        print(outcome.to_markdown())
        print("\n".join(map(str, table.write(outcome, sweep.out))))
        print(table.submission(sweep, results))
    if failed and arguments.what != "table":
        raise StarError(f"{len(failed)} without a result: {', '.join(failed)}; repeat the command to try them again")


def _sweep(arguments: argparse.Namespace, description: "Description") -> "Sweep":
    """Export the student, copy s3prl and return the sweep.

    Raises:
        StarError: no upstream, or two; the folder cannot be made.
    """
    from fairseq_star.superb import toolkit
    from fairseq_star.superb.experiment import Features
    from fairseq_star.superb.settings import RATE_GRID, parse_changes
    from fairseq_star.superb.sweep import Sweep
    from fairseq_star.superb.tasks import TASKS

    changes = parse_changes(arguments.set)
    student = arguments.student if arguments.what in ACTIONS else arguments.what
    if (student is None) == (arguments.upstream is None) and arguments.what != "check":
        raise StarError("superb: name a student's checkpoint, or one of s3prl's upstreams with -u; not both")
    environment = toolkit.Environment.of(arguments.python, [TASKS[name] for name in arguments.tasks])
    source = toolkit.source_package(arguments.s3prl, environment)
    out = arguments.out.absolute()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StarError(f"--out {out}: cannot be made ({error.strerror}); give another place") from error
    copy = toolkit.Toolkit(environment, source, out / "code")
    copy.copy()
    if student is not None:
        chosen = toolkit.exported(student, arguments.name or student, out)
    else:
        chosen = toolkit.named(arguments.upstream or "fbank", arguments.upstream_file)
    return Sweep(
        out, chosen, copy, description, arguments.tasks, arguments.convention, changes,
        RATE_GRID if arguments.lr else (), arguments.device or environment.device, arguments.seed, arguments.only,
        Features.of(out, arguments.store_features),
    )  # fmt: skip
