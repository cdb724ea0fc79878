"""What a model costs: parameters, multiply-accumulates, time and memory; ``fairseq-star profile``."""

from fairseq_star.analysis.profile.profile import ProfileResult, ProfileRow, profile

__all__ = ["ProfileResult", "ProfileRow", "profile"]
