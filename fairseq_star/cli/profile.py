"""``fairseq-star profile``."""

import argparse
import json

from fairseq_star.runtime.names import ARCHITECTURES, HUBERT_BASE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL",
        help=f"architecture ({', '.join([HUBERT_BASE, *ARCHITECTURES])}), checkpoint, HuggingFace folder or id, or "
        "exported TorchScript or ONNX file",
    )  # fmt: skip
    parser.add_argument(
        "--teacher", default=HUBERT_BASE, help="the model that ratios refer to, likewise (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of audio in the measured utterance (default: 10)")
    parser.add_argument(
        "--no-speed", dest="speed", action="store_false", help="count only; measure neither time nor memory"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="for the speed (default: cpu)")
    parser.add_argument(
        "--threads", dest="num_threads", type=int, help="CPU threads for the speed (default: torch's own choice)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> None:
    """Print the profile of ``arguments.models``."""
    from fairseq_star.analysis.profile import profile

    options = vars(arguments)
    as_json = options.pop("json")
    result = profile(**options)
    print(json.dumps(result.to_dict(), indent=1) if as_json else result.to_markdown())
