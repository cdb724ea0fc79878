"""``fairseq-star import``."""

import argparse
import shlex


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "path",
        metavar="file",
        help="a Lightning .ckpt as STaRHuBERT's authors release, an s3prl, fairseq or torchaudio file, or a "
        "HuggingFace folder or its id",
    )
    parser.add_argument("--config", help="the .yaml released with a .ckpt")
    parser.add_argument("--out", required=True, help="checkpoint to write, such as student.pt")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def run(arguments: argparse.Namespace) -> None:
    """Import ``arguments.path`` and print its facts and the next step."""
    from fairseq_star.formats import import_student

    student = import_student(**vars(arguments))
    config = student.config
    print(
        f"{arguments.out}: {student.num_parameters:,} parameters, {config.num_layers} layers of {config.embed_dim}, "
        f"{student.sample_rate:,} Hz, normalize={student.normalize}; weights equal to {arguments.path}'s"
    )
    print(f"next: fairseq-star export {shlex.quote(arguments.out)} --to s3prl --out student.s3prl.pt")
