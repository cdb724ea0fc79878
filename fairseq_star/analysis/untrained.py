"""Encoders with random weights, for comparison with trained ones and for measuring cost."""

import torch

from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.manifest import SAMPLE_RATE


def untrained(config: EncoderConfig, *, seed: int = 0, normalize: bool = False) -> FrozenEncoder:
    """Build an encoder of ``config`` with fairseq's random initial weights from ``seed``.

    The caller's random state is not changed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SpeechEncoder(config)
    return FrozenEncoder(model, sample_rate=SAMPLE_RATE, normalize=normalize, family="random weights")
