"""Signs that a run is not well, judged from a few of the numbers it logs.

A running run warns of them (``run_watch.py``), ``fairseq-star doctor`` reports them afterwards with many more. Pure
Python: neither torch nor fairseq is imported. Where each threshold comes from: docs/doctor.md.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median

SURE, LIKELY, POSSIBLE = "sure", "likely", "possible"

BINS = 20  # groups that a curve is divided into, so that a single utterance or spike decides nothing
FEWEST = 10  # updates without which nothing is judged
RISEN = 3.0  # times the lowest loss so far
FLAT = 0.9  # times the loss of the middle of a run
FAINT = 0.1  # ratio of gradient norm and loss, times the first ones
WAITING = 25.0  # percent of the time
PADDING = 25.0  # percent of the frames
LOSS_SCALE = 1.0


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a run.

    Attributes:
        name: a constant for scripts.
        sentence: what is wrong, in one sentence without its full stop.
        sure: ``sure``, ``likely`` or ``possible``.
        mend: the option that mends it.
    """

    name: str
    sentence: str
    sure: str
    mend: str

    def to_dict(self) -> dict[str, str]:
        """Return plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.sentence} ({self.sure}); {self.mend}"


def binned(curve: Mapping[int, float], count: int = BINS) -> list[tuple[int, float]]:
    """Divide a curve into at most ``count`` runs of points, and return the last update and the median of each."""
    points = sorted(curve.items())
    count = min(count, len(points))
    edges = [round(number * len(points) / count) for number in range(count + 1)] if count else []
    groups = [points[start:end] for start, end in pairwise(edges)]
    return [(group[-1][0], median(value for _, value in group)) for group in groups]


def rising_loss(loss: Mapping[int, float]) -> Finding | None:
    """Judge whether the loss (update -> mean over utterances) has risen far above its lowest."""
    bins = binned(loss)
    if len(bins) < 4 or bins[-1][0] < FEWEST or not all(math.isfinite(value) for _, value in bins):
        return None
    (where, lowest), (now, last) = min(bins[:-1], key=lambda point: point[1]), bins[-1]
    if last <= RISEN * lowest:
        return None
    return Finding(
        "loss-rises",
        f"the loss has risen from {lowest:,.4g} at update {where} to {last:,.4g} at update {now}",
        SURE,
        "lower optimization.lr (to a third, say), or lengthen lr_scheduler.warmup_updates",
    )


def collapsed(loss: Mapping[int, float], gnorm: Mapping[int, float]) -> Finding | None:
    """Judge whether the loss stands still high up because hardly any gradient is left.

    Args:
        loss: update -> mean over utterances.
        gnorm: update -> norm of the gradient before it is clipped.
    """
    losses = binned(loss)
    ratios = binned({update: gnorm[update] / loss[update] for update in loss if gnorm.get(update) and loss[update] > 0})
    if len(losses) < 6 or len(ratios) < 6 or losses[-1][0] < FEWEST:
        return None
    late = [value for _, value in losses[-2:]]
    still = median(late) > FLAT * losses[len(losses) // 2][1]
    first, last = max(value for _, value in ratios[:2]), median(value for _, value in ratios[-2:])
    if not still or last > FAINT * first:
        return None
    return Finding(
        "collapsed",
        f"the loss stands still at {median(late):,.4g} and hardly any gradient is left (its norm is {last:.2g} times "
        f"the loss, {first:.2g} at first): the student's states have become the same for all frames",
        LIKELY,
        "start anew with a lower optimization.lr (a tenth, say)",
    )


def waiting_for_data(percent: float) -> Finding | None:
    """Judge the share of its time (percent) in which a run waits for the next batch."""
    if percent <= WAITING:
        return None
    return Finding(
        "waits-for-data",
        f"the run waits for data {percent:.0f} % of its time",
        SURE if percent > 2 * WAITING else LIKELY,
        "raise dataset.num_workers up to the number of cores, or copy the audio to a faster disk",
    )


def padded(percent: float) -> Finding | None:
    """Judge the share of padding (percent of the frames of the batches)."""
    if percent <= PADDING:
        return None
    return Finding(
        "padding",
        f"{percent:.0f} % of the frames are padding, and computed for nothing",
        SURE,
        "lower task.pad_to_multiple, crop with task.max_sample_size, or use smaller batches (dataset.batch_size)",
    )


def small_loss_scale(scale: float) -> Finding | None:
    """Judge the factor that half precision multiplies the loss by."""
    if scale >= LOSS_SCALE:
        return None
    return Finding(
        "loss-scale",
        f"gradients overflow in half precision again and again: the loss scale is down to {scale:.2g}, so that small "
        "gradients are lost",
        SURE,
        "use common.bf16=true instead of common.fp16 or common.amp, or lower optimization.lr",
    )
