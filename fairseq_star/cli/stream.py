"""``fairseq-star stream``."""

import argparse
import sys

from fairseq_star.runtime.names import RAW_FORMATS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("checkpoint", help="checkpoint of a streaming student's run (model.chunk_frames)")
    parser.add_argument(
        "audio",
        help="a file, a pipe with one, or - for raw samples through standard input, at the student's rate (16 kHz)",
    )
    parser.add_argument(
        "--chunk-frames", type=int, metavar="N",
        help="frames of a chunk, 20 ms each: 4, 8, 16, 32 ... (default: the first of the student's sizes)",
    )  # fmt: skip
    parser.add_argument(
        "--format", dest="raw_format", choices=RAW_FORMATS, help="of raw samples, as ffmpeg names it (default: s16le)"
    )
    parser.add_argument("--channels", type=int, metavar="N", help="of raw samples, interleaved (default: 1)")
    parser.add_argument(
        "--values", dest="num_values", type=int, default=4, metavar="N", help="values to print of a frame (-1: all)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print frames as audio arrives, and at the end a summary on standard error."""
    from fairseq_star.deploy.streaming.live import stream
    from fairseq_star.runtime.host import settle_on_host

    settle_on_host()
    print(stream(**vars(arguments)), file=sys.stderr)
