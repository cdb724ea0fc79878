"""What a student costs and keeps on a device, in onnxruntime: float32 and int8, whole utterances and live.

    python -m benchmarks.device                                      # random weights of the published widths, noise
    python -m benchmarks.device --offline A.pt --stream B.pt --manifest data/valid.tsv   # trained ones, on speech
    python -m benchmarks.device --quick                              # a smoke run in seconds, no result to keep

``agreement`` is the cosine of a file's last states with the student's own float states, frame by frame: the mean, and
the worst frame. Speed and agreement of quantized weights say little of random weights and of noise: give trained
students and a manifest, whose files are joined to the lengths asked for. Live, a chunk's latency is the time from its
last sample to its frames (p50, p95); the real-time factor counts computing alone. Ways run one after the other: measure
on an idle machine. Writes a dated .md and .json.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import ROOT, environment, heading, write_result
from benchmarks.models import QUICK_STUDENT, write_student
from fairseq_star.errors import told_in_one_line
from fairseq_star.formats import Student, export, load_student
from fairseq_star.formats.onnx import Onnx
from fairseq_star.formats.programs import streams_of
from fairseq_star.manifest import read_manifest

STREAM = {"extractor_mode": "layer_norm", "chunk_frames": [16, 4, 8, 32, 0], "left_context_frames": 128}
PRECISIONS = {"float32": {}, "int8": {"int8": True}}
COLUMNS = ("student", "weights", "MB", "threads", "audio", "real-time factor", "chunk p50 / p95 ms", "agreement")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", help="checkpoint of a student of whole utterances (default: random weights)")
    parser.add_argument("--stream", help="checkpoint of a streaming student, likewise")
    parser.add_argument("--manifest", type=Path, help="speech to hear, joined to the lengths (default: noise)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 5.0, 10.0, 20.0, 35.0, 120.0])
    parser.add_argument("--chunks", type=int, nargs="+", default=[4, 8, 16, 32], help="frames, of the live ways")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, min(2, os.cpu_count() or 1)])
    parser.add_argument("--rounds", type=int, default=3, help="runs of an utterance; the median counts")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds, options.chunks, options.threads, options.rounds = [2.0], [4], [1], 1
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    made_with = environment("cpu", shlex.join(["python", "-m", "benchmarks.device", *sys.argv[1:]]))
    rows = []
    with tempfile.TemporaryDirectory() as name, told_in_one_line():
        folder, sizes = Path(name), QUICK_STUDENT if options.quick else {}
        offline = options.offline or write_student(folder / "offline.pt", **sizes)
        live = options.stream or write_student(folder / "stream.pt", **STREAM, **sizes)
        audio = speech(options.manifest, max(options.seconds))
        for checkpoint, measure in ((offline, whole), (live, chunked)):
            student = load_student(str(checkpoint), "device")
            for precision, settings in PRECISIONS.items():
                exported = export(student, Onnx(**settings), folder / f"{measure.__name__}-{precision}.onnx")
                for threads in options.threads:
                    about = (precision, f"{exported.num_bytes / 1e6:.1f}", threads)
                    rows += measure(student, exported.path, about, audio, options)
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|--:|--:|--:|--:|--:|--:|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    table = "\n".join([*heading("Students on a device", made_with), "", *lines, ""])
    if not options.quick:
        result = {"environment": made_with, "rows": [dict(zip(COLUMNS, row, strict=True)) for row in rows]}
        write_result(options.out, f"device-{made_with['date']}", table, result)
    print(table)


def speech(manifest: Path | None, seconds: float) -> Tensor:
    """Audio of so many seconds at 16 kHz: a manifest's files, joined and begun again, or noise."""
    length = int(seconds * 16_000)
    if manifest is None:
        return 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(0))
    root, entries = read_manifest(manifest)
    joined, found = [], 0
    while found < length:
        samples, _ = soundfile.read(Path(root) / entries[len(joined) % len(entries)].path, dtype="float32")
        joined.append(samples)
        found += len(samples)
    return torch.from_numpy(np.concatenate(joined)[:length])


def whole(student: Student, path: Path, about: tuple, audio: Tensor, options: argparse.Namespace) -> list[tuple]:
    """A row for each length, one utterance at a time."""
    run, _ = Onnx.load(path, about[-1])
    rows = []
    for seconds in options.seconds:
        source = audio[: int(seconds * 16_000)]
        times = []
        for _ in range(options.rounds + 1):  # the first warms up
            start = time.perf_counter()
            last, _, _ = run(source[None], torch.tensor([len(source)]))
            times.append(time.perf_counter() - start)
        close = agreement(last[0], student.hidden_states([source], student.sample_rate)[0][-1])
        factor = f"{np.median(times[1:]) / seconds:.3f}"
        rows.append(("whole utterances", *about, f"{seconds:g} s", factor, "", close))
    return rows


def chunked(student: Student, path: Path, about: tuple, audio: Tensor, options: argparse.Namespace) -> list[tuple]:
    """A row for each size of chunks, all of the audio as one stream."""
    run, settings = Onnx.load(path, about[-1])
    seconds, rows = len(audio) / student.sample_rate, []
    for chunk in options.chunks:
        live = streams_of(run, settings, chunk_frames=chunk)
        times, frames = [], []
        for piece in audio.split(chunk * live.shape.downsample_rate):
            start = time.perf_counter()
            frames.append(live.feed([piece])[0][-1])
            times.append(time.perf_counter() - start)
        frames.append(live.flush()[0][-1])
        student.use_chunks(chunk)
        close = agreement(torch.cat(frames), student.hidden_states([audio], student.sample_rate)[0][-1])
        p50, p95 = (1e3 * np.percentile(times[1:], q) for q in (50, 95))
        delay = f"{p50:.1f} / {p95:.1f}"
        rows.append((f"live, {20 * chunk} ms", *about, f"{seconds:g} s", f"{sum(times) / seconds:.3f}", delay, close))
    return rows


def agreement(got: Tensor, expected: Tensor) -> str:
    """Cosine of frames (both n x D): their mean, and the worst."""
    cosine = F.cosine_similarity(got, expected, dim=-1)
    return f"{cosine.mean():.4f}, worst {cosine.min():.4f}"


if __name__ == "__main__":
    main()
