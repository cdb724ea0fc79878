"""The first norm of a streaming student: HuBERT Base's group norm with statistics of the past.

A group norm takes each channel's mean and variance over the whole utterance, whose end a stream does not know. Here a
frame's are those of all steps of the encoder (20 ms) that ended before it, beginning with statistics of the corpus that
weigh as much as :data:`PRIOR` steps: without them the first frames, often near silence, would be raised to the level of
speech. Those of the corpus are measured once, with the first weights, as in data-dependent initialization (Salimans &
Kingma, 2016, arXiv 1602.07868). What a frame becomes depends on what came before it, never on its batch.

Shapes: B utterances, C channels, T frames of the first convolution, F of them in a step.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RUNNING = "running_norm"
"""``extractor_mode`` of such an encoder."""
PRIOR = 15
"""Weight of the corpus's statistics in steps: 0.3 s."""


@dataclass
class Past:
    """State of a stream's norm; a forward pass replaces ``sums`` by those that :meth:`RunningNorm.go_on` returns."""

    sums: Tensor
    num_steps: Tensor


class RunningNorm(nn.Module):
    """``(x - mean) / sqrt(variance + eps) * weight + bias``, each channel with its own, statistics of the steps before.

    ``mean`` and ``variance`` are the corpus's, buffers: saved, never trained. Computed in float32 whatever the input's
    precision.

    Args:
        num_channels: C.
        step: F.
        eps: added to the variance.
    """

    def __init__(self, num_channels: int, step: int, eps: float = 1e-5):
        super().__init__()
        self.step, self.eps = step, eps
        self.weight, self.bias = nn.Parameter(torch.ones(num_channels)), nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("mean", torch.zeros(num_channels))
        self.register_buffer("variance", torch.ones(num_channels))

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        """Normalize ``x`` (B x C x T), which begins with the utterance, or goes on from ``past``."""
        if past is not None:
            x, past.sums = self.go_on(x, past.sums, past.num_steps)
            return x
        heard, num_steps = x.new_zeros(1, 2, x.size(1), dtype=torch.float32), x.new_zeros(1, dtype=torch.float32)
        # Utterance by utterance: what is formed on the way is as large as this, the network's largest activation.
        return torch.cat([self.go_on(one, heard, num_steps)[0] for one in x.split(1)])

    def go_on(self, x: Tensor, heard: Tensor, num_steps: Tensor) -> tuple[Tensor, Tensor]:
        """Normalize ``x`` (B x C x T) of a stream.

        Args:
            heard: B x 2 x C, sums of the frames, and of their squares, of the steps before ``x``.
            num_steps: B, how many these are.

        Returns:
            What ``x`` becomes, and ``heard`` as it was before each of its steps: 1 + (T - 1) // F of B x 2 x C, in
            the first's place B x 2 x C x steps.
        """
        values = x.float()
        num_before = (x.size(2) - 1) // self.step
        steps, rest = values.split([num_before * self.step, x.size(2) - num_before * self.step], dim=2)
        steps = steps.unflatten(2, (num_before, self.step))
        sums = torch.stack([steps.sum(3), steps.square().sum(3)], dim=1)  # B x 2 x C x steps
        heard = heard[..., None] + F.pad(sums.cumsum(3), (1, 0))
        mean, variance = self.mean.float(), self.variance.float()
        prior = PRIOR * self.step * torch.stack([mean, variance + mean.square()])[..., None]  # 2 x C x 1
        count = self.step * (PRIOR + num_steps[:, None] + torch.arange(num_before + 1, device=x.device))  # B x steps
        mean, square = ((heard + prior) / count[:, None, None]).unbind(1)
        scale = self.weight.float()[:, None] * torch.rsqrt((square - mean.square()).clamp(min=0) + self.eps)
        shift = self.bias.float()[:, None] - mean * scale  # B x C x steps
        steps = (steps * scale[..., :-1, None] + shift[..., :-1, None]).flatten(2)
        out = torch.cat([steps, rest * scale[..., -1:] + shift[..., -1:]], dim=2)
        return out.type_as(x), heard


@torch.no_grad()
def measure_statistics(extractor: nn.Module, utterances: Iterable[Tensor]) -> int:
    """Measure mean and variance of what the first convolution gives of ``utterances`` (each 1-D), over all frames.

    Returns:
        The number of frames; with less than two everything stays as it was.
    """
    convolution, norm = extractor.conv_layers[0][0], extractor.conv_layers[0][2]
    total, squares, frames = 0.0, 0.0, 0
    for utterance in utterances:
        if len(utterance) >= convolution.kernel_size[0]:
            found = convolution(utterance[None, None].to(convolution.weight))[0].double()  # C x T
            total, squares, frames = total + found.sum(1), squares + found.square().sum(1), frames + found.size(1)
    if frames > 1:
        mean = total / frames
        norm.mean.copy_(mean)
        norm.variance.copy_((squares / frames - mean.square()).clamp(min=0))
    return frames
