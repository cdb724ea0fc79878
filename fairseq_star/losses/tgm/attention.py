"""Attention map losses, the other way of distilling temporal relation: avg-attn, and last-attn of the paper's ablation.

Source: Jang, Kim, Kim, "STaR", ICASSP 2024, arXiv 2312.09040; after LightHuBERT and MiniLM. No fairseq in it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def attention_loss(
    teacher_maps: Sequence[Tensor], student_maps: Sequence[Tensor], frame_lengths: Sequence[int]
) -> Tensor:
    """``sum over l of 1/n_b sum over t < n_b of KL(A_l^T[b, t] || A_l^S[b, t])`` for each utterance b.

    Args:
        teacher_maps, student_maps: one B x T x T for each layer, attention weights averaged over heads; rows are query
            frames and sum to 1 over the valid key frames (padded keys hold exactly 0).
        frame_lengths: n_b, valid frames of each utterance; rows of padded queries do not count.

    Returns:
        [B], float32 (float64 for float64 maps), differentiable in ``student_maps``.
    """
    losses = []
    for teacher_map, student_map in zip(teacher_maps, student_maps, strict=True):
        dtype = torch.promote_types(student_map.dtype, torch.float32)
        for utterance, num_frames in enumerate(frame_lengths):
            target = teacher_map[utterance, :num_frames, :num_frames].to(dtype)  # n_b x n_b
            given = student_map[utterance, :num_frames, :num_frames].to(dtype)
            # A weight that underflowed to 0 must cost much, not infinitely much.
            log_given = given.clamp_min(torch.finfo(dtype).tiny).log()
            divergence = torch.xlogy(target, target) - target * log_given
            losses.append(divergence.sum() / num_frames)
    return torch.stack(losses).view(len(teacher_maps), len(frame_lengths)).sum(dim=0)
