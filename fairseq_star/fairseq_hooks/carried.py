"""State of another corpus that a run takes up as it is: reported, with what it is worth on the run's own audio.

Centroids (``criterion.units``) may well be meant for other audio than they were fitted to, and so may a student whose
first norm has the statistics of the corpus that it began with. Both fit any audio in shape.
"""

import copy
import logging
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from fairseq_star.data.dataset import DistillationDataset
from fairseq_star.data.origin import CORPUS, differences
from fairseq_star.encoder.running_norm import RUNNING, measure_statistics
from fairseq_star.fairseq_hooks.epoch_position import ORIGIN, RecordedBatches
from fairseq_star.losses.units import CentroidUnits
from fairseq_star.runtime.workers import rank_and_world_size

logger = logging.getLogger(__name__)
LOOKED_AT = 8  # utterances


def report_carried(trainer, extra_state: dict | None, batches: RecordedBatches) -> None:
    """Log what a run has that was made of another corpus than its training set. Nothing is computed where it has none.

    Args:
        trainer: of a ``star_distillation`` run, its checkpoint loaded.
        extra_state: of that checkpoint; None where the run begins anew.
        batches: of the training set.
    """
    if rank_and_world_size()[0] != 0:
        return
    dataset = trainer.task.dataset(trainer.cfg.dataset.train_subset)
    now = {CORPUS: batches.origin[CORPUS]}
    for term in trainer.get_criterion().terms:
        for units in getattr(term, "units", ()):
            if isinstance(units, CentroidUnits) and (other := differences(units.about, now)):
                _report_units(units, trainer.task.teacher, dataset, other[0])
    student = trainer.get_model()
    had = ((extra_state or {}).get("train_iterator") or {}).get(ORIGIN)
    if student.config.extractor_mode == RUNNING and had and (other := differences(had, now)):
        _report_norm(student.feature_extractor, dataset, other[0])


def _report_units(units: CentroidUnits, teacher, dataset: DistillationDataset, other: str) -> None:
    states = [teacher.encode_one(one, last_layer=units.layer).hidden_states[units.layer][0] for one in _some(dataset)]
    if not states:
        return
    here, used = units.relative_inertia(states)
    then = units.about.get("quality", {}).get("relative_inertia")
    logger.warning(
        f"criterion.units: {units.name} was fitted to {other}. On {len(states)} utterances of this run "
        f"{used} of its {units.num_units} units occur, at {here:.0%} of the states' variance from them"
        + (f" ({then:.0%} on held-out utterances of its own corpus)" if then is not None else "")
        + "; fairseq-star units on task.data fits others"
    )


def _report_norm(extractor, dataset: DistillationDataset, other: str) -> None:
    measured = copy.deepcopy(extractor)
    if measure_statistics(measured, _some(dataset)) < 2:
        return
    (had, now) = (one.conv_layers[0][2].variance.mean() for one in (extractor, measured))
    logger.warning(
        f"first norm: the checkpoint's statistics are of {other}; this run's audio is {_decibels(now, had):+.1f} dB "
        "from them in level, for which the first 0.3 s of a stream are scaled; a new run measures its own"
    )


def _decibels(one: Tensor, other: Tensor) -> float:
    return float(10 * (one.clamp_min(1e-20) / other.clamp_min(1e-20)).log10())


def _some(dataset: DistillationDataset) -> Iterator[Tensor]:
    """Samples of some utterances, the same ones each time; not of those that cannot be read."""
    for index in np.random.default_rng(0).permutation(len(dataset))[:LOOKED_AT]:
        if (source := dataset[int(index)]["source"]) is not None:
            yield source
