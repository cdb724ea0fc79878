"""Exports: each is written, loaded with the target's own library, compared by all it computes, and only then appears.

A student's hidden states are compared with its own; what a fine-tuned student's head computes is compared with what the
toolkit computes that it was fine-tuned with, and the texts that runtimes make of a file with those of its outputs.

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
from fairseq_star.formats.head import Head
from fairseq_star.formats.student import Student
from fairseq_star.runtime.files import new_output

# Ragged in samples and frames; the shortest is above s3prl's least length of 0.05 s.
CHECK_SAMPLES = (16_000, 11_243, 5_477)
ODD_CHUNK = 7  # frames
LONG_SAMPLES = (32_000, 1_920_000)  # further lengths for a head: 2 s and 2 min at 16 kHz
NUM_TEXTS = 8  # utterances of a second whose texts are compared
SUFFIXES = (".onnx", ".pt2", ".ts", ".pt")  # of files, which a folder's name must not end in


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
    heads: ClassVar[tuple[type[Head], ...]] = ()  # those that it can hold
    text_tolerance: float = 1e-3  # of a head's margin: closer calls are not compared as texts
    remedy: str = "please report the student's config"  # advice for a file that differs too much
    chunk_frames: int = 0  # frames a chunk in the comparison of a streaming student; 0: no chunks
    head: Head | None = None  # of the student in hand; then a folder is written, with the head's labels in it

    @abstractmethod
    def write(self, student: Student, path: Path) -> None:
        """Write ``student`` at ``path``, which does not exist yet: one file, or a folder where ``is_folder`` or a head.

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

    def head_outputs(self, path: Path, sources: Sequence[Tensor], *, padded: bool) -> list[list[Tensor]]:
        """Return the head's outputs for each utterance (:meth:`Head.split`); arguments of :meth:`hidden_states`."""
        raise NotImplementedError

    def texts(self, path: Path, sources: Sequence[Tensor]) -> dict[str, list[str]]:
        """Return the text of each utterance by every runtime that decodes by itself, where it is installed.

        Returns:
            A runtime's name -> texts.
        """
        return {}

    def text_sources(self) -> list[Tensor]:
        """Return the raw audio (1-D) for the comparison of texts."""
        return [*self.sources(), *(noise([16_000], seed=number + 1)[0] for number in range(NUM_TEXTS))]

    def frame_lengths(self, geometry: FrameGeometry, num_samples: Sequence[int]) -> list[int]:
        """Return the numbers of frames that the target counts as valid in a padded batch."""
        return [geometry.num_frames(number) for number in num_samples]

    def sources(self) -> list[Tensor]:
        """Return the raw audio (1-D) for the comparison; called after :meth:`write`."""
        return check_sources()

    def difference(self, got: Tensor, expected: Tensor) -> float:
        """Return the largest difference of two hidden states (n_b x D), relative where states exceed 1."""
        return float((got - expected).abs().max() / expected.abs().max().clamp(min=1))

    def cosines(self, got: Tensor, expected: Tensor) -> Tensor:
        """Return the cosine of each frame (n_b) with the expected one, for quantized files.

        A head's outputs are compared without their mean over tokens: log-probabilities are scores minus a number for
        each frame, which would hide every difference.
        """
        if self.head is not None:
            got, expected = (outputs - outputs.mean(-1, keepdim=True) for outputs in (got, expected))
        return F.cosine_similarity(got, expected, dim=-1)

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
    runtimes: tuple[str, ...] = ()  # whose texts were compared too


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
    out, is_folder = Path(out), target.is_folder or student.head is not None
    _check_head(student, target, out)
    target.head, runtimes = student.head, ()
    with new_output(out, what=target.title, is_folder=is_folder, force=force, origin=student.origin) as written:
        target.write(student, written)
        alone, batched = compare(student, target, written)
        if not (alone <= target.tolerance and batched <= target.tolerance):  # nan fails
            raise StarError(
                f"export: {target.title} and student differ by {max(alone, batched):.1e} ({target.measure}), more than "
                f"{target.tolerance:.0e}; {out} was not written: {target.remedy}"
            )
        if student.head is not None:
            runtimes = _compare_texts(student.head, target, written)
        num_bytes = sum(file.stat().st_size for file in [written, *written.rglob("*")] if file.is_file())
    return Exported(out, num_bytes, alone, batched, runtimes)


