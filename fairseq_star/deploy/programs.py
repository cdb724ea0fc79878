"""Students as programs of ``torch.export``, from which ``.pt2`` files and dynamo's ONNX files are written.

A student of whole utterances is an :class:`InferenceStudent`, batch and length dynamic. A streaming student is a
:class:`StreamStep`: a window of audio and a state in, frames and the next state out; any number of streams and of chunk
frames, so that one file serves every latency, and whole utterances as a single chunk. Shapes are documented in either
module.

A streaming program's file also stores, under :data:`STREAM`, the numbers that its windows and state follow from.
"""

import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from fairseq_star.deploy.attention import attention_by_products, joined, joined_by_products
from fairseq_star.deploy.inference_module import INPUTS, OUTPUTS, InferenceStudent, head_metadata, output_names
from fairseq_star.deploy.streaming import Streams, StreamShape, StreamState, StreamStep, check_streams
from fairseq_star.encoder.attention import attention
from fairseq_star.errors import StarError
from fairseq_star.formats.head import Head
from fairseq_star.formats.student import Student
from fairseq_star.formats.target import Target, batches, check_sources, valid_frames

STREAM_INPUTS = ("window", "num_frames", *StreamState._fields)
STREAM_OUTPUTS = (*OUTPUTS[:2], *(f"next_{name}" for name in StreamState._fields))
STREAM = "fairseq_star.stream"
MOST = 1 << 20  # utterances, streams or frames at a time: torch requires a bound
PIECE = 997  # samples at a time that a stream is checked with: no multiple of a frame
Run = Callable[..., list[Tensor]]
"""A loaded program: input tensors in, output tensors out, both in order."""


@dataclass
class Program:
    """A student's program; names are those of its inputs and outputs in order."""

    exported: ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    metadata: dict[str, str]


def program_of(student: Student, products: bool = False) -> Program:
    """Build the program of ``student``.

    Args:
        products: whether attention is written out as products, which onnxruntime runs faster.

    Raises:
        StarError: a streaming student receives normalized audio.
    """
    some = Dim("streams" if student.config.chunk_frames else "batch", min=1, max=MOST)
    if not student.config.chunk_frames:
        geometry = student.model.geometry
        # torch specializes on a single frame: shorter audio is padded, with its length in num_samples.
        samples = Dim("samples", min=geometry.receptive_field + geometry.downsample_rate)
        inputs = next(batches(check_sources(), padded=True, normalize=False))
        module = InferenceStudent(student, attention_by_products if products else attention)
        exported = _export(module, inputs, ({0: some, 1: samples}, {0: some}))
        metadata = head_metadata(student)
        return Program(exported, INPUTS, output_names(student), metadata)
    check_streams(student)
    step = StreamStep(student.model, joined_by_products if products else joined)
    shape, chunk = step.shape, 4
    window = torch.zeros(2, shape.window(chunk))
    inputs = (window, torch.full([2], chunk + shape.right_context_frames), *shape.first_state(2))
    samples = Dim("chunk_frames", min=1, max=MOST) * shape.downsample_rate + shape.window(0)
    exported = _export(step, inputs, ({0: some, 1: samples}, *({0: some} for _ in inputs[1:])))
    settings = {"sample_rate": student.sample_rate, "chunk_frames": student.model.chunk_frames, "shape": asdict(shape)}
    return Program(exported, STREAM_INPUTS, STREAM_OUTPUTS, {STREAM: json.dumps(settings)})


@torch.no_grad()
def _export(module: torch.nn.Module, inputs: tuple[Tensor, ...], dynamic: tuple[dict, ...]) -> ExportedProgram:
    return torch.export.export(module, inputs, dynamic_shapes=dynamic)


def streams_of(run: Run, settings: str, *, chunk_frames: int | None = None, num_streams: int = 1) -> Streams:
    """Build live streams on a loaded program.

    Args:
        settings: its file's entry :data:`STREAM`.
        chunk_frames: frames of a chunk; the student's own when None.

    Raises:
        StarError: ``settings`` of another format.
    """
    try:
        stored = json.loads(settings)
        shape, sample_rate, in_use = StreamShape(**stored["shape"]), stored["sample_rate"], stored["chunk_frames"]
    except (ValueError, TypeError, KeyError) as error:
        raise StarError(
            f"{STREAM}: {settings[:60]!a} is not what this version writes; export the streaming student again"
        ) from error
    chunk = in_use if chunk_frames is None else chunk_frames
    return Streams(run, shape, sample_rate=sample_rate, chunk_frames=chunk, num_streams=num_streams)


class ProgramTarget(Target):
    """Base of ONNX and ``.pt2`` targets: either kind of student, run by a loaded program."""

    padded_group_norm = False
    streams = True
    heads: ClassVar = (Head,)
    file: ClassVar[str]  # its name in the folder of a fine-tuned student

    def __init__(self):
        self._loaded: dict[Path, tuple[Run, dict[str, str]]] = {}

    @staticmethod
    @abstractmethod
    def load(path: Path) -> tuple[Run, dict[str, str]]:
        """Load a file's program and its metadata: :data:`STREAM` of a streaming student, ``METADATA`` of a head."""

    def hidden_states(self, path: Path, sources: Sequence[Tensor], *, padded: bool) -> list[list[Tensor]]:
        """See the base class; a streaming program processes each utterance as a stream in odd pieces, all streams at
        once where ``padded``."""
        run, metadata = self.loaded(path)
        settings, utterances = metadata.get(STREAM), []
        if settings is None:
            for source, num_samples in batches(sources, padded=padded, normalize=False):
                last, states, frame_lengths = run(source, num_samples)
                utterances += valid_frames([*states[:-1], last], frame_lengths)
            return utterances
        for batch in [list(sources)] if padded else [[source] for source in sources]:
            live = streams_of(run, settings, chunk_frames=self.chunk_frames, num_streams=len(batch))
            given = [[] for _ in batch]
            for start in range(0, max(map(len, batch)), PIECE):
                pieces = live.feed([source[start : start + PIECE] for source in batch])
                for frames, piece in zip(given, pieces, strict=True):
                    frames.append(piece)
            for frames, piece in zip(given, live.flush(), strict=True):
                utterances.append(list(torch.cat([*frames, piece], dim=1)))
        return utterances

    def head_outputs(self, path: Path, sources: Sequence[Tensor], *, padded: bool) -> list[list[Tensor]]:
        run, _ = self.loaded(path / self.file)
        utterances = []
        for source, num_samples in batches(sources, padded=padded, normalize=False):
            *outputs, frame_lengths = run(source, num_samples)
            utterances += self.head.split(outputs, frame_lengths)
        return utterances

    def loaded(self, path: Path) -> tuple[Run, dict[str, str]]:
        """Return :meth:`load` of a file, once for all comparisons."""
        if path not in self._loaded:
            self._loaded = {path: self.load(path)}
        return self._loaded[path]

    def run_lines(self, path: Path, load: str, call: str) -> str:
        """Return what a user would type: a line that loads the file, and one that runs whole utterances through it.

        Args:
            path: of the export.
            load: with ``{}`` for the file.
            call: the call, to the right of the names of what it returns.
        """
        file = path if self.head is None else path / self.file
        names = OUTPUTS if self.head is None else self.head.output_names
        run = "the loop that feeds it is in docs/streaming.md" if self.chunk_frames else f"{', '.join(names)} = {call}"
        return f"{load.format(repr(str(file)))}\n{run}"
