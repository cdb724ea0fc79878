"""``fairseq-star doctor``: is a run well? The table of checks, and what they found."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from fairseq_star.analysis.doctor.batches import check_batches, check_cache
from fairseq_star.analysis.doctor.loss import check_loss, check_validation
from fairseq_star.analysis.doctor.optimization import check_end, check_gradient, check_half_precision, check_schedule
from fairseq_star.analysis.doctor.record import Record, read_record
from fairseq_star.analysis.doctor.references import Comparison, Reference, check_references, compare
from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks.symptoms import Finding, binned

CHECKS: tuple[Callable[[Record], Iterable[Finding]], ...] = (
    check_loss,
    check_gradient,
    check_half_precision,
    check_schedule,
    check_end,
    check_validation,
    check_batches,
    check_cache,
)
"""Checks of a run's record, in the order in which they are reported. A new one is an entry here."""

SHOWN = {"loss": "loss {:,.4g}", "gnorm": "gradient norm {:,.3g}", "clip": "clipped in {:.0f} % of the updates",
         "lr": "learning rate {:.3g}", "loss_scale": "loss scale {:g}", "padding": "padding {:.1f} %",
         "data_wait": "waiting for data {:.0f} %", "speech": "{:,.0f} s of speech a second"}  # fmt: skip


@dataclass
class Diagnosis:
    """Findings on a run, most telling first, and the figures they are judged by."""

    run_dir: str
    state: str
    figures: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def to_dict(self) -> dict:
        """Return plain values, for JSON."""
        return {**vars(self), "findings": [finding.to_dict() for finding in self.findings]}

    def __str__(self) -> str:
        lines = [f"{self.run_dir}: {self.state}", *(f"  {figure}" for figure in self.figures), ""]
        for number, finding in enumerate(self.findings, start=1):
            lines += [f"{number}. {_capital(finding.sentence)} ({finding.sure}).", f"   -> {finding.mend}"]
        return "\n".join(lines if self.findings else [*lines, "no findings"])


def diagnose(
    run_dir: str | os.PathLike,
    *,
    like: Sequence[str | os.PathLike] = (),
    deep: bool = False,
    data: str | None = None,
    teacher: str | None = None,
) -> Diagnosis:
    """Examine a finished, running or dead run.

    Args:
        run_dir: its ``checkpoint.save_dir``.
        like: folders of runs whose loss it should have.
        deep: also load teacher and student, and look at a few utterances of the training set; takes fairseq.
        data, teacher: current places of manifests and teacher for ``deep``, if not those of the training.

    Raises:
        StarError: no run there, or nothing of it can be read.
    """
    record = read_record(run_dir)
    references = [Reference.of(str(folder), read_record(folder)) for folder in like]
    for reference in references:
        if not reference.loss:
            raise StarError(f"--like {reference.name}: neither event files nor a *.log with its losses are there")
    compared = compare(record, references)
    diagnosis = Diagnosis(str(record.run_dir), _state(record), [*_figures(record), *_compared(compared)])
    for check in CHECKS:
        diagnosis.findings += check(record)
    diagnosis.findings += check_references(record, compared)
    if deep:
        from fairseq_star.analysis.doctor.deep import examine

        figures, findings = examine(record, data=data, teacher=teacher)
        diagnosis.figures += figures
        diagnosis.findings += findings
    return diagnosis


def _state(record: Record) -> str:
    of = f" of {record.max_update:,}" if record.max_update else ""
    if record.running:
        return f"running, update {record.num_updates:,}{of}"
    return f"{'finished' if record.finished else 'ended'} after update {record.num_updates:,}{of}"


def _figures(record: Record) -> list[str]:
    """The last values of what was logged."""
    shown = []
    for name, text in SHOWN.items():
        if bins := binned(record.curve(name)):
            shown.append(text.format(bins[-1][1]))
    valid = (record.curves.valid if record.curves else {}).get("loss")
    if valid:
        shown.append(f"validation loss {valid[max(valid)]:,.4g}")
    return (
        [", ".join(shown)] if shown else ["no losses were logged: set common.tensorboard_logdir, or save a train.log"]
    )


def _compared(compared: Sequence[Comparison]) -> list[str]:
    return [
        f"{one.ratio:.2f} times the loss of {one.reference.name} at the same updates, up to {one.update:,}"
        for one in compared
    ]


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
