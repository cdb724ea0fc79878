"""What a student costs and keeps on a device, in onnxruntime: in float, 8 and 4 bits, whole utterances and live.

    python -m benchmarks.device                                      # random weights of the published widths, noise
    python -m benchmarks.device --offline A.pt --stream B.pt --trained-for 4 C.pt \\
        --manifest REAL/valid.tsv --calibration data/train.tsv --labels demo/corpus      # trained ones, on speech
    python -m benchmarks.device --quick                              # a smoke run in seconds, no result to keep

A file is made as by ``fairseq-star export``; one that is refused has a row that says so and no others. ``agreement`` is
the cosine of a file's states with the student's own float states, frame by frame: the lowest layer's mean, the last
layer's, and the worst frame of any layer; of weights trained for few bits with those of that student in float. Speed
and agreement of quantized weights say little of random weights and of noise: give trained students and a manifest,
whose files are joined to the lengths asked for. ``phones``: a head of its own on the file's states, as by
``fairseq-star probe``, with the difference to the float file's. A file runs in turn with the float one, ratios are
taken within a round; the peak is of a process that hears noise of that length once. Live, a chunk's latency is the time
from its last sample to its frames (p50, p95); the real-time factor counts computing alone. Measure on an idle machine.
Writes a dated .md, .json and .png.
"""

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path

from benchmarks.device_files import WEIGHTS, File, make_files
from benchmarks.device_measures import Labels, agreements, heard_in_chunks, heard_whole, peaks, speech
from benchmarks.device_result import draw, tables
from benchmarks.measure import ROOT, environment, heading, write_result
from benchmarks.models import QUICK_STUDENT, write_student
from fairseq_star.errors import exit_on_star_error

STREAM = {"extractor_mode": "running_norm", "chunk_frames": [16, 4, 8, 32, 0], "left_context_frames": 128}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", help="checkpoint of a student of whole utterances (default: random weights)")
    parser.add_argument("--stream", help="checkpoint of a streaming student, likewise")
    parser.add_argument(
        "--trained-for", nargs=2, action="append", default=[], metavar=("BITS", "CHECKPOINT"),
        help="a student of whole utterances trained with model.weight_bits=BITS",
    )  # fmt: skip
    parser.add_argument("--manifest", type=Path, help="speech to hear, joined to the lengths (default: noise)")
    parser.add_argument("--calibration", help="manifest of `export --calibration` (default: no fixed ranges)")
    parser.add_argument("--labels", type=Path, help="folder of a labelled corpus, to tell phones (default: not told)")
    parser.add_argument("--max-utterances", type=int, default=120, help="of each probe part (default %(default)s)")
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS), help="default: all")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 5.0, 10.0, 20.0, 35.0, 120.0])
    parser.add_argument("--chunks", type=int, nargs="+", default=[4, 8, 16, 32], help="frames, of the live ways")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, min(2, os.cpu_count() or 1)])
    parser.add_argument("--rounds", type=int, default=3, help="runs of an utterance; the median counts")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--name", default="device", help="of the results (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds, options.chunks, options.threads, options.rounds = [2.0], [4], [1], 1
        options.weights = ["float32", "int8"]
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    made_with = environment("cpu", shlex.join(["python", "-m", "benchmarks.device", *sys.argv[1:]]))
    with tempfile.TemporaryDirectory() as name, exit_on_star_error():
        folder, sizes = Path(name), QUICK_STUDENT if options.quick else {}
        offline = options.offline or write_student(folder / "offline.pt", **sizes)
        live = options.stream or write_student(folder / "stream.pt", **STREAM, **sizes)
        audio = speech(options.manifest, max(options.seconds))
        labels = options.labels and Labels(options.labels, options.max_utterances)
        whole = make_files(folder, str(offline), options.weights, options.calibration, options.trained_for)
        chunked = make_files(folder, str(live), options.weights, options.calibration)
        there, there_live = ([file for file in files if file.path] for files in (whole, chunked))
        result = {
            "environment": made_with,
            "files": [_about(file, labels) | (agreements(file, audio) if file.path else {}) for file in whole],
            "live files": [_about(file, None) for file in chunked],
            "peaks": peaks(there, options),
            "live": [],
            "whole": [],
        }
        # The longest rows last, and each kept as soon as it is there: two minutes of audio take a while.
        live_rows = (row for file in there_live for row in heard_in_chunks(file, audio, labels, options))
        for part, rows in (("live", live_rows), ("whole", heard_whole(there, audio, options))):
            for row in rows:
                result[part].append(row)
                _keep(result, options)
    _keep(result, options)
    if not options.quick:
        draw(result, options.out / f"{_stem(result, options)}.png")
    print(_text(result))


def _keep(result: dict, options: argparse.Namespace) -> None:
    """Write what has been measured so far, but of a smoke run."""
    if not options.quick:
        write_result(options.out, _stem(result, options), _text(result), result)


def _stem(result: dict, options: argparse.Namespace) -> str:
    return f"{options.name}-{result['environment']['date']}"


def _text(result: dict) -> str:
    return "\n".join([*heading("Students on a device", result["environment"]), "", *tables(result), ""])


def _about(file: File, labels: Labels | None) -> dict:
    told = {"weights": file.weights, "MB": file.megabytes, "parameters": file.student.num_parameters}
    if not file.path:
        return told | {"refused": file.refused}
    return told | (labels.told(file) if labels else {})


if __name__ == "__main__":
    main()
