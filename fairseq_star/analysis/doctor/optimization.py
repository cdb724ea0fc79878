"""Findings on the optimizer's steps: gradients, half precision, the schedule and its end."""

import math
import re
from collections.abc import Iterator
from statistics import median

from fairseq_star.analysis.doctor.record import Record
from fairseq_star.fairseq_hooks.symptoms import FEWEST, LIKELY, POSSIBLE, SURE, Finding, binned, small_loss_scale

SPIKE = 20.0  # times the median of the gradient's norm
GROWN = 10.0  # last norm of the gradient, times the first
OVERFLOWS = 0.05  # of the updates
OFF = 0.05  # relative difference of a learning rate from its schedule's
LEFT = 0.3  # of the peak learning rate at the last update
SPENT = 0.9  # the schedule's length and the run's may differ by that factor
_FATAL = re.compile(r"^(?:fairseq-star: .*|\w*(?:Error|Exception|Killed)\b.*)")


def check_gradient(record: Record) -> Iterator[Finding]:
    """Judge the norm of the gradient.

    A norm that is clipped in every update is no fault: the loss is a sum over T x T similarities, so that norms of
    thousands are usual, and Adam's steps do not depend on their scale.
    """
    gnorm = {update: value for update, value in record.curve("gnorm").items() if math.isfinite(value)}
    bins = binned(gnorm)
    if len(bins) < 6 or record.num_updates < FEWEST:
        return
    first, last = (median(value for _, value in part) for part in (bins[:3], bins[-3:]))
    if last > GROWN * first:
        yield Finding(
            "gradient-grows",
            f"the gradient's norm has grown from {first:,.3g} to {last:,.3g}",
            LIKELY,
            "lower optimization.lr, and set optimization.clip_norm=10",
        )
    highest = max(gnorm, key=gnorm.__getitem__)
    if not record.option("optimization.clip_norm", 0) and gnorm[highest] > SPIKE * median(gnorm.values()):
        yield Finding(
            "gradient-spikes",
            f"gradients are not clipped, and at update {highest} the norm was {gnorm[highest]:,.3g}, "
            f"{gnorm[highest] / median(gnorm.values()):.0f} times its median",
            LIKELY,
            "set optimization.clip_norm=10",
        )


def check_half_precision(record: Record) -> Iterator[Finding]:
    """Judge the loss scale of ``fp16`` and ``amp``, and the overflows that the log names."""
    scales = record.curve("loss_scale")
    if scales and (found := small_loss_scale(scales[max(scales)])):
        yield found
        return
    overflows = sum("gradient overflow detected" in line for line in record.log)
    if record.num_updates >= FEWEST and overflows > OVERFLOWS * record.num_updates:
        yield Finding(
            "overflows",
            f"{overflows} gradients overflowed in half precision, beside {record.num_updates} updates",
            SURE,
            "use common.bf16=true instead of common.fp16, or lower optimization.lr",
        )


def scheduled(record: Record, update: int) -> float | None:
    """Return the learning rate that fairseq's schedule has after ``update``; None for schedules that are not known.

    Known: ``cosine`` of one period length and ``polynomial_decay``, with their warm-up.
    """
    option = record.option
    peak, warmup = max(option("optimization.lr", [0.0])), option("lr_scheduler.warmup_updates", 0)
    kind = option("lr_scheduler._name")
    if not peak or len(option("optimization.lr")) > 1:
        return None
    if kind == "cosine" and option("lr_scheduler.t_mult", 1) == 1:
        lowest = min(option("lr_scheduler.min_lr", 0.0), peak)
        start = option("lr_scheduler.warmup_init_lr", -1)
        start = lowest if start < 0 else start
        if update < warmup:
            return start + (peak - start) * update / warmup
        period = _period(record)
        turns, within = divmod(update - warmup, period) if period > 0 else (0, 0)
        shrunk = option("lr_scheduler.lr_shrink", 0.1) ** turns
        return shrunk * (lowest + (peak - lowest) * (1 + math.cos(math.pi * within / (period or 1))) / 2)
    if kind == "polynomial_decay":
        end, total = option("lr_scheduler.end_learning_rate", 0.0), option("lr_scheduler.total_num_update", 1e6)
        if warmup and update <= warmup:
            return peak * update / warmup
        left = max(0.0, 1 - (update - warmup) / (total - warmup)) if total > warmup else 0.0
        return (peak - end) * left ** option("lr_scheduler.power", 1.0) + end
    return None


