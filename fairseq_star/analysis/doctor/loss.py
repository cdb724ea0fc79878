"""Findings on the losses: not finite, rising, standing still, validation far from training."""

import math
from collections.abc import Iterator

from fairseq_star.analysis.doctor.record import Record
from fairseq_star.fairseq_hooks.symptoms import LIKELY, POSSIBLE, SURE, Finding, binned, collapsed, rising_loss

NOT_FALLEN = 0.9  # times the first loss
EARLY = 100  # updates, and twice the warm-up: before that a loss need not have fallen
APART = 2.5  # validation, times training
RISEN = 1.25  # the last two validations, times the lowest


def check_loss(record: Record) -> Iterator[Finding]:
    """Judge the loss of training."""
    loss = record.curve("loss")
    if wrong := [update for update, value in sorted(loss.items()) if not math.isfinite(value)]:
        yield Finding(
            "loss-not-finite",
            f"the loss is {loss[wrong[0]]} at update {wrong[0]}",
            SURE,
            "lower optimization.lr, or leave out the utterances that the run's log names",
        )
        return
    found = [rising_loss(loss), collapsed(loss, record.curve("gnorm"))]
    if any(found):
        yield from filter(None, found)
        return
    bins = binned(loss)
    early = max(EARLY, 2 * record.option("lr_scheduler.warmup_updates", 0))
    if record.option("model.init") == "sliced" or len(bins) < 4 or bins[-1][0] < early:
        return  # a sliced student's loss is low from the beginning
    if bins[-1][1] > NOT_FALLEN * bins[0][1]:
        yield Finding(
            "loss-does-not-fall",
            f"the loss is {bins[-1][1]:,.4g} after {bins[-1][0]:,} updates and was {bins[0][1]:,.4g} at first",
            LIKELY,
            "raise optimization.lr (the recipes have 0.002 to 0.005), or look at the teacher and the data with --deep",
        )


def check_validation(record: Record) -> Iterator[Finding]:
    """Judge validation beside training."""
    train, valid = (
        binned(record.curve("loss")),
        sorted((record.curves.valid if record.curves else {}).get("loss", {}).items()),
    )
    if not train or len(valid) < 2 or record.num_updates < EARLY:
        return
    (_, last), (where, lowest) = valid[-1], min(valid, key=lambda point: point[1])
    if min(loss for _, loss in valid[-2:]) > RISEN * lowest and train[-1][1] < min(
        value for update, value in train if update <= max(where, train[0][0])
    ):
        yield Finding(
            "validation-rises",
            f"the validation loss has risen from {lowest:,.4g} at update {where} to {last:,.4g}, while training's has "
            "fallen: the student learns the training set by heart",
            LIKELY,
            "use checkpoint_best.pt, train on more speech, or set model.dropout=0.1 or task.mask_prob",
        )
    elif last > APART * train[-1][1]:
        yield Finding(
            "validation-apart",
            f"the validation loss is {last / train[-1][1]:.1f} times training's",
            POSSIBLE,
            "train on more speech or fewer updates (optimization.max_update), or see whether dataset.valid_subset is "
            "like the training set",
        )
