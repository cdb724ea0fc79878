"""First weights of a run that are sliced out of its teacher (``model.init=sliced``).

Worker 0 computes them and all get the same bits. They are saved in the run's folder, so that a resumed run, its report
and ``fairseq-star evaluate`` have the run's first weights, on any machine.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from fairseq_star.checkpoint import read_checkpoint, shapes
from fairseq_star.data.origin import CORPUS, corpus_origin, differences
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.formats.hub import WORKER_TIMEOUT
from fairseq_star.formats.student import MASK
from fairseq_star.models.starhubert import StarHubertModel
from fairseq_star.runtime.files import replacing
from fairseq_star.runtime.host import bound_primitive_cache
from fairseq_star.runtime.workers import rank_and_world_size
from fairseq_star.slicing.measures import star_losses
from fairseq_star.slicing.report import SlicingReport
from fairseq_star.slicing.sample import draw_for
from fairseq_star.slicing.shapes import check_fits
from fairseq_star.slicing.slicer import slice_student

logger = logging.getLogger(__name__)
FILE = "first_weights.pt"
METHOD = 1  # a number that changes whenever the same sample would give other weights
HELD_OUT = 16  # utterances of the validation set


@dataclass(frozen=True)
class Beginning:
    """Everything that a run's first weights depend on, and the folder they are saved in."""

    digest: str  # of the teacher's content
    train: Path  # manifest that the sample is drawn from
    valid: Path | None  # manifest that the loss before the first update is reported on; None: it is not
    layers: Sequence[int]  # the teacher layer (1-based) of each student layer
    seed: int  # of the sample
    folder: str | None  # of the run, where they are saved; None: they are not
    keep: bool = True  # save them; off where a run is evaluated: saved ones are read all the same


def begin_sliced(student: StarHubertModel, teacher: FrozenEncoder, beginning: Beginning) -> SlicingReport:
    """Give a student first weights sliced out of its teacher; the same bits for all workers.

    Args:
        student: whose sliced weights are set; a mask embedding stays as it was drawn.
        teacher: of the run.
        beginning: what else they depend on.

    Raises:
        StarError: the student does not fit its teacher, or no utterance can be used.
    """
    check_fits(teacher.config, student.config)
    rank, world_size = rank_and_world_size()
    outcome: list = [None, None]  # weights with their report, or a fault
    if rank == 0:
        try:
            outcome[0] = _kept_or_computed(student, teacher, beginning)
        except StarError as error:
            outcome[1] = str(error)
    if world_size > 1:
        group = dist.new_group(timeout=WORKER_TIMEOUT)
        try:
            dist.broadcast_object_list(outcome, src=0, group=group)
        finally:
            dist.destroy_process_group(group)
    weights, fault = outcome
    if fault is not None:
        raise StarError(fault)
    student.load_state_dict(weights["model"], strict=False)
    report = SlicingReport.from_dict(weights["report"])
    if rank == 0:
        for line in report.lines():
            logger.info(line)
    return report


def read_report(folder: str | os.PathLike) -> SlicingReport | None:
    """Return the report of a run's slicing; None where its student was not sliced."""
    path = os.path.join(folder, FILE)
    if not os.path.isfile(path):
        return None
    return SlicingReport.from_dict(read_checkpoint(path, "report")["report"])


def _kept_or_computed(student: StarHubertModel, teacher: FrozenEncoder, beginning: Beginning) -> dict:
    about = {
        "method": METHOD,
        "teacher": beginning.digest,
        "layers": list(beginning.layers),
        "seed": beginning.seed,
        "utterances": student.cfg.init_utterances,
        "student": student.config.student_settings(),
    }
    path = None if beginning.folder is None else Path(beginning.folder) / FILE
    has_checkpoint = path is not None and any(path.parent.glob("checkpoint*.pt"))
    # An evaluated or resumed run began with the saved weights, wherever its audio is now.
    if beginning.keep and not has_checkpoint:
        about[CORPUS] = corpus_origin(beginning.train)
    if path is not None and path.is_file():
        saved = read_checkpoint(str(path), "checkpoint.save_dir")
        if not differences(saved.get("about"), about) and shapes(saved["model"]) == shapes(_sliced_part(student)):
            logger.info(f"first weights: those this run began with, from {path}")
            return saved
    bound_primitive_cache()  # the process's first convolutions may be these
    sample = draw_for(teacher, beginning.train, count=student.cfg.init_utterances, seed=beginning.seed)
    report = slice_student(teacher, student, sample.sources, layers=beginning.layers)
    report.skipped = sample.skipped
    if beginning.valid is not None and beginning.valid.is_file():
        held_out = draw_for(teacher, beginning.valid, count=HELD_OUT, seed=beginning.seed)
        training, compared = student.training, (teacher.model, student.eval(), held_out.sources, beginning.layers)
        report.loss, report.loss_of_zero = star_losses(*compared)
        report.held_out = len(held_out.sources)
        student.train(training)
    weights = {"about": about, "model": _sliced_part(student), "report": report.to_dict()}
    if beginning.keep and path is not None and not (path.is_file() and has_checkpoint):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save(weights, temporary)
    return weights


def _sliced_part(student: StarHubertModel) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in student.state_dict().items() if key != MASK}
