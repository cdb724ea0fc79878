"""Fake quantization: linear layers that compute with int8 or int4 weights while the float weights are trained.

Quantization-aware distillation (straight-through estimator, arXiv:1308.3432): the forward pass computes as an exported
file does, weights on its grid and inputs rounded to 8 bits; the gradient passes through as if nothing were rounded.
Weights keep their names, shapes and full precision, so checkpoints and exports need no change: an export rounds them to
the same grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BITS = (8, 4)
BLOCK = 32  # weights of an output channel that share a scale in 4 bits, as `deploy/onnx_quantized.py` stores them


def on_grid(weight: Tensor, bits: int) -> Tensor:
    """Return a linear layer's weight (out x in) as onnxruntime stores it.

    8 bits: whole numbers from -127 to 127 times a scale for each output channel, the greatest magnitude over 127. 4
    bits: from -8 to 7 times a scale for each block of 32 of a channel, which puts the number of greatest magnitude at
    -8 (onnxruntime's MatMulNBits, symmetric).
    """
    if bits == 8:
        scale = weight.abs().amax(1, keepdim=True) / 127
        return _rounded(weight, scale, -127, 127)
    blocks = F.pad(weight, (0, -weight.size(1) % BLOCK)).unflatten(1, (-1, BLOCK))
    greatest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
    return _rounded(blocks, greatest / -8, -8, 7).flatten(1)[:, : weight.size(1)]


def in_8_bits(x: Tensor) -> Tensor:
    """Round inputs (... x D) to 256 levels between the least and the greatest of each frame, 0 among them.

    A frame has a range of its own, so that it depends on no padding and no other utterance of its batch; onnxruntime's
    dynamic quantization takes one range for the whole input.
    """
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = (high - low) / 255
    zero = torch.round(-low / _not_0(scale))
    return (torch.round(x / _not_0(scale)) + zero).clamp(0, 255).sub(zero) * scale


def _rounded(values: Tensor, scale: Tensor, least: int, most: int) -> Tensor:
    return torch.round(values / _not_0(scale)).clamp(least, most) * scale


def _not_0(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    """Return ``rounded``, with the gradient of ``values``."""
    return values + (rounded - values).detach()


def quantize_inputs(x: Tensor) -> Tensor:
    """Return the rounded input of a quantized linear layer, :func:`in_8_bits`, with the gradient of ``x``."""
    return straight_through(x, in_8_bits(x.detach()))


class FakeQuantLinear(nn.Linear):
    """A linear layer that computes with its ``weight`` on a grid of 8 or 4 bits, and saves it in full precision.

    Args:
        in_features, out_features: see ``nn.Linear``.
        bits: 8 or 4.
        quantized_input: round the input too; off where the caller has done so.
    """

    def __init__(self, in_features: int, out_features: int, bits: int, quantized_input: bool = True):
        super().__init__(in_features, out_features)
        self.bits, self.quantized_input = bits, quantized_input

    def forward(self, x: Tensor) -> Tensor:
        """See ``nn.Linear``."""
        x = quantize_inputs(x) if self.quantized_input else x
        return F.linear(x, straight_through(self.weight, on_grid(self.weight.detach(), self.bits)), self.bias)


def linear(in_features: int, out_features: int, bits: int | None, quantized_input: bool = True) -> nn.Linear:
    """Build a linear layer, a :class:`FakeQuantLinear` where ``bits`` are given."""
    if bits is None:
        return nn.Linear(in_features, out_features)
    return FakeQuantLinear(in_features, out_features, bits, quantized_input)
