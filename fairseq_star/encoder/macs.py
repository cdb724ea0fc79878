"""Multiply-accumulates (MACs) of a speech encoder, counted by torch on tensors without data.

Matrix products and convolutions are counted, attention's two products included; norms, activations and sums are not,
as in SUPERB's profiler. The count depends on the audio's length, because attention grows with its square.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.encoder.frames import FrameGeometry, Frames
from fairseq_star.encoder.modules import SpeechEncoder

# SUPERB's convention: the sum over these 32 utterances of LibriSpeech test-clean, one at a time (224.86 s). Their
# lengths in samples are those that testing/s3prl_profiling_test.py of github.com/B06901052/DeepSpeed, the profiling
# tool of the SUPERB challenge at SLT 2022, names. Published with it: HuBERT Base 1669 GMACs, STaRHuBERT 463.5.
SUPERB_UTTERANCES = (
    20560, 34560, 38480, 42560, 45600, 48720, 52000, 55120, 59120, 62720, 66400, 71200, 75200, 78640, 82800, 87520,
    92720, 98560, 104400, 111120, 118480, 125040, 132720, 142640, 154000, 166720, 180880, 197920, 217920, 239280,
    268160, 326000,
)  # fmt: skip


def count_macs(run: Callable[[], object]) -> int:
    """Return the MACs of ``run``: half of the floating point operations that torch's counter finds.

    Attention is counted as the two products it consists of: torch's fused kernel for the CPU counts as nothing (up to
    torch 2.13), so the plain one is used.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def macs_of_sizes(config: EncoderConfig, num_samples: np.ndarray) -> np.ndarray:
    """Compute :func:`encoder_macs` from sizes alone, in microseconds: exactly, but without WavLM's gates, and for a
    streaming encoder as if it processed whole utterances.

    Args:
        num_samples: of any number of utterances.
    """
    frames, channels, total = num_samples, 1, 0
    for layer in config.conv_layers:
        frames = (frames - layer.kernel) // layer.stride + 1
        total = total + frames * layer.channels * channels * layer.kernel
        channels = layer.channels
    width, kernel = config.embed_dim, config.conv_pos // config.pos_conv_depth
    positions = frames + (kernel % 2 == 0)  # "same" padding: one frame too many for an even kernel, then cut
    grouped = width * (width // config.conv_pos_groups) * kernel
    heads = sum(config.layer_heads) * config.head_width  # of all layers together
    weights = config.projection * channels * width + 4 * width * heads + 2 * width * sum(config.layer_ffn_dims)
    attention = 2 * heads * frames  # q k and weights v, a frame
    return total + config.pos_conv_depth * positions * grouped + frames * (weights + attention)


def encoder_macs(config: EncoderConfig, num_samples: Sequence[int]) -> list[int]:
    """Return the MACs of an encoder for each utterance of ``num_samples``, one at a time, on tensors without data."""
    geometry = FrameGeometry.of(config.conv_layers)
    model = SpeechEncoder(config).to("meta").eval()

    def run(samples: int) -> None:
        source = torch.empty(1, samples, device="meta")
        model.encode(source, Frames.of(geometry, [samples], source))

    with torch.no_grad():
        return [count_macs(partial(run, samples)) for samples in num_samples]
