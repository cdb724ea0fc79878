"""``fairseq-star``: all that is not training."""

import argparse
import logging
import sys

from fairseq_star.errors import told_in_one_line


def main(argv: list[str] | None = None) -> None:
    """Parse ``argv`` (the command line when None) and run one command."""
    parser = argparse.ArgumentParser(prog="fairseq-star", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    evaluate = commands.add_parser("evaluate", help="losses of a student before and after training")
    evaluate.add_argument("checkpoint", help="checkpoint of a distillation run, such as runs/NAME/checkpoint_best.pt")
    evaluate.add_argument("--data", help="folder of manifests, if not the run's own")
    evaluate.add_argument("--split", default="valid", help="manifest to measure on (default: valid)")
    evaluate.add_argument("--teacher", help="the teacher's checkpoint, if not the run's own")
    evaluate.set_defaults(run=_evaluate)

    teacher = commands.add_parser("teacher", help="what a checkpoint is, and which layers a student would learn from")
    teacher.add_argument("checkpoint", help="checkpoint file or HuggingFace folder")
    teacher.add_argument("--arch", default="starhubert", help="architecture of the student (default: starhubert)")
    teacher.set_defaults(run=_teacher)

    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    logging.getLogger().setLevel(logging.WARNING)  # importing fairseq has set it lower already
    with told_in_one_line():
        arguments.run(arguments)


def _evaluate(arguments: argparse.Namespace) -> None:
    from fairseq_star.evaluate import evaluate

    print(evaluate(arguments.checkpoint, data=arguments.data, split=arguments.split, teacher=arguments.teacher))


def _teacher(arguments: argparse.Namespace) -> None:
    from fairseq_star.teacher_info import teacher_info

    print(teacher_info(arguments.checkpoint, arguments.arch))


if __name__ == "__main__":
    main()
