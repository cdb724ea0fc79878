"""Attention in a whole-utterance ONNX file: torch's with a mask of pairs, two products, and those by blocks.

    python -m benchmarks.onnx_attention [--checkpoint STUDENT.pt] [--seconds 2 10 35] [--threads 1 2]

One student (random weights of the published widths, unless a checkpoint is given) is written in each way, in float32
and 8 bits, and hears the same noise in onnxruntime, in turn; files that differ are not timed. The peak is of a process
that hears that length once. Writes a dated .md and .json.
"""

import argparse
import os
import shlex
import sys
import tempfile
import warnings
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import ROOT, alternate, environment, heading, write_result
from benchmarks.models import write_student
from fairseq_star.analysis.profile import measure_speed
from fairseq_star.deploy.attention import attention_by_blocks, attention_by_products
from fairseq_star.deploy.onnx import Onnx, write_whole
from fairseq_star.deploy.onnx_quantized import to_int8
from fairseq_star.encoder.attention import attention
from fairseq_star.errors import exit_on_star_error
from fairseq_star.formats import Student, load_student


def by_pairs(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Return torch's attention under a mask of every pair of frames, as torchaudio's model computes it: the naive one.

    Args:
        query, key, value: B x H x T x W.
        mask: B x 1 x T, True where a key is seen.
    """
    return attention(query, key, value, mask.expand(-1, query.size(2), -1))


WAYS = {"by pairs": by_pairs, "two products": attention_by_products, "by blocks": attention_by_blocks}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="of a student of whole utterances (default: random weights)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 10.0, 35.0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, min(2, os.cpu_count() or 1)])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    options = parser.parse_args(arguments)
    made_with = environment("cpu", shlex.join(["python", "-m", "benchmarks.onnx_attention", *sys.argv[1:]]))
    with tempfile.TemporaryDirectory() as name, exit_on_star_error():
        student = load_student(options.checkpoint or str(write_student(Path(name) / "student.pt")))
        files = write(student, Path(name))
        rows = [
            row
            for seconds, threads, weights in product(options.seconds, options.threads, files)
            for row in compare(files[weights], weights, seconds, threads, options.rounds)
        ]
    lines = [*heading("Attention in an ONNX file", made_with), *table(rows)]
    write_result(
        options.out, f"onnx-attention-{made_with['date']}", "\n".join(lines), {"environment": made_with, "rows": rows}
    )
    print("\n".join(lines))


def write(student: Student, folder: Path) -> dict[str, dict[str, Path]]:
    """Files by weights and way."""
    files: dict[str, dict[str, Path]] = {"float32": {}, "int8": {}}
    for number, (way, attend) in enumerate(WAYS.items()):
        whole, small = folder / f"{number}.onnx", folder / f"{number}-int8.onnx"
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is deprecated, and what is checked of shapes
            write_whole(student, whole, attend)
        to_int8(whole, small)
        files["float32"][way], files["int8"][way] = whole, small
    return files


def compare(files: dict[str, Path], weights: str, seconds: float, threads: int, rounds: int) -> list[dict]:
    """A row for each way.

    Raises:
        AssertionError: their states differ.
    """
    source = 0.1 * torch.randn(1, int(seconds * 16_000), generator=torch.Generator().manual_seed(0))
    runs = [partial(Onnx.load(path, threads)[0], source, torch.tensor([source.size(1)])) for path in files.values()]
    expected, *others = (run()[1] for run in runs)
    for states in others:  # of 8 bits, a number that is rounded the other way shows
        torch.testing.assert_close(states, expected, atol=1e-3 if weights == "float32" else 0.2, rtol=1e-3)
    return [
        {
            "weights": weights, "way": way, "seconds": seconds, "threads": threads,
            "real-time factor": timing.median / seconds, "faster": timing.speedup,
            "MiB": measure_speed(str(path), seconds, "cpu", threads, 1).peak_mib,
        }
        for (way, path), timing in zip(files.items(), alternate(runs, rounds, "cpu"), strict=True)
    ]  # fmt: skip


def table(rows: list[dict]) -> list[str]:
    """Markdown."""
    lines = [
        "",
        "| audio | threads | weights | attention | real-time factor | faster | peak MiB |",
        "|--:|--:|---|---|--:|--:|--:|",
    ]
    for row in rows:
        numbers = f"{row['real-time factor']:.4f} | {row['faster']:.2f}x | {row['MiB']:,.0f}"
        lines.append(f"| {row['seconds']:g} s | {row['threads']} | {row['weights']} | {row['way']} | {numbers} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
