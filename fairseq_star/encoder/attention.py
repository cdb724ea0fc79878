"""Self-attention: one module for every family, under fairseq's names, and the one masked attention it computes.

The frames that a frame attends to are no part of the module: a :class:`Context` sets them, for whole utterances
(:class:`Whole`), in chunks (``chunks.py``) or for a stream (``deploy/streaming/step.py``).

Heads whose width is no multiple of 8 are padded to one in half precision on a GPU: torch's kernels for masks require
that (``check_head_dim_size_mem_efficient`` in torch's ``sdp_utils.cpp``). A student's heads are 54, 60, 42
or 34 wide: for a ragged batch torch would silently fall back on plain products in float32 with all T x T
weights in memory. Columns of zeros change no product, and the scale stays that of the heads' own width.

WavLM's gated relative position bias (Chen et al., 2022, arXiv 2110.13900, section III-B) is added to the scores: a
table of biases (buckets of distance x heads), owned by the first layer, serves all layers; each layer scales it, query
frame by query frame, by a gate of its own.

Shapes: B utterances, S frames within the layers (T, the utterance's own, but for chunks), D width, H heads of W.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_star.encoder.fake_quant import linear, quantize_inputs

MULTIPLE = 8


class Context(Protocol):
    """The frames that a frame depends on: in the positional convolution, and in attention."""

    def padded(self, features: Tensor) -> Tensor | None:
        """Return which of the frames of ``features`` (B x T x D) are padding: B x T, True = padded; None: none is."""

    def place(self, pos_conv: nn.Module, features: Tensor) -> Tensor:
        """Return the layers' input, B x S x D: ``features`` (B x T x D) plus the output of ``pos_conv``."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, bias: Tensor | None = None
    ) -> Tensor:
        """Return attention's output, as :func:`attention` does, for all frames within the layers (all B x H x S x W);
        called by layer after layer."""

    def visible(self) -> Tensor | None:
        """Return 1 or B x 1 or S x S, True where a query (second) may attend to a key (third); None: everywhere."""

    def of_frames(self, weights: Tensor) -> Tensor:
        """Return attention weights between the utterance's frames (B x T x T) of those between S frames."""


@dataclass
class Whole:
    """Whole utterances: all frames of one attend to all of its own."""

    padding_mask: Tensor | None = None  # B x T, True = padded; None when nothing is
    skip_silence: bool = False  # whether frames of zeros are attended to where there are none but these
    audible: Tensor | None = field(init=False, default=None)  # B x T

    def padded(self, features: Tensor) -> Tensor | None:
        """See :class:`Context`."""
        self.audible = audible_frames(features) if self.skip_silence else None
        return self.padding_mask

    def place(self, pos_conv: nn.Module, features: Tensor) -> Tensor:
        """See :class:`Context`."""
        return features + pos_conv(features.transpose(1, 2), self.padding_mask).transpose(1, 2)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, bias: Tensor | None = None
    ) -> Tensor:
        """See :class:`Context`."""
        return attention(query, key, value, self.visible(), dropout, bias)

    def visible(self) -> Tensor | None:
        """See :class:`Context`."""
        valid = None if self.padding_mask is None else ~self.padding_mask[:, None]
        if self.audible is None:
            return valid
        audible = self.audible[:, None]
        return without_silence(torch.ones_like(audible) if valid is None else valid, audible)

    def of_frames(self, weights: Tensor) -> Tensor:
        """See :class:`Context`."""
        return weights


