"""``fairseq-star report``."""

import argparse

from fairseq_star.cli.places import add_places


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("run_dir", help="folder of a distillation run's checkpoints, such as demo/run")
    parser.add_argument("--out", metavar="FILE.html", help="default: report.html in the run's folder")
    add_places(parser)
    parser.add_argument("--split", default="valid", help="manifest to compare on (default: valid)")
    parser.add_argument("--utterance", metavar="NAME", help="utterance to draw, by file name (default: one of 2.5 s)")
    parser.add_argument("--layers", nargs="+", type=int, help="student layers to draw (default: first, middle, last)")


def run(arguments: argparse.Namespace) -> None:
    """Write the report of ``arguments.run_dir`` and print its path."""
    from fairseq_star.analysis.report.report import report
    from fairseq_star.runtime.host import settle_on_host

    settle_on_host()
    out = report(**vars(arguments))
    print(f"{out} (pictures in {out.with_suffix('')})")
