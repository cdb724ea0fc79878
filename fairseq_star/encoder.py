"""One forward pass for teacher and student alike, over fairseq's own wav2vec 2.0 modules.

HuBERT, wav2vec 2.0 and the student share their parts' names; what differs from fairseq's own ``forward`` is what is
given out: every layer's states, attention maps on request, one frame padding mask, and nothing past the last layer
asked for.

Shapes: B utterances, T frames, D embedding dimension, L layers.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Collection, Protocol

import torch
import torch.nn.functional as F
from fairseq.models.wav2vec.wav2vec2 import (
    ConvFeatureExtractionModel,
    TransformerEncoder,
    TransformerSentenceEncoderLayer,
)
from torch import Tensor, nn

from fairseq_star.frames import Frames
from fairseq_star.group_norm import extract_features
from fairseq_star.positional import positions


class SpeechEncoder(Protocol):
    """What HuBERT, wav2vec 2.0 and the student have in common (fairseq's attribute names)."""

    feature_extractor: ConvFeatureExtractionModel
    layer_norm: nn.Module
    post_extract_proj: nn.Linear | None
    dropout_input: nn.Dropout
    encoder: TransformerEncoder


@dataclass
class Encoding:
    """What an encoder makes of a batch."""

    frames: Frames
    projected_features: Tensor  # B x T x D, what enters the encoder before the positional convolution
    hidden_states: list[Tensor]  # L+1 of B x T x D: the first layer's input, then each layer's output
    attention_maps: dict[int, Tensor] = field(default_factory=dict)  # layer (1-based) -> B x T x T, mean over heads


def encode(
    model: SpeechEncoder,
    source: Tensor,
    frames: Frames,
    *,
    last_layer: int | None = None,
    attention_layers: Collection[int] = (),
) -> Encoding:
    """Run ``model`` over ``source`` (B x samples), its parts as fairseq's ``HubertModel.forward`` runs them.

    Args:
        frames: the batch's valid frames; padded ones are zeroed before the positional convolution, never attended to.
        last_layer: stop after this layer (1-based); all layers when None.
        attention_layers: layers (1-based) whose attention maps are wanted. Every other one runs through
            ``scaled_dot_product_attention`` and never forms its weights.

    The layers' own dropouts apply in training mode. Layer drop does not: the loss needs every layer.
    """
    padding_mask = frames.padding_mask
    features = extract_features(model.feature_extractor, source, frames.num_samples)  # B x C x T
    features = model.layer_norm(features.transpose(1, 2))  # B x T x C
    if model.post_extract_proj is not None:
        features = model.post_extract_proj(features)  # B x T x D
    features = model.dropout_input(features)
    if padding_mask is not None:
        features = features.masked_fill(padding_mask[..., None], 0)

    encoder = model.encoder
    x = features + positions(encoder, features, padding_mask)
    if not encoder.layer_norm_first:
        x = encoder.layer_norm(x)
    x = F.dropout(x, p=encoder.dropout, training=encoder.training)

    encoding = Encoding(frames, features, [x])
    # T x B x D, fairseq's layout within the layers; as a mere view, the first projections take three times as long.
    x = x.transpose(0, 1).contiguous()
    # WavLM's layers share one position bias, formed here once a batch; all other layers need nothing more.
    shared = encoder.layer_arguments(x.size(0)) if hasattr(encoder, "layer_arguments") else {}
    for number, layer in enumerate(encoder.layers[:last_layer], start=1):
        if number in attention_layers:
            own_map = getattr(layer, "attention_map", None) or partial(attention_map, layer)
            encoding.attention_maps[number] = own_map(x, padding_mask, **shared)
        x, _ = layer(x, self_attn_padding_mask=padding_mask, need_weights=False, **shared)
        encoding.hidden_states.append(x.transpose(0, 1))
    return encoding


def compile_layers(model: SpeechEncoder) -> None:
    """``torch.compile`` every Transformer layer of ``model``, in place, its state dict unchanged.

    All layers share one piece of compiled code for each shape, or one for all shapes once two were seen.
    """
    for layer in model.encoder.layers:
        layer.compile()


def attention_map(layer: TransformerSentenceEncoderLayer, x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Attention weights of ``layer`` over its input ``x`` (T x B x D), mean over heads: B x T x T, rows sum to 1.

    Without attention dropout, which belongs to the layer's output, not to the relation between frames.
    """
    attention = layer.self_attn
    if layer.layer_norm_first:
        x = layer.self_attn_layer_norm(x)
    num_frames, batch, _ = x.shape

    def heads(projected: Tensor) -> Tensor:  # T x B x D -> B x heads x T x D/heads
        return projected.view(num_frames, batch, attention.num_heads, -1).permute(1, 2, 0, 3)

    query, key = heads(attention.q_proj(x)), heads(attention.k_proj(x))
    logits = (query * attention.scaling) @ key.transpose(2, 3)  # B x heads x T x T
    if padding_mask is not None:
        logits = logits.masked_fill(padding_mask[:, None, None, :], float("-inf"))
    return torch.softmax(logits, dim=-1, dtype=torch.float32).mean(dim=1)
