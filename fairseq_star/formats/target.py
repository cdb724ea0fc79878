"""Exports: each is written, loaded with the target's own library, compared by all hidden states, and only then appears.

Shapes: B utterances, n_b valid frames of utterance b, D width, L layers.
"""

import importlib.util
import os
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_star.encoder.frames import FrameGeometry, Frames
from fairseq_star.encoder.frozen import utterance_states
from fairseq_star.encoder.running_norm import RUNNING
from fairseq_star.errors import StarError
from fairseq_star.formats.config import EXTRACTOR_MODES
from fairseq_star.formats.student import Student
from fairseq_star.runtime.files import new_output

# Ragged in samples and frames; the shortest is above s3prl's least length of 0.05 s.
CHECK_SAMPLES = (16_000, 11_243, 5_477)
ODD_CHUNK = 7  # frames


class Target(ABC):
    """A format to write students in.

    Options of a target (such as int8) are arguments of its constructor and listed in ``names.TARGET_OPTIONS``.
    """

    title: ClassVar[str]  # for people, such as "HuggingFace folder"
    requires: ClassVar[dict[str, str]] = {}  # the library that loads the export -> how to install it
    tolerance: float = 1e-5  # greatest accepted difference of any hidden state, see `difference`
    measure: str = "largest difference"  # the meaning of `difference`, for people
    is_folder: ClassVar[bool] = False
    padded_group_norm: ClassVar[bool] = True  # whether another library runs it, whose group norm includes padding
    streams: ClassVar[bool] = False  # whether it supports streaming students
    remedy: str = "please report the student's config"  # advice for a file that differs too much
    chunk_frames: int = 0  # frames a chunk in the comparison of a streaming student; 0: no chunks

    @abstractmethod
    def write(self, student: Student, path: Path) -> None:
        """Write ``student`` at ``path``, which does not exist yet: one file, or a folder where ``is_folder``.

        Raises:
            StarError: the target cannot express this student.
        """

    @abstractmethod
    def hidden_states(self, path: Path, sources: Sequence[Tensor], *, padded: bool) -> list[list[Tensor]]:
        """Load a written file with the target's own library and run it.

        Args:
            path: a file or folder that :meth:`write` wrote, or a copy of it.
            sources: raw audio, 1-D float32 of different lengths; where the student is normalized, the target's library
                or else this method normalizes each.
            padded: all in one batch, padded with zeros to the longest; else each by itself.

        Returns:
            For each utterance the L+1 hidden states, each n_b x D, valid frames only: the first layer's input and
            every layer's output, in a pre-norm student the last one after the encoder's final norm.
        """

    def frame_lengths(self, geometry: FrameGeometry, num_samples: Sequence[int]) -> list[int]:
        """Return the numbers of frames that the target counts as valid in a padded batch."""
        return [geometry.num_frames(number) for number in num_samples]

    def sources(self) -> list[Tensor]:
        """Return the raw audio (1-D) for the comparison; called after :meth:`write`."""
        return check_sources()

    def difference(self, got: Tensor, expected: Tensor) -> float:
        """Return the largest difference of two hidden states (n_b x D), relative where states exceed 1."""
        return float((got - expected).abs().max() / expected.abs().max().clamp(min=1))

    @abstractmethod
    def next_step(self, path: Path) -> str:
        """Return the next command a user would type, on one or more lines."""


@dataclass
class Exported:
    """A written export."""

    path: Path
    num_bytes: int
    alone: float  # largest difference, each utterance by itself
    batched: float  # likewise, ragged utterances in one padded batch


def need(library: str, option: str, install: str) -> None:
    """Check that a library is installed.

    Raises:
        StarError: it is not.
    """
    if importlib.util.find_spec(library) is None:
        raise StarError(f"{option} needs {library} to write or check a file; {install}")


def export(student: Student, target: Target, out: str | os.PathLike, *, force: bool = False) -> Exported:
    """Write ``student`` for ``target`` at ``out``, if the target's library computes the student's hidden states of it.

    Until it has passed, it is in a hidden temporary folder next to ``out``, which is removed in any case.

    Args:
        out: file or folder; an existing one is an error without ``force``.

    Raises:
        StarError: ``out`` exists already or cannot be written, the target cannot express the student, or its library's
            hidden states differ from the student's by more than the target's tolerance.
    """
    mode = student.config.extractor_mode
    if target.padded_group_norm and mode not in (*EXTRACTOR_MODES, RUNNING):
        raise StarError(
            f"export: no {target.title} can hold model.extractor_mode={mode}, as {student.origin} has it; take --to "
            "torchscript, onnx or pt2"
        )
    if student.config.chunk_frames and not target.streams:
        raise StarError(
            f"export: no {target.title} can hold chunked attention or a running norm, as "
            f"{student.origin} has them; take --to onnx or --to pt2"
        )
    out = Path(out)
    with new_output(out, what=target.title, is_folder=target.is_folder, force=force, origin=student.origin) as written:
        target.write(student, written)
        alone, batched = compare(student, target, written)
        if not (alone <= target.tolerance and batched <= target.tolerance):  # nan fails
            raise StarError(
                f"export: {target.title} and student differ by {max(alone, batched):.1e} ({target.measure}), more than "
                f"{target.tolerance:.0e}; {out} was not written: {target.remedy}"
            )
        num_bytes = sum(file.stat().st_size for file in [written, *written.rglob("*")] if file.is_file())
    return Exported(out, num_bytes, alone, batched)


