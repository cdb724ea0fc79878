"""Cost of models: parameters, multiply-accumulates, time and memory; ``fairseq-star profile``.

Each model's time and memory are measured in a fresh process (:func:`measure_speed` starts it, :func:`main` runs in it),
since memory that one model leaves to the allocator would mask what the next one needs.
"""

import json
import os
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fairseq_star.analysis.untrained import untrained
from fairseq_star.checkpoint import read_checkpoint
from fairseq_star.encoder import config as encoder_config
from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.encoder.macs import SUPERB_UTTERANCES, encoder_macs
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.errors import StarError, exit_on_star_error
from fairseq_star.formats import hub, load_encoder
from fairseq_star.formats.hf_folder import read_weights
from fairseq_star.formats.student import ARCHITECTURES, student_config
from fairseq_star.manifest import SAMPLE_RATE
from fairseq_star.runtime.memory import peak_extra_bytes, synchronize
from fairseq_star.runtime.names import HUBERT_BASE

LONGEST = 86_400  # seconds of audio, far more than any model processes at once
# HuBERT Base's published 94.7 M: mask embedding, final_proj (768 to 256) and label_embs_concat (504 units) counted.
HUBERT_BASE_PRETRAINING = 768 + (768 * 256 + 256) + 504 * 256


@dataclass
class ProfileRow:
    """One model. A field is None where it is unknown: an exported program's MACs, a speed that was not measured."""

    name: str  # as the user named it; a HuggingFace id with its commit
    family: str
    num_parameters: int | None  # of the encoder
    num_parameters_published: int | None  # with mask embedding and heads, as checkpoints hold and papers count them
    gmacs_per_second: float | None = None  # 1e9 MACs a second of audio, in one utterance of ``ProfileResult.seconds``
    gmacs_superb: float | None = None  # 1e9 MACs, sum over SUPERB's 32 utterances
    macs_ratio: float | None = None  # SUPERB's MACs relative to the teacher's
    real_time_factor: float | None = None  # seconds of computing for a second of audio, one utterance at a time
    peak_mib: float | None = None  # MiB that a forward pass takes beyond the loaded model


@dataclass
class ProfileResult:
    """Rows of a profile, the teacher's first."""

    rows: list[ProfileRow]
    seconds: float  # duration of the utterance for MACs per second, speed and memory
    num_threads: int | None  # threads of the speed measurement; None = speed not measured
    device: str | None

    def to_markdown(self) -> str:
        """Return a table in Markdown, and a line on how it was made."""
        head = ["model", "parameters", "as published", f"GMACs/s ({self.seconds:g} s)", "GMACs, SUPERB", "of teacher"]
        columns = {"num_parameters": ",d", "num_parameters_published": ",d", "gmacs_per_second": ".3f",
                   "gmacs_superb": ".1f", "macs_ratio": ".3f"}  # fmt: skip
        note = (
            "\nGMACs, SUPERB: sum over 32 utterances of LibriSpeech test-clean (224.86 s), attention included. "
            "As published: with mask embedding and pretraining heads."
        )
        if self.num_threads:
            head += ["RTF", "peak MiB"]
            columns |= {"real_time_factor": ".4f", "peak_mib": ".0f"}
            threads = f"{self.num_threads} thread" + ("s" if self.num_threads > 1 else "")
            note += (
                f" RTF (computing time / audio time) and peak memory beyond the loaded model: one utterance of "
                f"{self.seconds:g} s, {self.device}, {threads}, median."
            )
        lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
        for row in self.rows:
            values = [(getattr(row, name), form) for name, form in columns.items()]
            cells = [row.name, *("" if value is None else format(value, form) for value, form in values)]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join([*lines, note])

    def to_dict(self) -> dict:
        return asdict(self)


def profile(
    models: Sequence[str],
    *,
    teacher: str = HUBERT_BASE,
    seconds: float = 10.0,
    speed: bool = True,
    device: str = "cpu",
    num_threads: int | None = None,
    rounds: int = 5,
) -> ProfileResult:
    """Count and measure models.

    Args:
        models: each the name of an architecture (``starhubert``, ``starhubert_s``, ... or ``hubert_base``), a
            checkpoint, HuggingFace folder or id that ``task.teacher`` would take, or an exported TorchScript or ONNX
            file.
        teacher: likewise; the model that ratios refer to.
        seconds: duration of the one utterance for MACs a second, speed and memory.
        speed: measure real-time factor and peak memory too, each in a fresh process (seconds each).
        device: ``cpu`` or ``cuda``, for the speed.
        num_threads: for the speed; torch's own choice when None.
        rounds: timed runs, of which the median is reported.

    Raises:
        StarError: no such architecture or file, or one that cannot be loaded; ``seconds`` out of range.
    """
    if not 0 < seconds <= LONGEST:
        raise StarError(f"--seconds {seconds:g}: must be above 0 and at most {LONGEST:,}, a day; correct it")
    teacher, *models = (hub.locate(name, "profile").name for name in (teacher, *models))
    names = [teacher, *(name for name in models if name != teacher)]
    rows, threads = [], None
    for row, config in [_count(name) for name in names]:  # all of them, before any takes seconds
        if config is not None:
            row.gmacs_per_second = encoder_macs(config, [round(seconds * SAMPLE_RATE)])[0] / seconds / 1e9
            row.gmacs_superb = sum(encoder_macs(config, SUPERB_UTTERANCES)) / 1e9
        rows.append(row)
        if row.gmacs_superb and rows[0].gmacs_superb:
            row.macs_ratio = row.gmacs_superb / rows[0].gmacs_superb
        if speed:
            measured = measure_speed(row.name, seconds, device, num_threads, rounds)
            row.real_time_factor, row.peak_mib = measured.real_time_factor, measured.peak_mib
            threads = threads or measured.num_threads
    return ProfileResult(rows, seconds, threads, device if speed else None)


