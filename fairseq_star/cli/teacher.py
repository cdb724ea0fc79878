"""``fairseq-star teacher``."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("checkpoint", help="checkpoint file, or HuggingFace folder or id (owner/name)")
    parser.add_argument("--arch", default="starhubert", help="architecture of the student (default: starhubert)")


def run(arguments: argparse.Namespace) -> None:
    """Print what ``arguments.checkpoint`` is."""
    from fairseq_star.analysis.teacher_info import teacher_info

    print(teacher_info(arguments.checkpoint, arguments.arch))
