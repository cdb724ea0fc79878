"""``fairseq-star probe``."""

import argparse
import json
import logging
import os

from fairseq_star.errors import StarError
from fairseq_star.runtime.files import replacing
from fairseq_star.runtime.names import PROBE_TASKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "student",
        metavar="checkpoint",
        help="checkpoint of a distillation run, or anything else that task.teacher takes",
    )
    parser.add_argument("--teacher", help="the teacher, as task.teacher takes it, if not the run's own")
    parser.add_argument(
        "--data",
        help="folder of train.tsv and valid.tsv with .phn, .keyword, .speaker next to them, line by line; a task's own "
        "subfolder (keyword/ ...) is preferred (default: the run's task.data)",
    )
    parser.add_argument("--tasks", nargs="+", choices=PROBE_TASKS, default=list(PROBE_TASKS), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the heads (default: 0 1 2)")
    parser.add_argument("--max-utterances", type=int, help="at most so many for training and test of each task")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="for the features (default: cuda where there is one)")
    parser.add_argument(
        "--chunk-frames", type=int, metavar="N",
        help="chunk size of a streaming student, 0 for whole utterances (default: the first of its sizes)",
    )  # fmt: skip
    parser.add_argument("--plot", metavar="PNG", help="draw the learned layer weights")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", metavar="JSON", help="also write the JSON to a file, RUN/probe.json for report")


def run(arguments: argparse.Namespace) -> None:
    """Print the probe of ``arguments.student``.

    Raises:
        StarError: the folder of ``--out`` does not exist.
    """
    options = vars(arguments)
    out, plot, as_json = (options.pop(name) for name in ("out", "plot", "json"))
    if out and not os.path.isdir(os.path.dirname(out) or "."):
        raise StarError(f"--out {out}: its folder does not exist; make it first")
    from fairseq_star.analysis.probe import run_probe
    from fairseq_star.runtime.host import settle_on_host

    settle_on_host()
    result = run_probe(**options)
    text = json.dumps(result.to_dict(), indent=1)
    if out:
        with replacing(out) as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")
    print(text if as_json else result.to_markdown())
    if plot:
        logging.info(f"layer weights: {result.plot_layer_weights(plot)}")
