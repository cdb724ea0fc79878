"""``fairseq-star teacher``."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("path", metavar="checkpoint", help="checkpoint file, or HuggingFace folder or id (owner/name)")
    parser.add_argument(
        "--arch", dest="architecture", default="starhubert", help="architecture of the student (default: starhubert)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print facts on ``arguments.path``."""
    from fairseq_star.analysis.teacher_info import teacher_info

    print(teacher_info(**vars(arguments)))
