"""``fairseq-star slice``."""

import argparse
import json

from fairseq_star.errors import StarError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("teacher", help="the teacher, as task.teacher takes it")
    parser.add_argument("--data", required=True, help="folder of the manifests, {split}.tsv")
    parser.add_argument("--out", help="file to write the student to, such as student.pt")
    parser.add_argument(
        "--params", type=float, help="parameters at most; up to 1 a share of the teacher's (default: 0.25)"
    )
    parser.add_argument("--macs", type=float, help="multiply-accumulates at most, over SUPERB's 32 utterances")
    parser.add_argument(
        "--sizes", type=float, nargs="+", metavar="N", help="instead of a file: a table of several --params"
    )
    parser.add_argument(
        "--layers", type=int, help="the student's layers, a divisor of the teacher's (default: as many)"
    )
    parser.add_argument(
        "--arch", default="starhubert", choices=["starhubert", "starhubert_stream"], help="default: starhubert"
    )
    parser.add_argument("--split", default="train", help="manifest of the utterances it is computed from")
    parser.add_argument("--test-split", default="valid", help="manifest that the loss is measured on")
    parser.add_argument("--utterances", type=int, default=64, help="how many (default: 64)")
    parser.add_argument("--seed", type=int, default=1, help="of their choice (default: 1)")
    parser.add_argument("--force", action="store_true", help="replace OUT")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    """Slice a student, or several, and print the outcome.

    Raises:
        StarError: neither or both of ``--out`` and ``--sizes``.
    """
    from fairseq_star.runtime.host import settle_on_host
    from fairseq_star.slicing.make import Request, sizes_table, slice_sizes, slice_to_file

    if (arguments.out is None) == (arguments.sizes is None):
        raise StarError("slice: give --out FILE for one student, or --sizes for a table of several")
    if arguments.sizes and (arguments.params or arguments.macs):
        raise StarError("slice: --params and --macs apply to one student with --out; leave them out with --sizes")
    settle_on_host()
    request = Request(
        arguments.teacher, arguments.data, split=arguments.split, held_out=arguments.test_split,
        layers=arguments.layers, architecture=arguments.arch, utterances=arguments.utterances, seed=arguments.seed,
    )  # fmt: skip
    if arguments.sizes:
        teacher, sizes = slice_sizes(request, arguments.sizes)
        print(
            json.dumps([size.to_dict() for size in sizes], indent=1) if arguments.json else sizes_table(teacher, sizes)
        )
        return
    size = slice_to_file(request, arguments.out, params=arguments.params, macs=arguments.macs, force=arguments.force)
    if arguments.json:
        print(json.dumps(size.to_dict(), indent=1))
        return
    print("\n".join(size.report.lines()))
    print(
        f"{arguments.out}: {size.parameters:,} parameters, {size.macs / 1e9:,.1f} GMACs, width {size.width}, "
        f"{size.units} feed-forward units, {size.variance_kept:.1%} of the teacher's variance kept"
    )
