"""``fairseq-star plan``."""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--config-dir", default="configs", help="as for fairseq-hydra-train (default: %(default)s)")
    parser.add_argument("--config-name", required=True, help="as for fairseq-hydra-train, such as starhubert_100h")
    parser.add_argument("overrides", nargs="*", metavar="OPTION=VALUE", help="likewise, such as task.data=DIR")
    parser.add_argument(
        "--steps", type=int, default=5, help="steps to measure, after the largest batch (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")


def run(arguments: argparse.Namespace) -> None:
    """Measure a few steps and print the plan."""
    from fairseq_star.analysis.plan.plan import plan

    options = vars(arguments)
    as_json = options.pop("json")
    planned = plan(**options)
    print(json.dumps(planned.to_dict(), indent=1) if as_json else planned)
