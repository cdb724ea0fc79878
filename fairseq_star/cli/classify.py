"""``fairseq-star classify``."""

import argparse

from fairseq_star.cli.fine_tuned import add_model_and_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_model_and_files(parser, "a checkpoint of configs/finetune_classification.yaml, or its export --to onnx")


def run(arguments: argparse.Namespace) -> None:
    """Print each file's label and its probability, after its name where there are several; tabs separate them."""
    from fairseq_star.deploy.classify import classify

    several = len(arguments.files) > 1
    for file, label, probability in classify(**vars(arguments)):
        print(f"{file}\t{label}\t{probability:.3f}" if several else f"{label}\t{probability:.3f}", flush=True)
