"""Findings on utterances: silent, too loud, with a loss that stands out or is not the one that training logged."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from fairseq_star.analysis.doctor.sample import Sample, Utterance
from fairseq_star.fairseq_hooks.symptoms import LIKELY, POSSIBLE, SURE, Finding

SILENT = -70.0  # dB of full scale
CLIPPED = 0.01  # share of samples at full scale
OUTLIER, FAR = 6.0, 3.0  # robust standard deviations of the logarithm of the loss, and times the median
OTHER = 2.0  # times the loss that training logged
SHOWN = 5


def check_loss_now(sample: Sample) -> Iterator[Finding]:
    """Judge whether the loss of today's files is the one that training logged."""
    now = float(np.median([one.loss for one in sample.utterances]))
    if sample.trained_loss and now > OTHER * sample.trained_loss:
        yield Finding(
            "trained-on-something-else",
            f"the loss of the training set is {now:,.4g} with the files of today, and training logged "
            f"{sample.trained_loss:,.4g}: what the student learned from was not what this teacher makes of this audio",
            LIKELY,
            "remove task.teacher_cache and train anew, or name the run's own files with --teacher and --data",
        )


def check_utterances(sample: Sample) -> Iterator[Finding]:
    """Judge the utterances that were drawn."""
    drawn = sample.utterances
    silent = [one for one in drawn if one.decibels < SILENT]
    if silent:
        yield Finding(
            "silent-utterances",
            f"{len(silent)} of {len(drawn)} utterances are silent: {_listed(silent)}",
            SURE,
            "leave them out of the manifest, or repair the files",
        )
    scaled = [one for one in drawn if one.peak > 1.5]
    if scaled:
        yield Finding(
            "samples-out-of-range",
            f"{len(scaled)} of {len(drawn)} utterances have samples beyond -1 to 1: {_listed(scaled)}",
            SURE,
            "scale them to -1 to 1, as manifests/audio_folder.py --resample does",
        )
    loud = [one for one in drawn if one.clipped > CLIPPED and one not in scaled]
    if loud:
        yield Finding(
            "clipped-utterances",
            f"{len(loud)} of {len(drawn)} utterances are recorded too loud: {_listed(loud)}",
            LIKELY,
            "leave them out of the manifest",
        )
    heard = [one for one in drawn if one not in silent and one.loss > 0]
    if len(heard) < 8:
        return
    logs = np.log([one.loss for one in heard])
    middle = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - middle))
    far = [one for one, value in zip(heard, logs, strict=True) if value - middle > max(OUTLIER * spread, math.log(FAR))]
    if far:
        yield Finding(
            "loss-outliers",
            f"the loss of {len(far)} of {len(drawn)} utterances is more than {FAR:g} times the median: "
            f"{_listed(sorted(far, key=lambda one: -one.loss))}",
            POSSIBLE,
            "listen to them: noise, music, another language or a damaged file; leave such files out of the manifest",
        )


def _listed(utterances: Sequence[Utterance]) -> str:
    more = f" and {len(utterances) - SHOWN} more" if len(utterances) > SHOWN else ""
    return ", ".join(one.path for one in utterances[:SHOWN]) + more
