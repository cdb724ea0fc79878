"""Options of commands on a run whose files are not where they were in its training."""

import argparse


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field of ``fairseq_star.analysis.runs.Places``."""
    parser.add_argument("--data", help="folder of manifests, if not the run's own")
    parser.add_argument("--teacher", help="the teacher, as task.teacher takes it, if not the run's own")
    parser.add_argument("--noise", metavar="FILE.tsv", help="manifest of noise, if not the run's own")
    parser.add_argument("--reverb", metavar="FILE.tsv", help="manifest of room responses, if not the run's own")
    parser.add_argument("--units", nargs="+", metavar="FILE", help="files of units, if not the run's own")
