"""The positional convolution: the kept channels of each group, reading what the left-out ones are predicted from.

Shapes: T frames, D channels of the teacher, d of the student, G groups, K taps.
"""

import torch
from torch import Tensor, nn

from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.slicing.front_end import Pairs
from fairseq_star.slicing.moments import Moments
from fairseq_star.slicing.norms import fit_norm
from fairseq_star.slicing.stream import Stream


def slice_positions(
    teacher: SpeechEncoder, student: SpeechEncoder, features: Pairs, entry: Stream, stream: Stream, ridge: float
) -> tuple[Pairs, str | None]:
    """Slice the positional convolution and, in a post-norm encoder, the norm after it.

    Args:
        features: projected features of teacher and student.
        entry: the stream as the features have it, before the norm.
        stream: as the layers have it.
        ridge: of the regression.

    Returns:
        The first layer's input, and what of this part begins at zero, for people; None where nothing does.
    """
    theirs, own = teacher.encoder.pos_conv, student.encoder.pos_conv
    missing = None
    if teacher.config.pos_conv_depth > 1:
        missing = "positional convolution (the teacher has a stack of them)"
    elif theirs[0].kernel_size != own[0].kernel_size:
        missing = f"positional convolution (the teacher's is {theirs[0].kernel_size[0]} frames wide)"
    if missing:
        own[0].weight_g.zero_()  # adds nothing; its direction stays as drawn, so it learns
        own[0].bias.zero_()
    else:
        _fit_positions(theirs[0], own[0], features, entry, ridge)
    sums = [(a + teacher.positions(a[None], None)[0], b + student.positions(b[None], None)[0]) for a, b in features]
    if teacher.encoder.layer_norm_first:
        return sums, missing
    states = [teacher.encoder.layer_norm(a) for a, _ in sums]
    fit_norm(student.encoder.layer_norm, [(stream.of(x), b) for x, (_, b) in zip(states, sums, strict=True)])
    return [(x, student.encoder.layer_norm(b)) for x, (_, b) in zip(states, sums, strict=True)], missing


def _fit_positions(theirs: nn.Conv1d, own: nn.Conv1d, features: Pairs, entry: Stream, ridge: float) -> None:
    groups = own.groups
    size, their_size = own.weight_v.size(1), theirs.weight_v.size(1)  # d / G, D / G
    weight, bias = theirs.weight.double(), theirs.bias.double()
    placing = entry.placing()
    fitted, biases = [], []
    for group in range(groups):
        inputs, outputs = slice(group * size, (group + 1) * size), slice(group * their_size, (group + 1) * their_size)
        moments = Moments(size, their_size)
        for a, b in features:
            moments.add(b[:, inputs], a[:, outputs])
        filled = moments.fit(ridge, placing[outputs, inputs])  # all channels of the group from the student's
        kept = entry.channels[inputs]
        # A scale behind the activation, as the stream would have it, is nearly one before it.
        scaled = weight[kept] * entry.scale[inputs].double()[:, None, None]  # d/G x D/G x K
        fitted.append(torch.einsum("oik,ij->ojk", scaled, filled.weight))
        biases.append(bias[kept] * entry.scale[inputs].double() + torch.einsum("oik,i->o", scaled, filled.bias))
    whole: Tensor = torch.cat(fitted)
    norms = whole.square().sum((0, 1), keepdim=True).sqrt()
    # Zeros have no direction, and weight norm would give nan: it stays as drawn, so that it learns.
    own.weight_v.copy_(torch.where(norms > 0, whole, own.weight_v))
    own.weight_g.copy_(norms)
    own.bias.copy_(torch.cat(biases))
