"""Self-attention of an exported student: all frames of an utterance attend to the same ones, its own.

A mask of keys alone, B x 1 x 1 x T, is all that needs. torchaudio's module wants one of every pair of frames: T x T
numbers more, and in an ONNX file five passes over the weights beside the two products. The mask was made and added, and
after the softmax the weights were searched for nan, which were to be replaced.

Shapes: B utterances, H heads, T frames, D width, W = D / H.
"""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_star.deploy.streaming.step import UNSEEN

BLOCK = 256  # frames that attend at a time: at 120 s their weights are 49 MB instead of 1.2 GB


class KeyAttention(nn.Module):
    """torchaudio's ``SelfAttention`` (its linear layers) under a mask of keys."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.num_heads, self.scaling = attention.num_heads, attention.scaling
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.out_proj = attention.out_proj

    def forward(
        self,
        x: Tensor,
        attention_mask: Optional[Tensor] = None,
        position_bias: Optional[Tensor] = None,
        key_padding_mask: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """B x T x D of ``x`` (B x T x D), and None for the bias that WavLM's would give on.

        Args:
            attention_mask: B x 1 x 1 x T, True where a key is seen; all are when None.
            position_bias, key_padding_mask: not looked at, as in torchaudio.
        """
        query, key, value = (
            projected.unflatten(2, [self.num_heads, -1]).transpose(1, 2)
            for projected in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        return self.out_proj(self.attend(query, key, value, attention_mask).transpose(1, 2).flatten(2)), None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, seen: Optional[Tensor]) -> Tensor:
        """Attention of B x H x T x W each: the same."""
        return F.scaled_dot_product_attention(query, key, value, seen)


class ProductAttention(KeyAttention):
    """The same as two products and a softmax, for an ONNX file.

    Which keys are seen is a column of the first product: 1 of a query, 0 or ``UNSEEN`` of a key.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor, seen: Optional[Tensor]) -> Tensor:
        """As the base class has it; ``seen`` must be given."""
        if seen is None:
            raise ValueError("an ONNX file is always told how long its utterances are")
        unseen = (UNSEEN * (~seen).float()).transpose(2, 3).expand(-1, self.num_heads, -1, -1)
        query = F.pad(query * self.scaling, (0, 1), value=1.0)
        return self.weigh(query, torch.cat([key, unseen], dim=3).transpose(2, 3), value)

    @staticmethod
    def weigh(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """B x H x T x W of ``query`` (B x H x T x W+1), ``key`` (B x H x W+1 x T) and ``value`` (B x H x T x W)."""
        return torch.softmax(query @ key, dim=-1) @ value


class BlockAttention(ProductAttention):
    """The same, :data:`BLOCK` frames at a time: memory grows with T, not with its square."""

    @staticmethod
    def weigh(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As the base class has it."""
        # Scripted it is a loop in the file; traced, it would be as many steps as the example has blocks.
        return torch.jit.script(_by_blocks)(query, key, value, BLOCK)


def _by_blocks(query: Tensor, key: Tensor, value: Tensor, block: int) -> Tensor:
    attended = value[:, :, :0]
    for number in range((query.size(2) + block - 1) // block):
        weights = torch.softmax(query[:, :, number * block : (number + 1) * block] @ key, dim=-1)
        attended = torch.cat([attended, weights @ value], dim=2)
    return attended