def _check_head(student: Student, target: Target, out: Path) -> None:
    if student.head is None:
        return
    if not isinstance(student.head, target.heads):
        raise StarError(
            f"export: no {target.title} can hold the head of {student.origin}; take --to onnx, or `fairseq-star "
            "import` its encoder and export that"
        )
    if student.config.chunk_frames:
        raise StarError(f"export: {student.origin} streams, and heads are of whole utterances; leave --embedding out")
    if out.suffix in SUFFIXES:
        raise StarError(f"--out {out}: a fine-tuned student is exported as a folder; give a name without {out.suffix}")


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
    loudness = 30 if student.normalize else 1
    outputs = target.hidden_states if student.head is None else target.head_outputs
    differences = []
    for padded in (False, True):
        sources = target.sources() if padded or student.head is None else [*target.sources(), *noise(LONG_SAMPLES)]
        sources = [source * loudness for source in sources]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries warn about their own code
            expected = target_outputs(student, sources, target if padded else None)
            got = outputs(written, sources, padded=padded)
        worst = [torch.zeros(())]
        for ours, theirs in zip(expected, got, strict=True):
            if [state.shape for state in ours] != [state.shape for state in theirs]:
                shapes = [f"{len(states)} of {tuple(states[0].shape)}" for states in (theirs, ours)]
                what = "hidden states" if student.head is None else student.head.title
                raise StarError(f"export: {target.title} returns {shapes[0]} {what}, the student {shapes[1]}")
            worst += [torch.tensor(target.difference(b, a)) for a, b in zip(ours, theirs, strict=True)]
        differences.append(float(torch.stack(worst).max()))  # a nan stays a nan, which Python's max would lose
    return differences[0], differences[1]


def _compare_texts(head: Head, target: Target, written: Path) -> tuple[str, ...]:
    """Compare the texts of runtimes with those of the written file's own outputs, in utterances without near ties.

    Returns:
        The runtimes' names.

    Raises:
        StarError: one makes another text.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sources = target.text_sources()
        outputs = target.head_outputs(written, sources, padded=False)
        clear = [number for number, one in enumerate(outputs) if head.margin(one) > target.text_tolerance]
        expected = [head.text(outputs[number]) for number in clear]
        by_runtime = target.texts(written, [sources[number] for number in clear])
    for runtime, texts in by_runtime.items():
        for ours, theirs in zip(expected, texts, strict=True):
            if ours != " ".join(theirs.split()):
                raise StarError(
                    f"export: {runtime} reads {theirs!a} where the {target.title} says {ours!a}; it was not written, "
                    "please report it"
                )
    return tuple(by_runtime)


def check_sources() -> list[Tensor]:
    """Return three ragged utterances of :func:`noise`."""
    return noise(CHECK_SAMPLES)


def noise(lengths: Sequence[int], seed: int = 0) -> list[Tensor]:
    """Return utterances of swelling noise, always the same: norms differ where the loudness changes."""
    generator = torch.Generator().manual_seed(seed)
    sources = []
    for number, num_samples in enumerate(lengths):
        swell = 0.2 + torch.linspace(0, 3 + number, num_samples).sin().abs()
        sources.append(swell * torch.randn(num_samples, generator=generator))
    return sources


def model_file(path: Path, head: Head | None, name: str) -> Path:
    """Return where to write a program: ``path``, or with a head ``name`` in a new folder ``path`` with its labels."""
    if head is None:
        return path
    path.mkdir()
    head.write_labels(path)
    return path / name


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


@torch.no_grad()
def target_outputs(student: Student, sources: Sequence[Tensor], target: Target | None = None) -> list[list[Tensor]]:
    """Return what an export must compute: :func:`student_states`, or the outputs of the student's head.

    The head's outputs for an utterance by itself are those of the toolkit that it was fine-tuned with.
    """
    if student.head is None:
        return student_states(student, sources, target)
    if student.reference is not None and (target is None or not target.padded_group_norm):
        return student.reference(sources)
    outputs = []
    for states in student_states(student, sources, target):
        frame_lengths = torch.tensor([len(states[-1])])
        outputs += student.head.split(student.head([state[None] for state in states], frame_lengths), frame_lengths)
    return outputs
