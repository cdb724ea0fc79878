"""Time geometry: from audio samples to frames, and the one frame padding mask.

Shapes: B utterances, T frames of the longest one, n_b valid frames of utterance b.
"""

import ast
import re
from dataclasses import dataclass
from typing import NamedTuple, Sequence, TypeVar

import numpy as np
import torch
from torch import Tensor

from fairseq_star.errors import StarError


class ConvLayer(NamedTuple):
    """One temporal convolution of a feature extractor."""

    channels: int
    kernel: int
    stride: int


MAX_CONV_LAYERS = 64
Samples = TypeVar("Samples", int, np.ndarray)


def parse_conv_layers(spec: str, width: int | None = None) -> list[ConvLayer]:
    """Read fairseq's ``conv_feature_layers`` without evaluating it.

    Accepts what fairseq's own configs contain: list literals of ``(channels, kernel, stride)``, ``+`` between lists
    and ``*`` with a whole number, e.g. ``[(512,10,5)] + [(512,3,2)] * 4``. The symbol ``D`` stands for ``width``, the
    encoder's embedding dimension.

    Raises:
        StarError: anything else; the message names the part that is not understood.
    """

    def refuse(what: str) -> StarError:
        return StarError(
            f"conv_feature_layers: {what} in {spec!r}; expected lists of (channels, kernel, stride) "
            "joined by + and repeated by *, e.g. '[(512,10,5)] + [(512,3,2)] * 4'"
        )

    def number(node: ast.AST) -> int:
        if isinstance(node, ast.Name) and node.id == "D" and width is not None:
            return width
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value > 0:
            return node.value
        raise refuse(f"{ast.unparse(node)!r} is not a positive whole number")

    def layers(node: ast.AST) -> list[ConvLayer]:
        if isinstance(node, ast.List):
            for item in node.elts:
                if not isinstance(item, ast.Tuple | ast.List) or len(item.elts) != 3:
                    raise refuse(f"{ast.unparse(item)!r} is not a triple")
            return [ConvLayer(*map(number, item.elts)) for item in node.elts]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return layers(node.left) + layers(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            block, times = (node.right, node.left) if isinstance(node.left, ast.Constant) else (node.left, node.right)
            repeated = layers(block)
            if number(times) * len(repeated) > MAX_CONV_LAYERS:
                raise refuse(f"more than {MAX_CONV_LAYERS} layers")
            return repeated * number(times)
        raise refuse(f"{ast.unparse(node)!r} is not understood")

    # The limits come before the parser: a nested or huge string must not exhaust it.
    if not isinstance(spec, str) or len(spec) > 4096 or not re.fullmatch(r"[\dD\s()\[\],+*]*", spec):
        raise refuse("something other than digits, D, brackets, commas, + and *")
    try:
        parsed = layers(ast.parse(spec.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        if isinstance(error, StarError):
            raise
        raise refuse("a syntax error") from error
    if not 0 < len(parsed) <= MAX_CONV_LAYERS:
        raise refuse("no layer" if not parsed else f"more than {MAX_CONV_LAYERS} layers")
    return parsed


@dataclass(frozen=True)
class FrameGeometry:
    """The map of samples to frames of a stack of unpadded convolutions.

    Nested floors of strided convolutions collapse, so two numbers are exact for every input:
    ``num_frames = (num_samples - receptive_field) // downsample_rate + 1``.
    """

    receptive_field: int  # samples one frame sees
    downsample_rate: int  # samples from one frame to the next

    @classmethod
    def of(cls, conv_layers: Sequence[ConvLayer]) -> "FrameGeometry":
        """Compute the geometry of a feature extractor's convolutions, the first one first."""
        receptive_field, downsample_rate = 1, 1
        for _, kernel, stride in conv_layers:
            receptive_field += (kernel - 1) * downsample_rate
            downsample_rate *= stride
        return cls(receptive_field, downsample_rate)

    def num_frames(self, num_samples: Samples) -> Samples:
        """Return the frames of an utterance of ``num_samples`` (a number, or an array of them); 0 where it is shorter
        than the receptive field."""
        reach = num_samples - self.receptive_field
        return (reach // self.downsample_rate + 1) * (reach >= 0)

    def all_num_frames(self, num_samples: Sequence[int] | Tensor) -> list[int] | Tensor:
        """Return the frames of each of several utterances: a list for a sequence, a tensor for a tensor."""
        if not isinstance(num_samples, Tensor):
            return [self.num_frames(number) for number in num_samples]
        # Clamped before the division: onnxruntime rounds negative quotients up, torch down.
        reach = (num_samples - self.receptive_field + self.downsample_rate).clamp(min=0)
        return torch.div(reach, self.downsample_rate, rounding_mode="floor")


@dataclass(frozen=True)
class Frames:
    """The valid frames of a batch: computed once a batch for teacher, student and loss.

    Counts are plain numbers on the host, so that reading them needs no synchronization with the device.
    """

    num_samples: list[int]  # valid samples of each utterance
    frame_lengths: list[int]  # n_b, valid frames of each utterance
    padding_mask: Tensor | None  # B x T, True = padded; None when no frame of the batch is padded

    @classmethod
    def of(cls, geometry: FrameGeometry, num_samples: Sequence[int], source: Tensor) -> "Frames":
        """Compute the frames of ``source`` (B x samples), of which ``num_samples`` are valid.

        Raises:
            StarError: an utterance is too short to have a frame.
        """
        frame_lengths = geometry.all_num_frames(num_samples)
        if min(frame_lengths) < 1:
            raise StarError(
                f"an utterance of {min(num_samples)} samples is shorter than one frame ({geometry.receptive_field} "
                "samples); set task.min_sample_size to at least that"
            )
        total = geometry.num_frames(source.size(1))
        padding_mask = None
        if min(frame_lengths) < total:
            lengths = torch.tensor(frame_lengths).to(source.device, non_blocking=True)
            padding_mask = torch.arange(total, device=source.device) >= lengths[:, None]
        return cls(list(num_samples), frame_lengths, padding_mask)

    def all_counted(self) -> "Frames":
        """Return the same batch with every frame counted as valid (the means of the STaR re-implementation)."""
        if self.padding_mask is None:
            return self
        total = self.padding_mask.size(1)
        return Frames(self.num_samples, [total] * len(self.frame_lengths), None)
