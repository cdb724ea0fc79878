"""WavLM's gated relative position bias (Chen et al., 2022, section III-B), on torchaudio's attention.

One table of biases (buckets of distance x heads), owned by the first layer, serves all layers; each layer scales it,
query frame by query frame, by a gate of its own.

Shapes: B utterances, T frames, D width, H heads.
"""

from types import SimpleNamespace
from typing import Mapping

import torch
from fairseq.models.wav2vec.wav2vec2 import TransformerEncoder
from fairseq.modules import LayerNorm
from fairseq.utils import get_activation_fn
from torch import Tensor, nn

from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.errors import StarError
from fairseq_star.runtime.torchaudio_import import import_torchaudio

import_torchaudio()
from torchaudio.models.wav2vec2.wavlm_attention import WavLMSelfAttention  # noqa: E402

# Microsoft's names within ``encoder.layers.N.self_attn`` -> torchaudio's, which stack query, key and value.
ATTENTION_KEYS = {
    "out_proj.weight": "attention.out_proj.weight",
    "out_proj.bias": "attention.out_proj.bias",
    "grep_linear.weight": "gru_rel_pos_linear.weight",
    "grep_linear.bias": "gru_rel_pos_linear.bias",
    "grep_a": "gru_rel_pos_const",
    "relative_attention_bias.weight": "rel_attn_embed.weight",
}


def to_torchaudio(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Microsoft's weights under the names :class:`WavLMEncoder` has.

    Raises:
        StarError: an attention layer lacks one of its query, key and value matrices, or they do not fit together.
    """
    renamed, stacked = {}, {}
    for key, value in weights.items():
        before, found, inner = key.partition(".self_attn.")
        if found and inner.startswith(("q_proj.", "k_proj.", "v_proj.")):
            target = f"{before}.self_attn.attention.in_proj_{inner[7:]}"
            stacked.setdefault(target, {})[inner[0]] = value
        else:
            renamed[f"{before}{found}{ATTENTION_KEYS.get(inner, inner)}"] = value
    for target, parts in stacked.items():
        if parts.keys() != {"q", "k", "v"} or len({part.shape for part in parts.values()}) > 1:
            raise StarError(f"{name}: {target} lacks q_proj, k_proj or v_proj; get the file from its authors")
        renamed[target] = torch.cat([parts[part] for part in "qkv"])
    return renamed


class WavLMLayer(nn.Module):
    """fairseq's ``TransformerSentenceEncoderLayer`` (same names, pre- or post-norm) with WavLM's attention.

    For frozen models only: it has no dropout.
    """

    def __init__(self, settings: SimpleNamespace, first: bool):
        super().__init__()
        num_buckets, max_distance = settings.relative_position
        width, inner = settings.encoder_embed_dim, settings.encoder_ffn_embed_dim
        self.layer_norm_first = settings.layer_norm_first
        self.activation_fn = get_activation_fn(settings.activation_fn)
        self.self_attn = WavLMSelfAttention(
            width,
            settings.encoder_attention_heads,
            has_relative_attention_bias=first,
            num_buckets=num_buckets,
            max_distance=max_distance,
        )
        self.self_attn_layer_norm = LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.final_layer_norm = LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        self_attn_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        *,
        position_bias: Tensor,
    ) -> tuple[Tensor, None]:
        """The layer's output (T x B x D) for its input ``x`` (T x B x D) and ``position_bias`` (1 x H x T x T)."""
        residual = x
        if self.layer_norm_first:
            x = self.self_attn_layer_norm(x)
        if self_attn_padding_mask is not None:  # added to the bias, so of its type
            blank = torch.zeros_like(self_attn_padding_mask, dtype=position_bias.dtype)
            self_attn_padding_mask = blank.masked_fill(self_attn_padding_mask, float("-inf"))
        x, _ = self.self_attn(x.transpose(0, 1), self_attn_padding_mask, position_bias=position_bias)
        x = residual + x.transpose(0, 1)
        if self.layer_norm_first:
            return x + self._feed_forward(self.final_layer_norm(x)), None
        x = self.self_attn_layer_norm(x)
        return self.final_layer_norm(x + self._feed_forward(x)), None

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(x)))


class WavLMTransformer(TransformerEncoder):
    """fairseq's Transformer with WavLM's layers."""

    def build_encoder_layer(self, args: SimpleNamespace, layer_idx: int) -> WavLMLayer:
        """One layer; fairseq's constructor calls this for each."""
        return WavLMLayer(args, first=layer_idx == 0)


class WavLMEncoder(SpeechEncoder):
    """An encoder whose layers share one table of position biases. For frozen models only: it has no dropout."""

    transformer = WavLMTransformer

    def layer_arguments(self, num_frames: int) -> dict[str, Tensor]:
        """What every layer takes beside its input and mask: the position bias, 1 x H x T x T, formed once a batch."""
        return {"position_bias": self.encoder.layers[0].self_attn.compute_bias(num_frames, num_frames)[None]}

    def attention_map(
        self, layer: nn.Module, x: Tensor, padding_mask: Tensor | None, *, position_bias: Tensor
    ) -> Tensor:
        """Attention weights of ``layer`` over its input ``x`` (T x B x D), mean over heads: B x T x T."""
        if layer.layer_norm_first:
            x = layer.self_attn_layer_norm(x)
        attention = layer.self_attn
        x = x.transpose(0, 1)  # B x T x D

        def heads(projected: Tensor) -> Tensor:  # B x T x D -> B x H x T x D/H
            return projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

        projected = nn.functional.linear(x, attention.attention.in_proj_weight, attention.attention.in_proj_bias)
        query, key, _ = map(heads, projected.chunk(3, dim=-1))
        # Of the eight numbers a frame and head give, four sum to the update gate's logit and four to the reset gate's.
        gates = attention.gru_rel_pos_linear(heads(x)).unflatten(-1, (2, 4)).sum(-1).sigmoid()  # B x H x T x 2
        update, reset = gates.split(1, dim=-1)
        gate = 2 + update * (reset * attention.gru_rel_pos_const - 1)  # B x H x T x 1
        logits = query @ key.transpose(2, 3) * attention.head_dim**-0.5 + gate * position_bias
        if padding_mask is not None:
            logits = logits.masked_fill(padding_mask[:, None, None, :], float("-inf"))
        return torch.softmax(logits, dim=-1, dtype=torch.float32).mean(dim=1)
