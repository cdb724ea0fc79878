"""``fairseq-star plan``."""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--config-dir", default="configs", help="as of fairseq-hydra-train (default: %(default)s)")
    parser.add_argument("--config-name", required=True, help="as of fairseq-hydra-train, such as starhubert_100h")
    parser.add_argument("overrides", nargs="*", metavar="OPTION=VALUE", help="likewise, such as task.data=DIR")
    parser.add_argument("--steps", type=int, default=5, help="to measure, after the largest (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    from fairseq_star.analysis.plan.plan import plan

    found = plan(arguments.config_dir, arguments.config_name, arguments.overrides, steps=arguments.steps)
    print(json.dumps(found.to_dict(), indent=1) if arguments.json else found)
