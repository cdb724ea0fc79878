"""Real-time factor and peak memory of one model, measured in a fresh process.

:func:`measure_speed` starts the process, :func:`main` is what it does: a fresh one, because memory that an earlier
model left to the allocator would hide the next one's.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fairseq_star.analysis.profile.model_facts import architecture, exported_kind
from fairseq_star.analysis.untrained import untrained
from fairseq_star.errors import StarError, told_in_one_line
from fairseq_star.formats import load_encoder
from fairseq_star.manifest import SAMPLE_RATE
from fairseq_star.runtime.memory import peak_extra_bytes, synchronize


@dataclass
class Speed:
    """Medians over the timed rounds."""

    real_time_factor: float | None  # seconds of computing for a second of audio
    peak_mib: float | None  # MiB beyond the loaded model
    num_threads: int | None


def measure_speed(name: str, seconds: float, device: str, num_threads: int | None, rounds: int) -> Speed:
    """Run ``name`` (see :func:`profile`) over one utterance of noise, in a process of its own.

    Raises:
        StarError: it cannot be loaded or run.
    """
    package_root = str(Path(__file__).resolve().parents[3])
    module = "fairseq_star.analysis.profile.speed"
    command = f"import sys; sys.path.insert(0, {package_root!r}); from {module} import main; main()"
    arguments = [name, str(seconds), device, str(num_threads or 0), str(rounds)]
    done = subprocess.run([sys.executable, "-c", command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("fairseq-star: ")
        raise StarError(f"profile: measuring {name} failed: {said}")
    return Speed(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """What the fresh process does."""
    name, seconds, device, num_threads, rounds = sys.argv[1:]
    if int(num_threads):
        torch.set_num_threads(int(num_threads))
    with told_in_one_line():
        forward = _loaded(name, device)
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


def _loaded(name: str, device: str) -> Callable[[Tensor], object]:
    """A function of ``source`` (1 x samples) that computes all layers' states."""
    kind = exported_kind(name)
    if kind == "ONNX":
        return _onnx(name, device)
    if kind == "TorchScript":
        program = torch.jit.load(name, map_location=device).eval()
        return torch.inference_mode()(lambda source: program(source))
    config = architecture(name)
    encoder = load_encoder(name, option="profile") if config is None else untrained(config)
    encoder = encoder.to(device)
    return lambda source: encoder(source, [source.size(1)])


def _onnx(name: str, device: str) -> Callable[[Tensor], object]:
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
        lengths = np.array([source.size(1)])  # `num_samples` of what fairseq-star export writes
        return session.run(None, {first: source.numpy(), **dict.fromkeys(others, lengths)})

    return run
