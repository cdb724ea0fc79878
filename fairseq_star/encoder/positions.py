"""Positional convolutions: one weight-normed convolution, or data2vec's stack of them; fairseq's names.

One convolution needs its input's padded frames to be zero, and they are. In a stack the first one writes into them, and
the second carries that back into the valid frames: an utterance's features would depend on its batch. So padded frames
are zeroed after each convolution.
"""

import math

import torch
import torch.nn.functional as F
from fairseq.modules import LayerNorm, SamePad, TransposeLast
from torch import Tensor, nn

from fairseq_star.encoder.config import EncoderConfig


class WeightNormConv1d(nn.Module):
    """A convolution whose weight is g v / |v|, |v| taken for each tap (fairseq's ``weight_norm`` with ``dim=2``)."""

    def __init__(self, width: int, kernel: int, groups: int):
        super().__init__()
        plain = nn.Conv1d(width, width, kernel, groups=groups)  # its draws belong to those that follow from a seed
        weight = nn.init.normal_(plain.weight.detach(), std=math.sqrt(4 / (kernel * width)))
        self.kernel_size, self.groups = plain.kernel_size, groups
        self.bias = nn.Parameter(torch.zeros(width))
        self.weight_g = nn.Parameter(torch.norm_except_dim(weight, 2, 2))
        self.weight_v = nn.Parameter(weight)

    @property
    def weight(self) -> Tensor:
        """Return the weight, D x D / groups x K."""
        return torch._weight_norm(self.weight_v, self.weight_g, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of ``x`` (B x D x T), padded by half a kernel on both sides."""
        return F.conv1d(x, self.weight, self.bias, padding=self.kernel_size[0] // 2, groups=self.groups)


class PositionalConvolution(nn.Sequential):
    """One convolution of "same" padding and an activation.

    Args:
        width: D.
        kernel: its width in frames.
        groups: of channels.
        fused: hold the weight as one tensor, ``0.weight``, instead of direction and magnitude; for inference.
    """

    def __init__(self, width: int, kernel: int, groups: int, fused: bool = False):
        plain = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups) if fused else None
        super().__init__(plain or WeightNormConv1d(width, kernel, groups), SamePad(kernel), nn.GELU())

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Return positions of ``x`` (B x D x T), zero where padded; ``padding_mask`` is not needed."""
        return super().forward(x)


class PositionalStack(nn.Sequential):
    """data2vec's: convolutions with a norm without weights each.

    Args:
        width: D.
        kernel: in frames, of each.
        groups: of channels.
        depth: how many.
        valid: keep padding zero throughout.
    """

    def __init__(self, width: int, kernel: int, groups: int, depth: int, valid: bool):
        super().__init__(*(
            nn.Sequential(
                nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups),
                SamePad(kernel),
                TransposeLast(),
                LayerNorm(width, elementwise_affine=False),
                TransposeLast(),
                nn.GELU(),
            )
            for _ in range(depth)
        ))  # fmt: skip
        self.valid = valid

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Return positions of ``x`` (B x D x T); ``padding_mask`` is B x T, True = padded, None when nothing is."""
        for block in self:
            x = block(x)
            if padding_mask is not None and self.valid:
                x = x.masked_fill(padding_mask[:, None], 0)
        return x


def build_positions(config: EncoderConfig, *, valid: bool, fused: bool) -> PositionalConvolution | PositionalStack:
    """Build the positional convolution or stack of an encoder; ``valid`` and ``fused`` as of these."""
    width, groups, depth = config.embed_dim, config.conv_pos_groups, config.pos_conv_depth
    if depth == 1:
        return PositionalConvolution(width, config.conv_pos, groups, fused)
    return PositionalStack(width, max(3, config.conv_pos // depth), groups, depth, valid)