def _count(name: str) -> tuple[ProfileRow, EncoderConfig | None]:
    """Return a model's row with its parameter counts, and its encoder's config (None: an exported program)."""
    if (config := architecture(name)) is not None:
        counted = sum(parameter.numel() for parameter in SpeechEncoder(config).parameters())
        extra = HUBERT_BASE_PRETRAINING if name == HUBERT_BASE else 0
        return ProfileRow(name, f"{name} (architecture)", counted, counted + extra), config
    if (kind := exported_kind(name)) is not None:
        return ProfileRow(name, kind, None, None), None
    path = hub.locate(name, "profile").path
    if not os.path.exists(path):
        known = ", ".join([HUBERT_BASE, *ARCHITECTURES])
        raise StarError(f"profile: there is no file or folder {path}, and no such architecture; they are {known}")
    encoder = load_encoder(path, option="profile")
    weights = read_weights(path, "profile") if os.path.isdir(path) else read_checkpoint(path, "profile")["model"]
    published = sum(weight.numel() for weight in weights.values())
    return ProfileRow(name, encoder.family, encoder.num_parameters, published), encoder.config


def architecture(name: str) -> EncoderConfig | None:
    """Return the encoder config of a student's architecture or of HuBERT Base; None for any other name."""
    if name == HUBERT_BASE:
        return encoder_config.HUBERT_BASE
    return student_config({"_name": name}, name) if name in ARCHITECTURES else None


def exported_kind(name: str) -> str | None:
    """Return ``TorchScript`` or ``ONNX`` where the file is an exported program; else None."""
    if not os.path.isfile(name):
        return None
    if name.endswith(".onnx"):
        return "ONNX"
    if not zipfile.is_zipfile(name):
        return None
    with zipfile.ZipFile(name) as archive:
        # A checkpoint has no compiled code, hence no constants.
        return "TorchScript" if any(entry.endswith("/constants.pkl") for entry in archive.namelist()) else None


@dataclass
class Speed:
    """Medians over the timed rounds."""

    real_time_factor: float  # seconds of computing for a second of audio
    peak_mib: float  # MiB beyond the loaded model
    num_threads: int


def measure_speed(name: str, seconds: float, device: str, num_threads: int | None, rounds: int) -> Speed:
    """Run ``name`` (see :func:`profile`) over one utterance of noise, in a process of its own.

    Raises:
        StarError: it cannot be loaded or run.
    """
    package_root = str(Path(__file__).resolve().parents[2])
    command = f"import sys; sys.path.insert(0, {package_root!r}); from {__name__} import main; main()"
    arguments = [name, str(seconds), device, str(num_threads or 0), str(rounds)]
    done = subprocess.run([sys.executable, "-c", command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("fairseq-star: ")
        raise StarError(f"profile: measuring {name} failed: {reason}")
    return Speed(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure in the fresh process, and print a :class:`Speed` as JSON."""
    name, seconds, device, num_threads, rounds = sys.argv[1:]
    if int(num_threads):
        torch.set_num_threads(int(num_threads))
    with exit_on_star_error():
        forward = _load(name, device)
    torch.manual_seed(0)
    source = torch.randn(1, round(float(seconds) * SAMPLE_RATE))
    source = source.to(device) if exported_kind(name) != "ONNX" else source
    peak = peak_extra_bytes(lambda: forward(source), device)
    times = []
    for _ in range(int(rounds)):
        start = time.perf_counter()
        forward(source)
        synchronize(device)
        times.append(time.perf_counter() - start)
    speed = Speed(statistics.median(times) / float(seconds), peak / 2**20, torch.get_num_threads())
    print(json.dumps(asdict(speed)))


def _load(name: str, device: str) -> Callable[[Tensor], object]:
    """Return a function of ``source`` (1 x samples) that computes all layers' states."""
    kind = exported_kind(name)
    if kind == "ONNX":
        return _load_onnx(name, device)
    if kind == "TorchScript":
        program = torch.jit.load(name, map_location=device).eval()
        return torch.inference_mode()(lambda source: program(source))
    config = architecture(name)
    encoder = (load_encoder(name, option="profile") if config is None else untrained(config)).to(device)
    return lambda source: encoder(source, [source.size(1)])


def _load_onnx(name: str, device: str) -> Callable[[Tensor], object]:
    try:
        import onnxruntime
    except ImportError as error:
        raise StarError(f"profile: {name} needs onnxruntime; pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers = ["CPUExecutionProvider"] if device == "cpu" else ["CUDAExecutionProvider"]
    session = onnxruntime.InferenceSession(name, options, providers=providers)
    first, *others = (one.name for one in session.get_inputs())

    def run(source: Tensor) -> object:
        num_samples = np.array([source.size(1)])  # the second input of programs that fairseq-star export writes
        return session.run(None, {first: source.numpy(), **dict.fromkeys(others, num_samples)})

    return run
