"""How far compression moves what STaR learns from: Gram matrices, and the gradient that they give."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fairseq_star.encoder.frames import Frames
from fairseq_star.losses.tgm import Bases, tgm_loss
from fairseq_star.teacher.cache.codec import Codec

MOST_FRAMES = 1000  # of an utterance: its Gram matrices are formed


def measure(codec: Codec, held_out: Iterable[Sequence[Tensor]]) -> dict:
    """Relative errors |compressed - exact| / |exact| in the Frobenius norm, means over utterances.

    ``layerwise`` is of X_l X_l^T and ``intra_layer`` of X_{l-1} X_l^T, a number for each state and each pair of
    neighbours among those stored. ``gradient`` is of the TGM loss's gradient, of all states together, for a stand-in
    student: the teacher's own states, projected at random on half their dimensions. As its Gram matrices are near the
    teacher's already, its gradient is a small difference, and feels an error more than a beginner's would.

    Args:
        codec: what is measured.
        held_out: for each utterance its S states, n x D each; none of the codec's sample.
    """
    found: dict[str, list[list[float]]] = {"layerwise": [], "intra_layer": [], "gradient": []}
    for utterance in held_out:
        exact = [state[None, :MOST_FRAMES].float() for state in utterance]
        if not torch.isfinite(torch.stack(exact).sum()):
            continue
        kept, bases = compressed(codec.to(exact[0].device), exact)
        pairs = [(index, index) for index in range(len(exact))] + list(pairwise(range(len(exact))))
        errors = []
        for left, right in pairs:
            gram = exact[left] @ exact[right].mT
            rows = kept[left] if bases is None or left == right else kept[left] @ bases.overlap(right)
            errors.append(float((rows @ kept[right].mT - gram).norm() / gram.norm().clamp_min(1e-12)))
        found["layerwise"].append(errors[: len(exact)])
        if len(exact) > 1:
            found["intra_layer"].append(errors[len(exact) :])
            found["gradient"].append([gradient_error(exact, kept, bases, stand_in(exact))])
    return {
        name: [round(value, 6) for value in torch.tensor(errors).mean(0).tolist()] if errors else []
        for name, errors in found.items()
    } | {"utterances": len(found["layerwise"])}


def compressed(codec: Codec, states: Sequence[Tensor]) -> tuple[list[Tensor], Bases | None]:
    """What a loss gets of ``states`` (S of 1 x n x D) once they were kept: S of 1 x n x d, and the bases if any."""
    rows = torch.stack([codec.encode(place, state) for place, state in enumerate(states)])  # S x 1 x n x row
    given = codec.give(rows, Frames([], [states[0].shape[1]], None), codec.numbers, torch.float32)
    if codec.bases is None:
        return list(codec.decode(rows)), None
    return given.hidden_states.coordinates(codec.numbers)


def stand_in(exact: Sequence[Tensor]) -> list[Tensor]:
    """States (1 x n x D/2 each) of a student near its teacher: the teacher's own, projected at random."""
    width = exact[0].shape[-1]
    half = max(width // 2, 1)
    projection = torch.randn(width, half, generator=torch.Generator().manual_seed(0)) / half**0.5
    return [state @ projection.to(state.device) for state in exact]


def gradient_error(
    exact: Sequence[Tensor], kept: Sequence[Tensor], bases: Bases | None, student: Sequence[Tensor]
) -> float:
    """Relative error of the TGM loss's gradient, of all states together.

    Args:
        exact: the teacher's M states, 1 x n x D each.
        kept, bases: the same as :func:`compressed` gives them.
        student: M states, 1 x n x D_s each.
    """
    student = [state.detach().requires_grad_() for state in student]
    with torch.enable_grad():  # a validation may be what fills the cache
        losses = [tgm_loss(exact, student, None), tgm_loss(kept, student, None, bases=bases)]
        wanted, found = (
            torch.cat([part.flatten() for part in torch.autograd.grad(loss.total.sum(), student)]) for loss in losses
        )
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))
