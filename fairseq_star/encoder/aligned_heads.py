"""Attention of heads whose width is no multiple of 8, kept on the fast kernels of a GPU.

Those of torch's attention kernels for a GPU that take a mask of padded keys want, in half precision, heads whose width
is a multiple of 8 (``check_head_dim_size_mem_efficient`` in torch's ``sdp_utils.cpp``). A student's heads are 54, 60,
42 or 34 wide: for a ragged batch torch then falls back, without a word, on plain products in float32 with all T x T
weights in memory. Columns of zeros change no product, so heads are made up to a multiple of 8 here; the scale stays
that of their own width. What it saves is unmeasured: no GPU was at hand.
"""

import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

MULTIPLE = 8


class AlignedAttention(MultiheadAttention):
    """fairseq's self-attention; the same weights, under the same names, and the same result."""

    def forward(
        self, query: Tensor, key: Tensor | None, value: Tensor | None, **options
    ) -> tuple[Tensor, Tensor | None]:
        """As fairseq's; through heads made up to a multiple of 8 where that is the faster kernel."""
        padding_mask, attn_mask = options.get("key_padding_mask"), options.get("attn_mask")
        plain = options.get("need_weights", True) or attn_mask is not None or padding_mask is None
        if plain or self.head_dim % MULTIPLE == 0 or not in_half_on_gpu(query):
            return super().forward(query, key, value, **options)
        return aligned_attention(self, query, padding_mask), None


def in_half_on_gpu(states: Tensor) -> bool:
    """Whether products of ``states`` are formed in half precision, on a GPU."""
    return states.is_cuda and (states.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled("cuda"))


def aligned_attention(attention: MultiheadAttention, x: Tensor, padding_mask: Tensor) -> Tensor:
    """Self-attention of ``x`` (T x B x D), ``padding_mask`` B x T, True = a key that nobody sees: T x B x D."""
    num_frames, batch, _ = x.shape

    def heads(projection: nn.Module) -> Tensor:  # B x heads x T x head_dim, made up
        split = projection(x).view(num_frames, batch, attention.num_heads, attention.head_dim).permute(1, 2, 0, 3)
        return F.pad(split, (0, -attention.head_dim % MULTIPLE))

    query, key, value = (heads(part) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
    hidden = torch.zeros_like(padding_mask, dtype=query.dtype).masked_fill_(padding_mask, float("-inf"))  # B x T
    attended = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=hidden[:, None, None].expand(-1, attention.num_heads, num_frames, -1),
        dropout_p=attention.dropout_module.p if attention.training else 0.0,
        scale=attention.head_dim**-0.5,
    )[..., : attention.head_dim]
    return attention.out_proj(attended.permute(2, 0, 1, 3).reshape(num_frames, batch, -1))


def align_heads(encoder: nn.Module) -> None:
    """Have every self-attention of fairseq's ``encoder`` do so, in place: no weight is drawn or moved."""
    for layer in encoder.layers:
        if type(layer.self_attn) is MultiheadAttention:
            layer.self_attn.__class__ = AlignedAttention
