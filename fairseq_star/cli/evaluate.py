"""``fairseq-star evaluate``."""

import argparse

from fairseq_star.cli.places import add_places


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("checkpoint", help="checkpoint of a distillation run, such as runs/NAME/checkpoint_best.pt")
    add_places(parser)
    parser.add_argument("--split", default="valid", help="manifest to measure on (default: valid)")
    parser.add_argument(
        "--chunk-frames", type=int, metavar="N",
        help="chunk size of a streaming student, 0 for whole utterances (default: the first of its sizes)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Print the losses of ``arguments.checkpoint`` before and after training."""
    from fairseq_star.analysis.evaluate import evaluate
    from fairseq_star.runtime.host import settle_on_host

    settle_on_host()
    print(evaluate(**vars(arguments)))
