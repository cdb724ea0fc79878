"""Group norm over time that takes statistics over an utterance's own frames only.

The first convolution of HuBERT Base, wav2vec 2.0 Base and the student is followed by a group norm whose statistics run
over the whole time axis. In a padded batch that mixes the padding into every frame: an utterance's features then
depend on its neighbours. Here the statistics are taken over the valid frames, so that they are the utterance's own.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ValidGroupNorm(nn.GroupNorm):
    """A group norm of one group a channel, in float32 whatever the input's precision (fairseq's ``Fp32GroupNorm``)."""

    def __init__(self, num_channels: int):
        super().__init__(num_channels, num_channels)

    def forward(self, x: Tensor, frame_lengths: Sequence[int] | Tensor | None = None) -> Tensor:
        """Normalize ``x`` (B x C x T) over its first ``frame_lengths[b]`` frames; None = over all, as fairseq does.

        Frames beyond are set to one value a channel, which depends on nothing. Lengths in a tensor, as a program has
        them, become a mask: no shape then depends on them. Numbers become one native kernel an utterance, without
        masked temporaries of this, the largest activation of the network.
        """
        if isinstance(frame_lengths, Tensor):
            normalized = standardized(x.float(), valid_frames(frame_lengths, x).unsqueeze(1), self.eps)
            return (normalized * self.weight.float()[:, None] + self.bias.float()[:, None]).type_as(x)
        if frame_lengths is None or min(frame_lengths) == x.size(-1):
            return self._native(x)
        return torch.cat([
            F.pad(self._native(x[number : number + 1, :, :length]), (0, x.size(-1) - length))
            for number, length in enumerate(frame_lengths)
        ])  # fmt: skip

    def _native(self, x: Tensor) -> Tensor:
        out = F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return out.type_as(x)


def valid_frames(lengths: Tensor, x: Tensor) -> Tensor:
    """Return 1 where valid and 0 where padded, B x the size of the last axis of ``x``, float32."""
    # Traced, the device would be a constant; scripted, it is that of `lengths`.
    mask = torch.jit.script(_valid_frames) if torch.jit.is_tracing() else _valid_frames
    return mask(lengths, x)


def _valid_frames(lengths: Tensor, x: Tensor) -> Tensor:
    return (torch.arange(x.size(-1), device=lengths.device) < lengths.unsqueeze(1)).float()


def standardized(x: Tensor, valid: Tensor, eps: float = 1e-5) -> Tensor:
    """Return ``x`` of mean 0 and variance 1 over its last axis where ``valid`` is 1, if it is anywhere; 0 elsewhere."""
    num_valid = valid.sum(-1, keepdim=True).clamp(min=1)
    mean = (x * valid).sum(-1, keepdim=True) / num_valid
    x = (x - mean) * valid
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) / num_valid + eps)
