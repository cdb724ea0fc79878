"""``fairseq-star transcribe``."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "model",
        help="a fine-tuned checkpoint, such as runs/finetune_ctc/checkpoint_best.pt, or its export --to onnx",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio files; - for one through standard input")
    parser.add_argument("--resample", action="store_true", help="convert audio of another rate or of several channels")
    parser.add_argument("--dictionary", metavar="FILE", help="of a checkpoint: its labels, where it holds none")
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        dest="num_threads",
        metavar="N",
        help="of onnxruntime (default: one for each core)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Print each file's text, after its name and a tab where there are several."""
    from fairseq_star.deploy.transcribe import transcribe

    several = len(arguments.files) > 1
    for file, text in transcribe(**vars(arguments)):
        print(f"{file}\t{text}" if several else text, flush=True)
