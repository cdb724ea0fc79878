"""``fairseq-star classify``."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "model",
        help="a checkpoint of configs/finetune_classification.yaml, or its export --to onnx",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio files; - for one through standard input")
    parser.add_argument("--resample", action="store_true", help="convert audio of another rate or of several channels")
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        dest="num_threads",
        metavar="N",
        help="of onnxruntime (default: one for each core)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Print each file's label and its probability, after its name where there are several; tabs separate them."""
    from fairseq_star.deploy.classify import classify

    several = len(arguments.files) > 1
    for file, label, probability in classify(**vars(arguments)):
        print(f"{file}\t{label}\t{probability:.3f}" if several else f"{label}\t{probability:.3f}", flush=True)
