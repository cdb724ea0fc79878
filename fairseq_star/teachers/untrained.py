"""Encoders with random weights: what training is compared with, and what cost is measured on."""

import torch

from fairseq_star.manifest import SAMPLE_RATE
from fairseq_star.teachers.config import EncoderConfig
from fairseq_star.teachers.speech_encoder import FairseqSpeechEncoder, make_teacher
from fairseq_star.teachers.teacher import Teacher


def untrained(config: EncoderConfig, *, seed: int = 0, normalize: bool = False) -> Teacher:
    """An encoder of ``config`` with the first, random weights that fairseq gives it; ``seed`` decides them.

    The caller's random numbers are left as they are.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = FairseqSpeechEncoder(config).state_dict()
    return make_teacher(
        config, weights, family="random weights", name="random weights", sample_rate=SAMPLE_RATE, normalize=normalize
    )