class SelfAttention(nn.Module):
    """Multi-head self-attention; weights are named as in fairseq, WavLM's as in Microsoft's code.

    Args:
        width: D.
        num_heads: H.
        head_dim: W; heads together may be narrower or wider than D.
        dropout: of attention weights in training.
        bits: of weights rounded as in a quantized file (``fake_quant.py``); None: not rounded.
        relative_position: WavLM's buckets and greatest distance in frames.
        has_table: whether this layer owns WavLM's table of biases.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        *,
        dropout: float = 0.0,
        bits: int | None = None,
        relative_position: tuple[int, int] | None = None,
        has_table: bool = False,
    ):
        super().__init__()
        self.num_heads, self.head_dim, self.dropout, self.bits = num_heads, head_dim, dropout, bits
        self.relative_position = relative_position
        inner = num_heads * head_dim
        if has_table:
            self.relative_attention_bias = nn.Embedding(relative_position[0], num_heads)
        # Draws and their order are fairseq's, with WavLM's bias torchaudio's: a run's first weights follow from its
        # seed. What is drawn here is drawn once more by `draw_first_weights`, but for WavLM's first three.
        make = linear if relative_position is None else _undrawn
        self.k_proj, self.v_proj, self.q_proj = (make(width, inner, bits, quantized_input=False) for _ in range(3))
        self.out_proj = linear(inner, width, bits, quantized_input=False)
        if relative_position is None:
            for projection in (self.k_proj, self.v_proj, self.q_proj):
                nn.init.xavier_uniform_(projection.weight, gain=1 / math.sqrt(2))
            nn.init.xavier_uniform_(self.out_proj.weight)
        else:
            stacked = nn.init.xavier_uniform_(torch.empty(3 * inner, width))
            for projection, weight in zip((self.q_proj, self.k_proj, self.v_proj), stacked.chunk(3), strict=True):
                nn.init.zeros_(projection.bias)
                projection.weight = nn.Parameter(weight.clone())
            self.grep_linear = nn.Linear(head_dim, 8)
            self.grep_a = nn.Parameter(torch.ones(1, num_heads, 1, 1))

    @torch.no_grad()
    def draw_first_weights(self) -> None:
        """Draw the weights as BERT does, as fairseq's ``init_bert_params`` draws them."""
        if self.relative_position is None:
            parts = [self.k_proj, self.v_proj, self.q_proj, self.out_proj, self.q_proj, self.k_proj, self.v_proj]
        else:
            parts = [self.out_proj, self.grep_linear]
            if hasattr(self, "relative_attention_bias"):
                self.relative_attention_bias.weight.normal_(std=0.02)
        for part in parts:
            part.weight.normal_(std=0.02)
            part.bias.zero_()

    def forward(self, x: Tensor, context: Context | None = None, position_bias: Tensor | None = None) -> Tensor:
        """Return the output (S x B x D) of self-attention over ``x`` (S x B x D).

        Args:
            context: which frames attend to which; all to all when None.
            position_bias: 1 x H x S x S, from :meth:`position_bias` of the first layer.
        """
        context = Whole() if context is None else context
        dropout = self.dropout if self.training else 0.0
        out = context.attend(*self.project(x), dropout, self._gated(x, position_bias))
        return self.out_proj(out.permute(2, 0, 1, 3).flatten(2))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (B x H x S x W) of ``x`` (S x B x D)."""
        x = quantize_inputs(x) if self.bits else x  # once for all three
        return tuple(self._heads(part(x)) for part in (self.q_proj, self.k_proj, self.v_proj))

    def weights(self, x: Tensor, context: Context, position_bias: Tensor | None = None) -> Tensor:
        """Return attention weights over ``x`` (S x B x D), mean over heads, without dropout: B x T x T, float32."""
        query, key, _ = self.project(x)
        logits = (query * self.head_dim**-0.5) @ key.transpose(2, 3)  # B x H x S x S
        bias, visible = self._gated(x, position_bias), context.visible()
        logits = logits if bias is None else logits + bias
        if visible is not None:
            logits = logits.masked_fill(~visible[:, None], float("-inf"))
        return context.of_frames(torch.softmax(logits, dim=-1, dtype=torch.float32).mean(dim=1))

    def position_bias(self, num_frames: int) -> Tensor:
        """Return WavLM's bias (1 x H x T x T) of the layer that has the table: the same in a batch's utterances.

        Half of the buckets are for keys after a query. Of each half one half are single distances, from 0 on; the
        others' distances grow by a constant factor up to the greatest.
        """
        num_buckets, most = self.relative_position
        device = self.relative_attention_bias.weight.device
        frame = torch.arange(num_frames, device=device)
        distance = frame - frame[:, None]  # of a key (last) from a query
        half = num_buckets // 2
        single = half // 2
        far = torch.log(distance.abs().float() / single) / math.log(most / single) * (half - single)
        far = (single + far.to(torch.long)).clamp(max=half - 1)
        bucket = torch.where(distance.abs() < single, distance.abs(), far) + (distance > 0) * half
        return self.relative_attention_bias(bucket).permute(2, 0, 1)[None]

    def _gated(self, x: Tensor, position_bias: Tensor | None) -> Tensor | None:
        """Return ``position_bias`` times this layer's gates: B x H x S x S."""
        if position_bias is None:
            return None
        # Of the eight numbers a frame and head give, four sum to the update gate's logit and four to the reset gate's.
        numbers = self.grep_linear(self._heads(x)).unflatten(-1, (2, 4)).sum(-1)
        update, reset = torch.sigmoid(numbers).chunk(2, dim=-1)  # B x H x S x 1
        return (update * (reset * self.grep_a - 1.0) + 2.0) * position_bias

    def _heads(self, projected: Tensor) -> Tensor:
        """Return the heads (B x H x S x W) of S x B x H W, a view."""
        return projected.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    """Return scaled dot-product attention of heads (B x H x queries or keys x W): B x H x queries x W.

    Args:
        mask: B x queries x keys or what expands to it, True where a query may attend; everywhere when None.
        bias: B x H x queries x keys, added to the scores.
    """
    width = query.size(-1)
    mask = None if mask is None else mask[:, None]
    if bias is not None:
        mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    if mask is not None and width % MULTIPLE and in_half_on_gpu(query):
        query, key, value = (F.pad(x, (0, -width % MULTIPLE)) for x in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=width**-0.5)
    return out if out.size(-1) == width else out[..., :width]


def audible_frames(features: Tensor) -> Tensor:
    """Return which of ``features`` (B x T x D) are no silence, whose features are zeros: B x T."""
    return (features != 0).any(-1)


def without_silence(mask: Tensor, audible: Tensor) -> Tensor:
    """Return ``mask`` (... x queries x keys, True where a query may attend) with keys that are ``audible`` alone (the
    same, 1 query for all), but for queries that may attend to none of these: as it was."""
    seen = mask & audible
    return seen | (mask & ~seen.any(-1, keepdim=True))  # onnxruntime has no `where` of booleans


def in_half_on_gpu(states: Tensor) -> bool:
    """Return whether products of ``states`` are formed in half precision, on a GPU."""
    return states.is_cuda and (states.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled("cuda"))


def _undrawn(*sizes: int | None, quantized_input: bool) -> nn.Linear:
    return nn.utils.skip_init(nn.Linear, *sizes[:2])
