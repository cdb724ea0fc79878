"""Students sliced without a run, for ``fairseq-star slice``: one in a file, or a table of several sizes."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from fairseq_star.encoder.config import DROPOUTS, EncoderConfig
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.errors import StarError
from fairseq_star.formats import hub, load_teacher
from fairseq_star.formats.student import ARCHITECTURES, Student, write_student
from fairseq_star.losses.layer_plan import match_layers
from fairseq_star.models.starhubert import StarHubertModel
from fairseq_star.runtime.files import new_output
from fairseq_star.slicing.measures import star_losses, variance_kept
from fairseq_star.slicing.report import SlicingReport
from fairseq_star.slicing.sample import UTTERANCES, draw_for
from fairseq_star.slicing.shapes import count_parameters, student_settings, student_shape, superb_macs
from fairseq_star.slicing.slicer import slice_student

QUARTER = 0.25  # of the teacher's parameters, the default budget
HELD_OUT = 24  # utterances that loss and kept variance are measured on
STREAMING = "starhubert_stream"
PROGRAM_BYTES = 300_000  # of an ONNX file without its weights, for the demo's student of six layers


@dataclass
class Size:
    """Cost of a student, and its distance from its teacher before any training."""

    width: int
    units: int  # feed-forward
    convolutions: list[int]  # channels
    parameters: int
    macs: int  # over SUPERB's 32 utterances
    int8_bytes: int  # estimate for an ONNX file of --int8
    loss: float  # STaR's, on held-out utterances
    loss_of_zero: float  # the same for a student whose states are all zero
    variance_kept: float  # share of all of the teacher's channels explained by a linear map of the student's
    report: SlicingReport

    def to_dict(self) -> dict:
        """Return plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Request:
    """Teacher, data and kind of the students to slice."""

    teacher: str  # as task.teacher takes it
    data: str  # folder of the manifests
    split: str = "train"
    held_out: str = "valid"
    layers: int | None = None  # of the student; the teacher's when None
    architecture: str = "starhubert"
    utterances: int = UTTERANCES
    seed: int = 1


def slice_to_file(
    request: Request, out: str, *, params: float | None = None, macs: float | None = None, force: bool = False
) -> Size:
    """Slice one student and write it as a checkpoint of this project.

    Args:
        out: the file.
        params: parameters at most, up to 1 as a share of the teacher's; a quarter of these where neither budget is
            given.
        macs: multiply-accumulates at most, over SUPERB's 32 utterances.
        force: replace ``out``.

    Raises:
        StarError: no such teacher, data or kind of student, a budget that cannot be met, or ``out`` exists.
    """
    with new_output(Path(out), what="student", force=force, origin=request.teacher) as written:
        slicing = _Slicing(request)
        student, size = slicing.slice(slicing.shape(QUARTER if params is None and macs is None else params, macs))
        write_student(student, written)
    return size


def slice_sizes(request: Request, sizes: Sequence[float]) -> tuple[EncoderConfig, list[Size]]:
    """Slice students of several budgets of parameters, up to 1 as shares of the teacher's.

    Returns:
        The teacher's shape, and the size of each student.

    Raises:
        StarError: as :func:`slice_to_file`.
    """
    slicing = _Slicing(request)
    shapes = [slicing.shape(size, None) for size in sizes]  # all of them, before minutes are spent on the first
    return slicing.teacher.config, [slicing.slice(shape)[1] for shape in shapes]


