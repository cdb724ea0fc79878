"""The training step as the re-implementation computes it: the honest naive side of ``step.py``.

Teacher and student run all their layers, the student's attention returns its weights (which nothing uses), and the loss
stacks all Gram matrices by einsum. Same weights and same modules as the fast side.
"""

import torch
from torch import Tensor

from fairseq_star.encoder.modules import Encoding, SpeechEncoder
from fairseq_star.losses.tgm.naive import stacked_tgm_loss


def naive_encode(model: SpeechEncoder, source: Tensor, need_weights: bool) -> list[Tensor]:
    """``projected_features`` and every layer's output, each B x T x D, of unpadded ``source`` (B x samples)."""
    features = model.layer_norm(model.feature_extractor(source).transpose(1, 2))
    if model.post_extract_proj is not None:
        features = model.post_extract_proj(features)
    features = model.dropout_input(features)
    encoder = model.encoder
    x = encoder.layer_norm(features + encoder.pos_conv(features.transpose(1, 2)).transpose(1, 2))
    x = torch.nn.functional.dropout(x, encoder.dropout, encoder.training).transpose(0, 1)  # T x B x D
    states = [features]
    for layer in encoder.layers:
        x = naive_layer(layer, x, need_weights)
        states.append(x.transpose(0, 1))
    return states


def naive_layer(layer, x: Tensor, need_weights: bool) -> Tensor:
    """A post-norm layer whose attention, where ``need_weights``, forms its weights, as fairseq's does."""
    attended = naive_attention(layer.self_attn, x) if need_weights else layer.self_attn(x)
    x = layer.self_attn_layer_norm(x + layer.dropout1(attended))
    inner = layer.dropout2(layer.activation_fn(layer.fc1(x)))
    return layer.final_layer_norm(x + layer.dropout3(layer.fc2(inner)))


def naive_attention(attention, x: Tensor) -> Tensor:
    """Self-attention of ``x`` (T x B x D) by its weights, which are averaged over heads too."""
    query, key, value = attention.project(x)
    weights = torch.softmax(query * attention.head_dim**-0.5 @ key.transpose(2, 3), dim=-1)
    weights.mean(dim=1)
    dropped = torch.nn.functional.dropout(weights, attention.dropout, attention.training)
    return attention.out_proj((dropped @ value).permute(2, 0, 1, 3).flatten(2))


def naive_loss(teacher: SpeechEncoder, student: SpeechEncoder, source: Tensor) -> Tensor:
    """Loss of a batch, mean over utterances, in the re-implementation's convention."""
    with torch.no_grad():
        teacher_states = naive_encode(teacher, source, need_weights=False)
    return stacked_tgm_loss(teacher_states, naive_encode(student, source, need_weights=True))


def states_of(encoding: Encoding) -> list[Tensor]:
    """The same chain of states from the fast side, for comparison."""
    return [encoding.projected_features, *encoding.hidden_states[1:]]
