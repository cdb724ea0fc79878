"""Linear layers that compute with the few bits a device will have, while their weights are still trained.

Quantization-aware distillation (straight-through estimator, arXiv:1308.3432): what is computed is what an exported
file computes, weights on its grid and inputs rounded to 8 bits; the gradient goes through as if nothing were rounded.
Weights keep their names, shapes and full precision, so checkpoints and exports know nothing of it: an export rounds
them to the very same grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BITS = (8, 4)
BLOCK = 32  # weights of an output channel that share a scale in 4 bits, as `formats/onnx_quantized.py` stores them


def on_grid(weight: Tensor, bits: int) -> Tensor:
    """A linear layer's weight (out x in) as onnxruntime stores it.

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
    """Inputs (... x D) as whole numbers from 0 to 255 between the least and the greatest of each frame, 0 among them.

    A frame has a range of its own, so that what it becomes depends on no padding and no neighbour in its batch;
    onnxruntime's dynamic quantization takes one of the whole input.
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
    """``rounded``, with the gradient of ``values``."""
    return values + (rounded - values).detach()


class RoundedLinear(nn.Linear):
    """A linear layer whose ``weight`` is given out on its grid, whoever asks for it, and saved as it is."""

    bits: int
    rounds_input: bool

    def __getattr__(self, name: str) -> object:
        value = super().__getattr__(name)  # of a module's own, parameters alone come here
        return straight_through(value, on_grid(value.detach(), self.bits)) if name == "weight" else value

    def forward(self, x: Tensor) -> Tensor:
        """As of a linear layer."""
        if self.rounds_input:
            x = straight_through(x, in_8_bits(x.detach()))
        return super().forward(x)


def round_linear_layers(model: nn.Module, bits: int) -> None:
    """Have all linear layers of an encoder compute so, in place: no weight is drawn, moved or renamed.

    What attention gives to its last projection is not rounded; what it takes is, once for all three of the others.
    """
    attended = {
        part
        for module in model.modules()
        if hasattr(module, "q_proj")
        for part in (module.q_proj, module.k_proj, module.v_proj, module.out_proj)
    }
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            module.__class__ = RoundedLinear
            module.bits, module.rounds_input = bits, module not in attended
        elif hasattr(module, "q_proj"):
            module.register_forward_pre_hook(_round_inputs, with_kwargs=True)


def _round_inputs(module: nn.Module, arguments: tuple, options: dict) -> tuple[tuple, dict]:
    """One tensor for query, key and value, as it was: fairseq's attention looks whether they are the same."""
    made: dict[int, Tensor] = {}

    def rounded(value: object) -> object:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        if id(value) not in made:
            made[id(value)] = straight_through(value, in_8_bits(value.detach()))
        return made[id(value)]

    named = {name: rounded(value) if name in ("query", "key", "value") else value for name, value in options.items()}
    return (*map(rounded, arguments[:3]), *arguments[3:]), named
