"""First weights of a run that are sliced out of its teacher (``model.init=sliced``).

Worker 0 computes them and all get the same bits. They are kept in the run's folder, so that a run that resumes, its
report and ``fairseq-star evaluate`` have the weights that the run began with, whatever machine they are on.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from fairseq_star.checkpoint import read_checkpoint
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.files import replacing
from fairseq_star.formats.hub import PATIENCE
from fairseq_star.models.starhubert import StarHubertModel
from fairseq_star.safety.host_memory import bound_primitive_cache
from fairseq_star.slicing.measures import star_losses
from fairseq_star.slicing.report import SlicingReport
from fairseq_star.slicing.sample import SECONDS, Sample, draw_sample
from fairseq_star.slicing.shapes import check_fits
from fairseq_star.slicing.slicer import slice_student

logger = logging.getLogger(__name__)
FILE = "first_weights.pt"
METHOD = 1  # a number that changes whenever the same sample would give other weights
HELD_OUT = 16  # utterances of the validation set


def begin_sliced(
    student: StarHubertModel,
    teacher: FrozenEncoder,
    *,
    digest: str,
    train: Path,
    valid: Path | None,
    layers: Sequence[int],
    seed: int,
    folder: str | None,
    keep: bool = True,
) -> SlicingReport:
    """Give a student first weights sliced out of its teacher; the same bits for all workers.

    Args:
        student: whose sliced weights are set; a mask embedding stays as it was drawn.
        teacher: of the run.
        digest: of the teacher's content.
        train: manifest that the sample is drawn from.
        valid: manifest that the loss before the first update is told of; None: it is not.
        layers: the teacher layer (1-based) of each student layer.
        seed: of the sample.
        folder: of the run, where they are kept; None: they are not.
        keep: write them there; off where a run is looked at: what is kept is read all the same.

    Raises:
        StarError: the student does not fit its teacher, or no utterance can be used.
    """
    check_fits(teacher.config, student.config)
    outcome: list = [None, None]  # weights with their report, or a fault
    if _rank() == 0:
        try:
            outcome[0] = _kept_or_computed(student, teacher, digest, train, valid, layers, seed, folder, keep)
        except StarError as error:
            outcome[1] = str(error)
    if _world_size() > 1:
        group = dist.new_group(timeout=PATIENCE)
        try:
            dist.broadcast_object_list(outcome, src=0, group=group)
        finally:
            dist.destroy_process_group(group)
    weights, fault = outcome
    if fault is not None:
        raise StarError(fault)
    student.load_state_dict(weights["model"], strict=False)
    report = SlicingReport.from_dict(weights["report"])
    if _rank() == 0:
        for line in report.lines():
            logger.info(line)
    return report


def read_report(folder: str | os.PathLike) -> SlicingReport | None:
    """Return what the run in ``folder`` was sliced with; None where it was not."""
    path = os.path.join(folder, FILE)
    if not os.path.isfile(path):
        return None
    return SlicingReport.from_dict(read_checkpoint(path, "report")["report"])


def _kept_or_computed(
    student: StarHubertModel,
    teacher: FrozenEncoder,
    digest: str,
    train: Path,
    valid: Path | None,
    layers: Sequence[int],
    seed: int,
    folder: str | None,
    keep: bool,
) -> dict:
    about = {
        "method": METHOD,
        "teacher": digest,
        "layers": list(layers),
        "seed": seed,
        "utterances": student.cfg.init_utterances,
        "student": student.config.student_settings(),
    }
    path = None if folder is None else Path(folder) / FILE
    if path is not None and path.is_file():
        kept = read_checkpoint(str(path), "checkpoint.save_dir")
        if kept.get("about") == about and shapes_of(kept["model"]) == shapes_of(_sliced_part(student)):
            logger.info(f"first weights: those this run began with, from {path}")
            return kept
    bound_primitive_cache()  # the process's first convolutions may be these
    sample = _sample(train, teacher, student.cfg.init_utterances, seed)
    report = slice_student(teacher, student, sample.sources, layers=layers)
    report.skipped = sample.skipped
    if valid is not None and valid.is_file():
        held_out = _sample(valid, teacher, HELD_OUT, seed)
        training = student.training
        report.loss, report.loss_of_zero = star_losses(teacher.model, student.eval(), held_out.sources, layers)
        report.held_out = len(held_out.sources)
        student.train(training)
    weights = {"about": about, "model": _sliced_part(student), "report": report.to_dict()}
    if keep and path is not None and not (path.is_file() and any(path.parent.glob("checkpoint*.pt"))):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save(weights, temporary)
    return weights


def shapes_of(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight."""
    return {key: tuple(value.shape) for key, value in weights.items()}


def _sliced_part(student: StarHubertModel) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in student.state_dict().items() if key != "mask_emb"}


def _sample(manifest: Path, teacher: FrozenEncoder, count: int, seed: int) -> Sample:
    return draw_sample(
        manifest, count=count, seed=seed, normalize=teacher.normalize, sample_rate=teacher.sample_rate, seconds=SECONDS
    )


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