class _Slicing:
    """Teacher and audio of a request, loaded once for all students sliced from them."""

    def __init__(self, request: Request):
        if request.architecture not in ARCHITECTURES:
            raise StarError(f"--arch: there is no {request.architecture[:60]!a}; give starhubert or {STREAMING}")
        if request.utterances < 1:
            raise StarError(f"--utterances {request.utterances} must be 1 or more")
        if request.layers is not None and request.layers < 1:
            raise StarError(f"--layers {request.layers} must be 1 or more, or left out for as many as the teacher has")
        if request.seed < 0:
            raise StarError(f"--seed {request.seed} must be 0 or more")
        self.request = request
        self.teacher: FrozenEncoder = load_teacher(hub.locate(request.teacher, "slice").path, option="slice")
        if request.architecture == STREAMING and self.teacher.normalize:
            raise StarError(
                f"--arch {STREAMING}: this teacher's audio is normalized over the whole utterance, which no stream can "
                "be; take a teacher of audio as it is, such as HuBERT Base"
            )
        depth = request.layers or self.teacher.num_layers
        if self.teacher.num_layers % depth:
            raise StarError(
                f"--layers {depth} does not divide the teacher's {self.teacher.num_layers}; give a divisor of that, or "
                "name the teacher's layers in a run's criterion.teacher_layers"
            )
        self.layers = match_layers(self.teacher.num_layers, depth)
        self.sample, self.held_out = (
            draw_for(self.teacher, os.path.join(request.data, f"{split}.tsv"), count=count, seed=request.seed)
            for split, count in ((request.split, request.utterances), (request.held_out, HELD_OUT))
        )

    def shape(self, params: float | None, macs: float | None) -> EncoderConfig:
        """Return the student's shape for a budget."""
        if params is not None and params <= 1:
            params = params * self.teacher.num_parameters
        return student_shape(
            self.teacher.config,
            target_params=params,
            target_macs=macs,
            num_layers=len(self.layers),
            options=("--params", "--macs"),
        )

    def slice(self, shape: EncoderConfig) -> tuple[Student, Size]:
        """Return a student of a shape and its size."""
        name = self.request.architecture
        settings = student_settings(shape, streaming=name == STREAMING)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.request.seed)
            model = StarHubertModel(ARCHITECTURES[name](**settings, padded_group_norm=False)).eval()
        report = slice_student(self.teacher, model, self.sample.sources, layers=self.layers)
        report.skipped = self.sample.skipped
        compared = self.teacher.model, model, self.held_out.sources, self.layers
        report.loss, report.loss_of_zero = star_losses(*compared)
        report.held_out = len(self.held_out.sources)
        student = Student(
            model=model.requires_grad_(False),
            dropouts={key: getattr(model.cfg, key) for key in DROPOUTS},
            sample_rate=self.teacher.sample_rate,
            normalize=self.teacher.normalize,
            name=name,
            origin=self.request.teacher,
        )
        size = Size(
            width=shape.embed_dim,
            units=shape.ffn_embed_dim,
            convolutions=[layer.channels for layer in shape.conv_layers],
            parameters=count_parameters(shape),
            macs=superb_macs(shape),
            int8_bytes=int8_bytes(model),
            loss=report.loss,
            loss_of_zero=report.loss_of_zero,
            variance_kept=variance_kept(*compared),
            report=report,
        )
        return student, size


def int8_bytes(model: SpeechEncoder) -> int:
    """Estimate the bytes of an ONNX file of ``--int8``: one for a weight of a linear layer, two for any other."""
    linear = sum(one.weight.numel() for one in model.modules() if isinstance(one, nn.Linear))
    return PROGRAM_BYTES + 2 * sum(parameter.numel() for parameter in model.parameters()) - linear


def sizes_table(teacher: EncoderConfig, sizes: Sequence[Size]) -> str:
    """Return the sizes as a table in plain text, the teacher in its first line."""
    plain = replace(teacher, relative_position=None, pos_conv_depth=1)  # precise enough for a count of parameters
    rows = [("parameters", "GMACs", "int8 file", "width", "units", "loss", "variance kept")]
    whole = count_parameters(plain), superb_macs(teacher), "", teacher.embed_dim, teacher.ffn_embed_dim
    for parameters, macs, *cells in [
        (*whole, "teacher", "100.0 %"),
        *(
            (one.parameters, one.macs, f"{one.int8_bytes / 1e6:,.1f} MB", one.width, one.units, f"{one.loss:,.1f}",
             f"{100 * one.variance_kept:.1f} %")
            for one in sizes
        ),
    ]:  # fmt: skip
        rows.append((f"{parameters / 1e6:,.2f} M", f"{macs / 1e9:,.1f}", *cells))
    lines = [" ".join(f"{cell!s:>13}" for cell in row) for row in rows]
    zero = sizes[0].loss_of_zero
    lines.append(f"loss: STaR's on {sizes[0].report.held_out} held-out utterances, untrained; of zeros {zero:,.1f}")
    return "\n".join(lines)
