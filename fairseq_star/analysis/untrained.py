"""Encoders with random weights: what training is compared with, and what cost is measured on."""

import torch

from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.manifest import SAMPLE_RATE


def untrained(config: EncoderConfig, *, seed: int = 0, normalize: bool = False) -> FrozenEncoder:
    """An encoder of ``config`` with the first, random weights that fairseq gives it; ``seed`` decides them.

    The caller's random numbers are left as they are.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SpeechEncoder(config)
    return FrozenEncoder(model, sample_rate=SAMPLE_RATE, normalize=normalize, family="random weights")
