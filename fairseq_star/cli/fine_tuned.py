"""Options of the commands that run fine-tuned students."""

import argparse


def add_model_and_files(parser: argparse.ArgumentParser, model: str) -> None:
    """Add the model, whose help is ``model``, the audio files, and how both are read."""
    parser.add_argument("model", help=model)
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
