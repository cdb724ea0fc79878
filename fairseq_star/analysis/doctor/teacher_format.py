"""Findings on what the teacher is given: audio as it is, or of zero mean and unit variance."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fairseq_star.analysis.doctor.sample import Sample
from fairseq_star.analysis.similarity import tgm_error
from fairseq_star.fairseq_hooks.symptoms import LIKELY, Finding
from fairseq_star.plots.matrices import tgm

MATTERS = 0.05  # distance of the last layer's Gram matrices with and without normalization
TRIED = 4  # utterances


@torch.no_grad()
def check_teacher(sample: Sample) -> Iterator[Finding]:
    """Judge whether the teacher receives audio as its kind was trained on.

    Every published model with a layer norm in its front end was trained on normalized audio. One with a group norm is
    indifferent, since that norm takes mean and scale out of its own accord.
    """
    teacher = sample.run.task.teacher
    if teacher.normalize or teacher.config.extractor_mode != "layer_norm":
        return
    dataset = sample.run.task.dataset(sample.run.cfg.dataset.train_subset)
    device = next(teacher.model.parameters()).device
    distances = []
    for index in range(min(TRIED, len(dataset))):
        source = dataset[index]["source"]
        if source is None or not source.abs().max():
            continue
        grams = [
            tgm(teacher(one[None].to(device), [len(one)]).hidden_states[-1][0].float())
            for one in (source, F.layer_norm(source, source.shape))
        ]
        distances.append(tgm_error(*grams))
    if distances and max(distances) > MATTERS:
        yield Finding(
            "teacher-not-normalized",
            "the teacher's front end has layer norms, as of models trained on audio of zero mean and unit variance, "
            f"but its checkpoint says normalize=false; its Gram matrices change by {max(distances):.0%} with it",
            LIKELY,
            "set normalize: true in the teacher's checkpoint (its task section) or do_normalize in its "
            "preprocessor_config.json, and train anew",
        )