def compare(student: Student, target: Target, written: Path) -> tuple[float, float]:
    """Return the largest difference of any hidden state: of utterances by themselves, and of a ragged padded batch.

    A streaming student is compared in chunks of all its sizes and an odd one, whole utterances as a single chunk.

    Raises:
        StarError: ``target`` returns states of another number or shape than the student.
    """
    if not student.config.chunk_frames:
        return _compare(student, target, written)
    in_use, differences = student.model.chunk_frames, []
    try:
        for size in dict.fromkeys([*student.config.chunk_frames, ODD_CHUNK]):
            student.use_chunks(size)
            longest = max(map(len, target.sources()))
            target.chunk_frames = size or student.model.geometry.num_frames(longest)
            differences.append(torch.tensor(_compare(student, target, written)))
    finally:
        student.use_chunks(in_use)
    alone, batched = torch.stack(differences).amax(0).tolist()  # a nan stays a nan
    return alone, batched


def _compare(student: Student, target: Target, written: Path) -> tuple[float, float]:
    # Normalizers add different epsilons to the variance (fairseq 1e-5, transformers 1e-7), negligible in loud audio.
    sources = [source * (30 if student.normalize else 1) for source in target.sources()]
    differences = []
    for padded in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries warn about their own code
            expected = student_states(student, sources, target if padded else None)
            got = target.hidden_states(written, sources, padded=padded)
        worst = [torch.zeros(())]
        for ours, theirs in zip(expected, got, strict=True):
            if [state.shape for state in ours] != [state.shape for state in theirs]:
                shapes = [f"{len(states)} of {tuple(states[0].shape)}" for states in (theirs, ours)]
                raise StarError(f"export: {target.title} returns {shapes[0]} hidden states, the student {shapes[1]}")
            worst += [torch.tensor(target.difference(b, a)) for a, b in zip(ours, theirs, strict=True)]
        differences.append(float(torch.stack(worst).max()))  # a nan stays a nan, which Python's max would lose
    return differences[0], differences[1]


def check_sources() -> list[Tensor]:
    """Return three ragged utterances of swelling noise, always the same: norms differ where the loudness changes."""
    generator = torch.Generator().manual_seed(0)
    sources = []
    for number, num_samples in enumerate(CHECK_SAMPLES):
        swell = 0.2 + torch.linspace(0, 3 + number, num_samples).sin().abs()
        sources.append(swell * torch.randn(num_samples, generator=generator))
    return sources


def in_batches(sources: Sequence[Tensor], padded: bool) -> list[list[Tensor]]:
    """Return all ``sources`` in one batch if ``padded``, else each in a batch of its own."""
    return [list(sources)] if padded else [[source] for source in sources]


def batches(sources: Sequence[Tensor], *, padded: bool, normalize: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (B x samples, num_samples) of all ``sources`` in one zero-padded batch, or of each by itself."""
    if normalize:
        sources = [F.layer_norm(source, source.shape) for source in sources]
    for batch in in_batches(sources, padded):
        num_samples = torch.tensor([len(source) for source in batch])
        yield torch.nn.utils.rnn.pad_sequence(batch, batch_first=True), num_samples


def valid_frames(states: Sequence[Tensor], frame_lengths: Tensor) -> list[list[Tensor]]:
    """Split L+1 ``states`` (each B x T x D) by utterance; each is n_b x D."""
    return [[state[number, :length] for state in states] for number, length in enumerate(frame_lengths.tolist())]


@torch.no_grad()
def student_states(student: Student, sources: Sequence[Tensor], target: Target | None = None) -> list[list[Tensor]]:
    """Return the student's own hidden states in the form of :meth:`Target.hidden_states`.

    Each utterance is computed by itself; with ``target`` all are, in one padded batch, with the target's group norm and
    numbers of valid frames.
    """
    if target is None:
        return [student.hidden_states([source], student.sample_rate)[0] for source in sources]
    [(batch, lengths)] = batches(sources, padded=True, normalize=student.normalize)
    num_samples = lengths.tolist()
    model = student.padded() if target.padded_group_norm else student.model
    frame_lengths = target.frame_lengths(model.geometry, num_samples)
    padding_mask = torch.arange(max(frame_lengths)) >= torch.tensor(frame_lengths)[:, None]
    return utterance_states(model, batch, Frames(num_samples, frame_lengths, padding_mask))
