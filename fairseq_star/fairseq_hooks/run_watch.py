"""Warnings in the log of a run that is not well, each once: what ``symptoms.py`` can judge while it runs."""

import logging

from fairseq.logging import metrics

from fairseq_star.fairseq_hooks.symptoms import (
    Finding,
    collapsed,
    padded,
    rising_loss,
    small_loss_scale,
    waiting_for_data,
)
from fairseq_star.fairseq_hooks.throughput import DATA_WAIT

logger = logging.getLogger(__name__)
SETTLED = 200  # updates before speed is judged


class RunWatch:
    """Looks at a run's numbers when :meth:`look` is called, every hundred batches; a look takes well below 1 ms."""

    def __init__(self):
        self._loss: dict[int, float] = {}
        self._gnorm: dict[int, float] = {}
        self._warned: set[str] = set()

    def look(self, update: int, loss: float) -> None:
        """Judge the run.

        Args:
            update: number of the last one.
            loss: mean over the utterances since the last look.
        """
        self._loss[update] = loss
        meters = metrics.get_meters("train") or {}
        if "gnorm" in meters:
            self._gnorm[update] = float(meters["gnorm"].val or 0)
        found = [rising_loss(self._loss), collapsed(self._loss, self._gnorm)]
        if "loss_scale" in meters:
            found.append(small_loss_scale(float(meters["loss_scale"].val)))
        if update >= SETTLED:
            judged = {"padding": padded, DATA_WAIT: waiting_for_data}
            found += [
                judge(metrics.get_smoothed_value("train", name)) for name, judge in judged.items() if name in meters
            ]
        for finding in found:
            self._warn(finding)

    def _warn(self, finding: Finding | None) -> None:
        if finding is not None and finding.name not in self._warned:
            self._warned.add(finding.name)
            logger.warning(f"{finding}; more with fairseq-star doctor")
