"""Latency and size of the exported student, every target in one process, against the teacher.

    python -m benchmarks.deploy                                # starhubert against HuBERT Base's dimensions, 2 threads
    python -m benchmarks.deploy --checkpoint runs/NAME/checkpoint_best.pt
    python -m benchmarks.deploy --quick                        # a smoke run in seconds, no result to keep

Every way computes all hidden states of one utterance of noise, alone, from its own file, in its own library and in
float32 (int8: linear layers). Teacher and student have random weights unless a checkpoint is given: neither time nor
size depends on them. Exports are compared with the student by ``export`` itself before anything is timed. The real-time
factor is seconds of computing a second of audio; ways run in turn. Writes a dated .md and .json.
"""

import argparse
import logging
import os
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.measure import ROOT, alternate, environment, heading, write_result
from benchmarks.models import QUICK_STUDENT, QUICK_TEACHER, write_student, write_teacher
from fairseq_star.deploy.targets import (
    load_target,
)
from fairseq_star.encoder.config import HUBERT_BASE
from fairseq_star.errors import StarError, exit_on_star_error
from fairseq_star.formats import (
    Student,
    export,
    load_student,
    load_teacher,
)


class Way(NamedTuple):
    """One way to the hidden states."""

    run: Callable[[], object]
    num_bytes: int
    difference: str  # from the student, as `export` measured it


def teacher_way(folder: Path, source: torch.Tensor, options: argparse.Namespace) -> Way:
    """HuBERT Base's dimensions in this plugin's teacher; its file holds the encoder alone, as float32."""
    path = write_teacher(folder / "teacher.pt", QUICK_TEACHER if options.quick else HUBERT_BASE)
    teacher = load_teacher(str(path))
    torch.save(teacher.model.state_dict(), folder / "encoder.pt")
    return Way(lambda: teacher(source, [source.size(1)]), (folder / "encoder.pt").stat().st_size, "")


def ways(student: Student, folder: Path, source: torch.Tensor) -> dict[str, Way]:
    """The student in this plugin and in every target whose library is installed."""
    torch.save(student.weights(), folder / "student.pt")
    found = {"student, fairseq": Way(lambda: student.model(source), (folder / "student.pt").stat().st_size, "")}
    targets = [
        ("HuggingFace", "huggingface", {}, huggingface),
        ("torchaudio", "torchaudio", {}, torchaudio),
        ("TorchScript", "torchscript", {}, torchscript),
        ("TorchScript, int8", "torchscript", {"int8": True}, torchscript),
        ("ONNX, onnxruntime", "onnx", {}, onnx),
    ]
    for name, key, options, load in targets:
        try:
            target = load_target(key)(**options)
        except StarError as missing:
            print(f"left out: {missing}", file=sys.stderr)
            continue
        exported = export(student, target, folder / f"{key}{'-int8' if options else ''}")
        difference = f"{max(exported.alone, exported.batched):.0e} ({target.measure})"
        found[name] = Way(load(exported.path, source), exported.num_bytes, difference)
    return found


def huggingface(path: Path, source: torch.Tensor) -> Callable[[], object]:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(path).eval()
    return lambda: model(source, output_hidden_states=True)


def torchaudio(path: Path, source: torch.Tensor) -> Callable[[], object]:
    from fairseq_star.formats.torchaudio import build_model

    model = build_model(torch.load(path, weights_only=True))
    return lambda: model.extract_features(source)


def torchscript(path: Path, source: torch.Tensor) -> Callable[[], object]:
    model = torch.jit.load(path)
    for _ in range(3):  # it is specialized to what it sees in its first calls
        model(source)
    return lambda: model(source)


def onnx(path: Path, source: torch.Tensor) -> Callable[[], object]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # its threads would slow the others
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    inputs = {"source": source.numpy(), "num_samples": torch.tensor([source.size(1)]).numpy()}
    return lambda: session.run(None, inputs)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="a student's; by default starhubert with random weights")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 10.0], help="of audio (default 2 10)")
    parser.add_argument("--rounds", type=int, default=7, help="alternating runs (default %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds, options.rounds = [0.5], 1
    return options


def main() -> None:
    """Measure, print, write."""
    options = parse()
    torch.set_num_threads(options.threads)
    logging.getLogger().setLevel(logging.WARNING)  # importing fairseq has set it lower
    made_with = environment("cpu", shlex.join(["python", "-m", "benchmarks.deploy", *sys.argv[1:]]))
    rows = {}
    with tempfile.TemporaryDirectory() as name, exit_on_star_error(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fairseq uses torch's older weight_norm
        folder = Path(name)
        checkpoint = options.checkpoint or write_student(
            folder / "checkpoint.pt", **(QUICK_STUDENT if options.quick else {})
        )
        student = load_student(str(checkpoint), "--checkpoint")
        for number, seconds in enumerate(options.seconds):
            own = folder / str(number)
            own.mkdir()
            source = 0.1 * torch.randn(1, int(seconds * student.sample_rate), generator=torch.manual_seed(0))
            compared = {"teacher": teacher_way(own, source, options), **ways(student, own, source)}
            with torch.no_grad():
                timings = alternate([way.run for way in compared.values()], options.rounds, "cpu")
            for (name, way), timing in zip(compared.items(), timings, strict=True):
                row = rows.setdefault(name, {"bytes": way.num_bytes, "difference": way.difference, "times": {}})
                row["times"][f"{seconds:g}"] = {
                    "median_s": timing.median,
                    "best_s": timing.best,
                    "real_time_factor": timing.median / seconds,
                    "faster_than_teacher": timing.speedup,
                }
    result = {"made_with": made_with, "parameters": student.num_parameters, "ways": rows}
    print(table(result))
    if not options.quick:
        file = f"deploy-{made_with['date']}-cpu"
        write_result(options.out, file, table(result), result)


def table(result: dict) -> str:
    """Markdown of a result."""
    seconds = list(result["ways"]["teacher"]["times"])
    heads = [f"{head} of {length} s" for length in seconds for head in ("real-time factor", "faster")]
    lines = heading("Latency and size of the exported student", result["made_with"])
    lines += [
        f"* student: {result['parameters']:,} parameters; teacher: HuBERT Base's dimensions",
        "* all hidden states of one utterance; medians of alternating runs; faster: than the teacher, median of the "
        "ratios within a round",
        "",
        "| way | MB | differs from the student by | " + " | ".join(heads) + " |",
        "|---|--:|---|" + "--:|" * len(heads),
    ]
    for name, row in result["ways"].items():
        cells = [f"{row['bytes'] / 1e6:.1f}", row["difference"]]
        for times in row["times"].values():
            cells += [f"{times['real_time_factor']:.4f}", f"{times['faster_than_teacher']:.2f}x"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