def _period(record: Record) -> float:
    """Updates of a cosine after the warm-up."""
    period = record.option("lr_scheduler.lr_period_updates", -1)
    return period if period > 0 else record.max_update - record.option("lr_scheduler.warmup_updates", 0)


def check_schedule(record: Record) -> Iterator[Finding]:
    """Judge the learning rate: whether it is the schedule's, and whether the schedule fits the run's length."""
    last = record.max_update
    if not last or scheduled(record, 1) is None:
        return
    peak = max(record.option("optimization.lr"))
    off = {
        update: (value, wanted)
        for update, value in sorted(record.curve("lr").items())
        if abs(value - (wanted := scheduled(record, update))) > OFF * wanted + 1e-4 * peak
    }
    if len(off) > 0.1 * len(record.curve("lr")):
        update, (value, wanted) = next(iter(off.items()))
        yield Finding(
            "lr-not-as-scheduled",
            f"the learning rate was {value:.3g} at update {update}, where the schedule of the run's options has "
            f"{wanted:.3g}, and differs at {len(off)} of {len(record.curve('lr'))} logged updates",
            SURE,
            "give the same optimization.max_update, optimization.lr and lr_scheduler options whenever the run resumes",
        )
    at_end, end = scheduled(record, last - 1), _end_of_schedule(record)
    if at_end > LEFT * peak and end > last / SPENT:
        yield Finding(
            "schedule-too-long",
            f"the learning rate is still {at_end / peak:.0%} of its highest at the run's last update ({last:,}), so "
            "that the loss has not settled",
            LIKELY,
            "set lr_scheduler.lr_period_updates=-1 (cosine) or lr_scheduler.total_num_update (polynomial_decay) to end "
            "with optimization.max_update",
        )
    if end < SPENT * last:
        yield Finding(
            "schedule-too-short",
            f"the schedule reaches its end at update {end:,.0f} of {last:,}; from there on the student learns little",
            SURE,
            "set lr_scheduler.lr_period_updates=-1 (cosine) or lr_scheduler.total_num_update (polynomial_decay) to end "
            "with optimization.max_update",
        )


def _end_of_schedule(record: Record) -> float:
    if record.option("lr_scheduler._name") == "cosine":
        return record.option("lr_scheduler.warmup_updates", 0) + _period(record)
    return record.option("lr_scheduler.total_num_update", 1e6)


def check_end(record: Record) -> Iterator[Finding]:
    """Judge whether the run came to its end."""
    if record.running or record.finished or not record.max_update:
        return
    reason = next((match[0] for line in reversed(record.log) if (match := _FATAL.match(line))), None)
    limits = {name: record.option(f"optimization.{name}", 0) for name in ("max_epoch", "stop_time_hours")}
    limit = next((f"optimization.{name}={value}" for name, value in limits.items() if value > 0), None)
    rate = record.curve("lr").get(max(record.curve("lr"), default=0))
    shown = f", at a learning rate of {rate:.3g}" if rate else ""
    why = f" (its log: {reason[:200]})" if reason else ""
    yield Finding(
        "ended-early",
        f"the run ended after update {record.num_updates:,} of {record.max_update:,}{shown}, and no process trains "
        f"in its folder{why}",
        SURE if not limit else POSSIBLE,
        f"leave out {limit}, or lower optimization.max_update so that the schedule ends with it"
        if limit
        else "give the same command again: the run goes on from its last checkpoint",
    )
