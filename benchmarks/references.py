"""Writes the curves that ``fairseq-star doctor`` compares runs of the demo recipes with.

python -m benchmarks.references demo=demo/ablation/RUN demo_sliced=demo/run demo_long=demo/long
"""

import argparse
import json
from pathlib import Path

import fairseq_star.analysis.doctor.references as references
from fairseq_star.analysis.doctor.record import read_record
from fairseq_star.analysis.doctor.references import FILE, Reference
from fairseq_star.fairseq_hooks.symptoms import binned

POINTS = 80  # of a curve, at most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RECIPE=RUN", help="a finished run of each recipe")
    parser.add_argument("--out", type=Path, default=Path(references.__file__).with_name(FILE))
    arguments = parser.parse_args()
    written = {}
    for name, _, run in (pair.partition("=") for pair in arguments.runs):
        of = Reference.of(name, read_record(run))
        loss = {update: float(f"{value:.4g}") for update, value in binned(of.loss, POINTS)}
        written[name] = {"identity": of.identity, "pace": of.pace, "loss": loss}
    arguments.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print(f"{arguments.out}: {', '.join(written)}")


if __name__ == "__main__":
    main()
