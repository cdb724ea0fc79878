"""What ``benchmarks.device`` measures of a file: how near it is to its student, what it knows, how fast it is."""

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from benchmarks.device_files import File
from benchmarks.measure import Timing, alternate
from fairseq_star.analysis.probe.labels import PHONE, read_task
from fairseq_star.analysis.probe.result import Bootstrap, interval
from fairseq_star.analysis.probe.run import probe_features
from fairseq_star.analysis.profile import measure_speed
from fairseq_star.deploy.onnx import Onnx
from fairseq_star.deploy.programs import STREAM, Run, streams_of
from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.manifest import read_manifest

CHECKED_SECONDS = 35.0  # of whole utterances, of which all layers are compared


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


def agreement(got: Sequence[Tensor], expected: Sequence[Tensor]) -> dict[str, float | list[float]]:
    """Cosines of frames, of all layers (each n x D): each layer's mean, and the worst frame of any."""
    cosines = [F.cosine_similarity(a, b, dim=-1) for a, b in zip(got, expected, strict=True)]
    return {
        "layers": [float(one.mean()) for one in cosines],
        "worst": min(float(one.min()) for one in cosines),
    }


def agreements(file: File, audio: Tensor) -> dict:
    """Of whole utterances, all layers, over what is heard in :data:`CHECKED_SECONDS`."""
    run, _ = Onnx.load(file.path)
    source = audio[: int(CHECKED_SECONDS * 16_000)]
    return agreement(_states(run, source), file.student.hidden_states([source], 16_000)[0])


def heard_whole(files: Sequence[File], audio: Tensor, options: argparse.Namespace) -> Iterator[dict]:
    """A row for each length, number of threads and file, the first file being what the others are faster than.

    Each runs in turn with the first alone: what all of them keep of two minutes at once would not fit.
    """
    lengths = sorted(options.seconds)
    with tqdm(total=len(lengths) * len(options.threads) * len(files), desc="whole utterances", unit="row") as shown:
        for seconds in lengths:
            source = audio[: int(seconds * 16_000)]
            students = {id(file.student): file.student for file in files}
            expected = {key: one.hidden_states([source], 16_000)[0] for key, one in students.items()}
            for threads, file in product(options.threads, files):
                timing, states = _heard(files[0], file, threads, source, options.rounds)
                close = agreement(states, expected[id(file.student)])
                yield {
                    "weights": file.weights, "threads": threads, "seconds": seconds,
                    "real-time factor": timing.median / seconds, "faster": timing.speedup,
                    "last layer": close["layers"][-1], "worst": close["worst"],
                }  # fmt: skip
                shown.update()


def _heard(first: File, file: File, threads: int, source: Tensor, rounds: int) -> tuple[Timing, list[Tensor]]:
    """How fast the file is, in turn with the first, and its states; no session outlives this."""
    run, others = Onnx.load(file.path, threads)[0], [] if file is first else [Onnx.load(first.path, threads)[0]]
    timing = alternate([partial(_states, one, source) for one in [*others, run]], rounds, "cpu")[-1]
    return timing, _states(run, source)


def _states(run: Run, source: Tensor) -> list[Tensor]:
    last, states, _ = run(source[None], torch.tensor([len(source)]))
    return [*states[:-1, 0], last[0]]


def peaks(files: Sequence[File], options: argparse.Namespace) -> list[dict]:
    """MiB beyond the loaded file, of one utterance of noise of each length, in a process of its own."""
    threads = max(options.threads)
    return [
        {
            "weights": file.weights, "seconds": seconds,
            "MiB": measure_speed(str(file.path), seconds, "cpu", threads, 1).peak_mib,
        }
        for file, seconds in tqdm(list(product(files, options.seconds)), "peak memory", unit="row", disable=None)
    ]  # fmt: skip


def heard_in_chunks(file: File, audio: Tensor, labels: "Labels | None", options: argparse.Namespace) -> Iterator[dict]:
    """A row for each size of chunks and number of threads, all of the audio as one stream."""
    seconds = len(audio) / 16_000
    for chunk in tqdm(options.chunks, f"live, {file.weights}", unit="row", disable=None):
        file.student.use_chunks(chunk)
        expected = file.student.hidden_states([audio], 16_000)[0]
        known = labels.told(file, chunk) if labels else {}
        for threads in options.threads:
            run, metadata = Onnx.load(file.path, threads)
            live = streams_of(run, metadata[STREAM], chunk_frames=chunk)
            times, frames = [], []
            for piece in audio.split(chunk * live.shape.downsample_rate):
                start = time.perf_counter()
                frames.append(live.feed([piece])[0])
                times.append(time.perf_counter() - start)
            frames.append(live.flush()[0])
            close = agreement(torch.cat(frames, 1), expected)
            p50, p95 = (1e3 * float(np.percentile(times[1:], q)) for q in (50, 95))
            yield {
                "weights": file.weights, "chunk_frames": chunk, "look-ahead ms": live.look_ahead, "threads": threads,
                "real-time factor": sum(times) / seconds, "p50 ms": p50, "p95 ms": p95,
                "MB a stream": live.state_bytes / 1e6, "last layer": close["layers"][-1], "worst": close["worst"],
                **known,
            }  # fmt: skip


class Labels:
    """Phones of a labelled corpus, told from a file's states; the first file asked about is what others differ from."""

    def __init__(self, data: Path, max_utterances: int):
        self.data, self.most = data, max_utterances
        self._first: dict[int | None, np.ndarray] = {}  # by size of chunks: which test frames the float file tells

    def told(self, file: File, chunk_frames: int | None = None) -> dict[str, float]:
        """Accuracy and its interval, and those of the difference to the first file that heard likewise."""
        geometry: FrameGeometry = file.student.model.geometry
        task = read_task(self.data, PHONE, geometry, self.most)
        [head] = probe_features(_extractor(file, chunk_frames), [task], [0], file.weights)[PHONE]
        correct = head.correct.numpy()[None]
        bootstrap = Bootstrap([one.cluster for one in task.test for _ in one.labels], 1)
        draws = bootstrap.draws(correct)
        first = self._first.setdefault(chunk_frames, correct)
        found = {"phones": float(correct.mean()), "interval": interval(draws)}
        if first is not correct:
            difference = float(correct.mean() - first.mean())
            found |= {"difference": difference, "difference's interval": interval(draws - bootstrap.draws(first))}
        return found


def _extractor(file: File, chunk_frames: int | None):
    run, metadata = Onnx.load(file.path, 1)

    def features(samples: Tensor) -> tuple[Tensor, Tensor]:  # T x L x D, L x D
        if chunk_frames is None:
            states = torch.stack(_states(run, samples))
        else:
            live = streams_of(
                run, metadata[STREAM], chunk_frames=chunk_frames
            )  # utterances are heard by several threads
            states = torch.cat([live.feed([samples])[0], live.flush()[0]], 1)
        states = states.transpose(0, 1)
        return states, states.mean(0)

    return features
