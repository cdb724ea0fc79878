"""Probes of frozen features after s3prl: a learned sum of layers and a linear head; ``fairseq-star probe``."""

from fairseq_star.analysis.probe.result import Comparison, ProbeResult, ProbeRow
from fairseq_star.analysis.probe.run import TASKS, run_probe

__all__ = ["TASKS", "Comparison", "ProbeResult", "ProbeRow", "run_probe"]
