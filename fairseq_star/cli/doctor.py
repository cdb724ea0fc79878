"""``fairseq-star doctor``."""

import argparse
import json
import sys

from fairseq_star.errors import StarError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.epilog = "exit status: 0 nothing found, 1 findings, 2 the run could not be examined"
    parser.add_argument("run_dir", help="checkpoint.save_dir of a finished, running or dead run, such as demo/run")
    parser.add_argument("--like", nargs="+", default=[], metavar="RUN", help="runs whose loss this one should have")
    parser.add_argument(
        "--deep", action="store_true", help="also look at layers and utterances: loads teacher and student, a minute"
    )
    parser.add_argument("--data", help="with --deep: folder of manifests, if not the run's own")
    parser.add_argument("--teacher", help="with --deep: the teacher, as task.teacher takes it, if not the run's own")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")


def run(arguments: argparse.Namespace) -> None:
    """Print the findings on ``arguments.run_dir`` and exit with 1 where there are any, with 2 where none could be."""
    from fairseq_star.analysis.doctor.doctor import diagnose

    options = vars(arguments)
    as_json = options.pop("json")
    if options["deep"]:
        from fairseq_star.runtime.host import settle_on_host

        settle_on_host()
    try:
        diagnosis = diagnose(**options)
    except StarError as error:
        print(f"fairseq-star: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(diagnosis.to_dict(), indent=1) if as_json else diagnosis)
    sys.stdout.flush()
    if diagnosis.findings:
        raise SystemExit(1)
