"""Attention of exported students, written out as products where onnxruntime is faster so.

All frames of an utterance attend to the same ones, its own: a mask of keys alone, B x 1 x T, is all that needs.
:func:`~fairseq_star.encoder.attention.attention` takes it as it is. In an ONNX file torch's own is five passes
over the weights besides the two products: the mask is made and added, and after the softmax nan weights are searched
    for and replaced.

Shapes: B utterances or streams, H heads of W, T frames; L past frames before C new ones.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_star.encoder.attention import attention

Attend = Callable[..., Tensor]
"""A function with the arguments and the result of ``encoder.attention.attention``."""
AttendRecent = Callable[..., Tensor]
"""A function with the arguments and the result of :func:`joined`."""
UNSEEN = -1e9  # score of a masked key: exp gives 0, and a row of nothing else gives no nan
BLOCK = 256  # frames that attend at a time: at 120 s their weights are 49 MB instead of 1.2 GB


def attention_by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Return attention as two products and a softmax.

    The mask is a column of the first product: 1 for a query, 0 or ``UNSEEN`` for a key.

    Args:
        query, key, value: B x H x T x W.
        mask: B x 1 x T, True where a key is seen.
    """
    query, key = _with_mask(query, key, mask)
    return torch.softmax(query @ key, dim=-1) @ value


def attention_by_blocks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Return the same, computed for :data:`BLOCK` frames at a time: memory grows with T, not with its square."""
    query, key = _with_mask(query, key, mask)
    # Scripted, it is a loop in the file; traced, it would be unrolled to the example's number of blocks.
    return torch.jit.script(_by_blocks)(query, key, value, BLOCK)


def joined(query: Tensor, past_keys: Tensor, past_values: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Return attention (B x H x C x W) of a stream's new frames to past and new ones, by torch's own.

    Args:
        query, keys, values: B x H x C x W.
        past_keys, past_values: B x H x L x W.
        mask: B x 1 x L+C, True where a key is seen.
    """
    keys, values = torch.cat([past_keys, keys], dim=2), torch.cat([past_values, values], dim=2)
    return attention(query, keys, values, mask)


def joined_by_products(
    query: Tensor, past_keys: Tensor, past_values: Tensor, keys: Tensor, values: Tensor, mask: Tensor
) -> Tensor:
    """Return the same as separate products with past and new frames, so that past ones need no copy to join the two."""
    query = query * query.size(-1) ** -0.5
    scores = torch.cat([query @ past_keys.transpose(2, 3), query @ keys.transpose(2, 3)], dim=3)
    weights = torch.softmax(scores + UNSEEN * (~mask[:, None]).float(), dim=3)
    num_past = past_keys.size(2)
    return weights[..., :num_past] @ past_values + weights[..., num_past:] @ values


def _with_mask(query: Tensor, key: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries (B x H x T x W+1) and keys (B x H x W+1 x T) whose product holds the mask."""
    unseen = (UNSEEN * (~mask).float()).unsqueeze(-1).expand(-1, key.size(1), -1, -1)
    query = F.pad(query * query.size(-1) ** -0.5, (0, 1), value=1.0)
    return query, torch.cat([key, unseen], dim=3).transpose(2, 3)


def _by_blocks(query: Tensor, key: Tensor, value: Tensor, block: int) -> Tensor:
    attended = value[:, :, :0]
    for number in range((query.size(2) + block - 1) // block):
        weights = torch.softmax(query[:, :, number * block : (number + 1) * block] @ key, dim=-1)
        attended = torch.cat([attended, weights @ value], dim=2)
    return attended
