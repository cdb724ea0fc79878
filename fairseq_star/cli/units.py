"""``fairseq-star units``."""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("checkpoint", help="the teacher, as task.teacher takes it")
    parser.add_argument("data", help="folder of the manifests, {split}.tsv")
    parser.add_argument("--layer", type=int, required=True, help="layer of the teacher, 1-based")
    parser.add_argument("--clusters", type=int, required=True, help="number of units")
    parser.add_argument("--out", required=True, help="file to write, such as units.npz, for criterion.units=[FILE]")
    parser.add_argument("--split", default="train", help="manifest to fit to (default: train)")
    parser.add_argument("--test-split", default="valid", help="manifest to measure quality on (default: valid)")
    parser.add_argument(
        "--frames", type=int, default=1_000_000, help="frames to fit to (default: 1,000,000, 5.5 hours)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the clusters (default: 0)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="for the teacher (default: cuda where there is one)")
    parser.add_argument("--force", action="store_true", help="replace OUT")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> None:
    """Fit units and print their quality."""
    from fairseq_star.analysis.units.run import fit_units
    from fairseq_star.runtime.host import settle_on_host

    settle_on_host()
    options = vars(arguments)
    as_json = options.pop("json")
    measured = fit_units(**options)
    print(json.dumps(measured.to_dict(), indent=1) if as_json else f"{measured}\n{arguments.out}")
