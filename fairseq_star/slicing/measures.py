"""Distance between student and teacher on a few utterances, processed one at a time.

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
    """Yield, for each utterance, the matched L+1 states of teacher (T x D) and student (T x d).

    ``layers`` are the teacher layer (1-based) of each student layer, here and below.
    """
    for source in sources:
        frames = Frames.of(teacher.geometry, [len(source)], source[None])
        teacher_states = teacher.encode(source[None], frames, last_layer=layers[-1]).hidden_states
        student_states = student.encode(source[None], frames).hidden_states
        yield [teacher_states[number][0] for number in (0, *layers)], [state[0] for state in student_states]


@torch.no_grad()
def star_losses(
    teacher: SpeechEncoder, student: SpeechEncoder, sources: Sequence[Tensor], layers: Sequence[int]
) -> tuple[float, float]:
    """Return STaR's loss (layer-wise and intra-layer, weight 1 each), mean over utterances, of the student and of one
    whose states are all zero."""
    losses = []
    for pair in state_pairs(teacher, student, sources, layers):
        targets, states = ([state[None] for state in states] for states in pair)
        zeros = [torch.zeros_like(state) for state in states]
        losses.append([float(tgm_loss(targets, one, None).total) for one in (states, zeros)])
    return tuple(torch.tensor(losses).mean(0).tolist())


@torch.no_grad()
def variance_kept(
    teacher: SpeechEncoder, student: SpeechEncoder, sources: Sequence[Tensor], layers: Sequence[int]
) -> float:
    """Return the share of the variance of the teacher's states, all channels, that a linear map of the student's states
    explains, mean over the L+1 states; the map is fitted on every other utterance and measured on the rest."""
    pairs = list(state_pairs(teacher, student, sources, layers))
    if len(pairs) < 2:
        return float("nan")
    shares = []
    for number in range(len(layers) + 1):
        targets, states = ([pair[side][number] for pair in pairs] for side in (0, 1))
        fitted = Moments.of(states[::2], targets[::2]).fit(1e-3)
        target, given = torch.cat(targets[1::2]).double(), torch.cat(states[1::2]).double()
        left = (target - given @ fitted.weight.T - fitted.bias).square().sum()
        shares.append(1 - float(left / (target - target.mean(0)).square().sum().clamp(min=1e-30)))
    return sum(shares) / len(shares)
