"""How near a student is to its teacher on a few utterances, processed alone.

Shapes: T frames, D and d widths of teacher and student, L layers of the student.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fairseq_star.encoder.frames import Frames
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.losses.tgm import tgm_loss
from fairseq_star.slicing.moments import Moments


def state_pairs(
    teacher: SpeechEncoder, student: SpeechEncoder, sources: Sequence[Tensor], layers: Sequence[int]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yield, for each utterance, the teacher's L+1 states (T x D) that the student's L+1 (T x d) are compared with."""
    for source in sources:
        frames = Frames.of(teacher.geometry, [len(source)], source[None])
        theirs = teacher.encode(source[None], frames, last_layer=layers[-1]).hidden_states
        own = student.encode(source[None], frames).hidden_states
        yield [theirs[number][0] for number in (0, *layers)], [state[0] for state in own]


@torch.no_grad()
def star_losses(
    teacher: SpeechEncoder, student: SpeechEncoder, sources: Sequence[Tensor], layers: Sequence[int]
) -> tuple[float, float]:
    """Return STaR's loss (layer-wise and intra-layer, weight 1 each), mean over utterances, of the student and of one
    whose states are all zero.

    Args:
        layers: the teacher layer (1-based) of each student layer.
    """
    losses = []
    for theirs, own in state_pairs(teacher, student, sources, layers):
        theirs, own = ([state[None] for state in states] for states in (theirs, own))
        zeros = [torch.zeros_like(state) for state in own]
        losses.append([float(tgm_loss(theirs, states, None).total) for states in (own, zeros)])
    return tuple(torch.tensor(losses).mean(0).tolist())


@torch.no_grad()
def variance_kept(
    teacher: SpeechEncoder, student: SpeechEncoder, sources: Sequence[Tensor], layers: Sequence[int]
) -> float:
    """Return the share of the variance of all of the teacher's channels that a linear map of the student's states gives
    back, mean over the L+1 states; fitted to one half of the utterances, measured on the other."""
    pairs = list(state_pairs(teacher, student, sources, layers))
    if len(pairs) < 2:
        return float("nan")
    shares = []
    for number in range(len(layers) + 1):
        moments = Moments(pairs[0][1][number].size(1), pairs[0][0][number].size(1))
        for theirs, own in pairs[::2]:
            moments.add(own[number], theirs[number])
        fitted = moments.fit(1e-3)
        wanted = torch.cat([theirs[number] for theirs, _ in pairs[1::2]]).double()
        given = torch.cat([own[number] for _, own in pairs[1::2]]).double()
        left = (wanted - given @ fitted.weight.T - fitted.bias).square().sum()
        shares.append(1 - float(left / (wanted - wanted.mean(0)).square().sum().clamp(min=1e-30)))
    return sum(shares) / len(shares)
