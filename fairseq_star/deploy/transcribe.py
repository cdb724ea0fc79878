"""Audio files to text by a fine-tuned student: its checkpoint, or an exported ONNX file or program of torch.export.

Audio is read, brought to mono and to the student's rate on request, and run at once up to two minutes. Longer audio is
run in windows that overlap, and each frame is taken from the window that it is furthest inside of.

Shapes: N samples, n frames.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_star.audio.file import open_to_the_end, read_blocks
from fairseq_star.deploy.inference_module import INPUTS, InferenceStudent, head_metadata
from fairseq_star.deploy.onnx import Onnx
from fairseq_star.deploy.programs import ProgramTarget
from fairseq_star.deploy.pt2 import Pt2
from fairseq_star.deploy.targets import load_target
from fairseq_star.encoder.frozen import as_samples
from fairseq_star.errors import StarError
from fairseq_star.formats import load_tuned
from fairseq_star.formats.ctc import CtcHead, Tokens
from fairseq_star.formats.finetuned import read_labels
from fairseq_star.formats.head import METADATA
from fairseq_star.runtime.torchaudio_import import import_torchaudio

STDIN = "-"
BLOCK = 2**20  # samples read at a time
AT_ONCE = 120  # seconds at most
WINDOW, CONTEXT = 50, 5  # seconds of a window, and before and after it
LEAST_SECONDS = 0.1  # of a program's input, which shorter audio is padded to


Ready = TypeVar("Ready", bound="Tuned")


@dataclass
class Tuned:
    """A fine-tuned student that is ready to run."""

    run: Callable[[Tensor, Tensor], list[Tensor]]  # source (1 x N), num_samples (1) -> log-probabilities, frame_lengths
    labels: Any  # of its outputs, such as Tokens
    sample_rate: int  # Hz
    downsample_rate: int  # samples a frame

    def outputs(self, samples: Tensor) -> tuple[Tensor, int]:
        """Return the log-probabilities of one utterance (N), with its batch axis, and the number of its frames."""
        missing = max(int(LEAST_SECONDS * self.sample_rate) - len(samples), 0)
        log_probs, frame_lengths = self.run(F.pad(samples, (0, missing))[None], torch.tensor([len(samples)]))
        return log_probs, int(frame_lengths)


class Recognizer(Tuned):
    """A student fine-tuned with CTC that is ready to transcribe."""

    @property
    def tokens(self) -> Tokens:
        """Return the tokens of its log-probabilities."""
        return self.labels

    @torch.no_grad()
    def log_probs(self, samples: Tensor) -> Tensor:
        """Return the log-probabilities (n x tokens) of audio (N, mono, float32, at the student's rate)."""
        if len(samples) <= AT_ONCE * self.sample_rate:
            return self._of_window(samples)
        step, context = (int(seconds * self.sample_rate) // self.downsample_rate for seconds in (WINDOW, CONTEXT))
        kept = []
        for first in range(0, len(samples) // self.downsample_rate, step):
            start, end = max(first - context, 0), first + step + context
            frames = self._of_window(samples[start * self.downsample_rate : end * self.downsample_rate])
            kept.append(frames[first - start : first - start + step])
        return torch.cat(kept)

    def _of_window(self, samples: Tensor) -> Tensor:
        log_probs, num_frames = self.outputs(samples)
        return log_probs[0, :num_frames]


@dataclass(frozen=True)
class Command:
    """A command that runs fine-tuned students of one kind."""

    name: str
    kind: str  # of the head
    recipe: str  # that fine-tunes such students


COMMAND = Command("transcribe", CtcHead.kind, "configs/finetune_ctc.yaml")


def load_recognizer(path: str, dictionary: str | None = None, num_threads: int = 0) -> Recognizer:
    """Load a fine-tuned checkpoint, or what ``export --to onnx`` or ``--to pt2`` wrote of one.

    Args:
        path: the checkpoint; the exported folder, or the file in it.
        dictionary: as of :func:`~fairseq_star.formats.finetuned.load_tuned`, for a checkpoint.
        num_threads: of onnxruntime; 0: a core each.

    Raises:
        StarError: the file cannot be read, or is of another kind.
    """
    return load(Recognizer, COMMAND, path, dictionary, num_threads)


def load(kind: type[Ready], command: Command, path: str, dictionary: str | None, num_threads: int) -> Ready:
    """Load a fine-tuned student of a command as ``kind``; other arguments of :func:`load_recognizer`.

    Raises:
        StarError: the file cannot be read, or is of another kind.
    """
    for target in (Onnx, Pt2):
        file = Path(path) / target.file if os.path.isdir(path) else Path(path)
        if file.suffix == Path(target.file).suffix and file.is_file():
            return kind(*_load_program(command, file, target, dictionary, num_threads))
    if os.path.isdir(path):
        raise StarError(
            f"{command.name}: {path} holds no {Onnx.file} and no {Pt2.file}; export a fine-tuned student --to onnx"
        )
    student = load_tuned(path, command.name, dictionary)
    if student.head is None:
        raise StarError(f"{command.name}: {path} is an encoder; fine-tune it first ({command.recipe})")
    described, program = read_labels(head_metadata(student)[METADATA], path), InferenceStudent(student)
    _check_kind(command, described.kind, f"{command.name}: {path}")
    return kind(
        lambda source, num_samples: list(program(source, num_samples)),
        described.labels,
        described.sample_rate,
        described.downsample_rate,
    )


def _load_program(
    command: Command, file: Path, target: type[ProgramTarget], dictionary: str | None, num_threads: int
) -> tuple[Callable[..., list[Tensor]], Any, int, int]:
    """Return the fields of :class:`Tuned`."""
    if dictionary is not None:
        raise StarError(f"{command.name}: --dictionary is for checkpoints; {file} holds its tokens: leave it out")
    name = f"{command.name}: {file}"
    load_target("onnx" if target is Onnx else "pt2")  # checks what is installed
    try:
        run, metadata = target.load(file, num_threads) if target is Onnx else target.load(file)
    except Exception as error:  # of protobuf's, onnxruntime's or torch's kinds
        reason = str(error).strip().splitlines()[0][:200]
        raise StarError(f"{name} cannot be loaded ({reason}); export it again") from error
    described = read_labels(metadata.get(METADATA), name)
    _check_kind(command, described.kind, name)
    if described.inputs != INPUTS:
        raise StarError(f"{name} was written for sherpa-onnx; give one that was exported --to onnx")
    return run, described.labels, described.sample_rate, described.downsample_rate


def _check_kind(command: Command, kind: str, name: str) -> None:
    if kind != command.kind:
        raise StarError(
            f"{name} has a head of another kind ({kind}); {command.name} runs students fine-tuned with {command.recipe}"
        )


def transcribe(
    model: str, files: list[str], *, dictionary: str | None = None, resample: bool = False, num_threads: int = 0
) -> Iterator[tuple[str, str]]:
    """Yield each file and its text.

    Args:
        model, dictionary, num_threads: as of :func:`load_recognizer`.
        files: of audio; ``-`` is one that comes through standard input.
        resample: convert audio of another rate, or of several channels, whose mean is taken.

    Raises:
        StarError: a model or a file that cannot be read, or audio of another form.
    """
    recognizer = load_recognizer(model, dictionary, num_threads)
    for file in files:
        samples = samples_of(file, recognizer.sample_rate, resample, COMMAND.name)
        log_probs = recognizer.log_probs(samples)
        if not len(log_probs):
            raise StarError(f"transcribe: {file} holds {len(samples)} samples, fewer than a frame takes")
        yield file, recognizer.tokens.greedy(log_probs)


def samples_of(file: str, sample_rate: int, resample: bool, command: str) -> Tensor:
    """Return the samples of a file, or of the one that comes through standard input; see :func:`read_audio`."""
    return (_from_stdin if file == STDIN else partial(read_audio, file))(sample_rate, resample, command)


def read_audio(path: str, sample_rate: int, resample: bool, command: str) -> Tensor:
    """Return a file's samples (N, float32) at ``sample_rate``; ``command`` is for messages.

    Raises:
        StarError: it cannot be read, is cut short or empty, or is of another rate or not mono and ``resample`` is off.
    """
    with open_to_the_end(path) as (audio, stated):
        rate, channels = audio.samplerate, audio.channels
        if not resample and (rate, channels) != (sample_rate, 1):
            raise StarError(
                f"{command}: {path} has {rate} Hz and {channels} channel(s); this student receives {sample_rate} Hz, "
                "mono: convert it with --resample"
            )
        blocks = [block.mean(axis=1) for block in read_blocks(audio, stated, BLOCK, f"{command}: {path}")]
    if not sum(map(len, blocks)):
        raise StarError(f"{command}: {path} holds no samples")
    samples = as_samples(np.concatenate(blocks), f"{command}: {path}")
    return samples if rate == sample_rate else import_torchaudio().functional.resample(samples, rate, sample_rate)


def _from_stdin(sample_rate: int, resample: bool, command: str) -> Tensor:
    if sys.stdin is None:
        raise StarError(f"{command}: standard input is closed; pipe an audio file into it, or name one instead of -")
    with tempfile.NamedTemporaryFile() as file:  # formats state their length at the start or at the end
        while data := sys.stdin.buffer.read(BLOCK):
            file.write(data)
        file.flush()
        try:
            return read_audio(file.name, sample_rate, resample, command)
        except StarError as error:
            told = str(error).replace(file.name, "standard input")
            if told.startswith("standard input"):  # it is no audio
                told = f"{command}: {told.partition(';')[0]}; pipe a WAV, FLAC or Ogg file into it"
            raise StarError(told) from None
