"""The second look: a few utterances of the training set through teacher and student. Takes torch and fairseq."""

from collections.abc import Callable, Iterable

import numpy as np

from fairseq_star.analysis.doctor.layers import check_layers
from fairseq_star.analysis.doctor.record import CHECKPOINTS, Record
from fairseq_star.analysis.doctor.sample import Sample, draw_sample
from fairseq_star.analysis.doctor.teacher_format import check_teacher
from fairseq_star.analysis.doctor.utterances import check_loss_now, check_utterances
from fairseq_star.analysis.runs import load_run
from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks.symptoms import Finding, binned

CHECKS: tuple[Callable[[Sample], Iterable[Finding]], ...] = (
    check_layers,
    check_loss_now,
    check_utterances,
    check_teacher,
)
"""Checks of utterances and their states. A new one is an entry here."""


def examine(record: Record, *, data: str | None, teacher: str | None) -> tuple[list[str], list[Finding]]:
    """Look at a run's teacher, trained student and training set.

    Args:
        record: the run's.
        data, teacher: current places of manifests and teacher, if not those of the training.

    Returns:
        Figures for the reader, and the findings.

    Raises:
        StarError: no checkpoint, or no manifest or teacher where they were.
    """
    run_dir, loss = record.run_dir, binned(record.curve("loss"))
    checkpoint = next((run_dir / name for name in CHECKPOINTS if (run_dir / name).is_file()), None)
    if checkpoint is None:
        raise StarError(f"doctor: --deep takes a checkpoint, and {run_dir} has none yet; leave --deep out")
    run = load_run(str(checkpoint), data=data, teacher=teacher, option="doctor")
    run.load_trained()
    sample = draw_sample(run, loss[-1][1] if loss else None)
    figures = [
        f"{len(sample.utterances)} utterances of the training set: median loss "
        f"{np.median([one.loss for one in sample.utterances]):,.4g}, median level "
        f"{np.median([one.decibels for one in sample.utterances]):.0f} dB of full scale",
        "distance of the Gram matrices by layer (1: a student of zeros): "
        + ", ".join(f"{error:.2f}" for error in np.mean(sample.errors, axis=0)),
    ]
    return figures, [finding for check in CHECKS for finding in check(sample)]
