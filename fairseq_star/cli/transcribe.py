"""``fairseq-star transcribe``."""

import argparse

from fairseq_star.cli.fine_tuned import add_model_and_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_model_and_files(
        parser, "a fine-tuned checkpoint, such as runs/finetune_ctc/checkpoint_best.pt, or its export --to onnx"
    )
    parser.add_argument("--dictionary", metavar="FILE", help="of a checkpoint: its labels, where it holds none")


def run(arguments: argparse.Namespace) -> None:
    """Print each file's text, after its name and a tab where there are several."""
    from fairseq_star.deploy.transcribe import transcribe

    several = len(arguments.files) > 1
    for file, text in transcribe(**vars(arguments)):
        print(f"{file}\t{text}" if several else text, flush=True)
