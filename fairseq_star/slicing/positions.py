"""Positional convolution: the chosen channels of each group, fed with what predicts the left-out ones.

Shapes: T frames, D channels of the teacher, d of the student, G groups, K taps.
"""

import torch
from torch import Tensor, nn

from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.slicing.front_end import Pairs
from fairseq_star.slicing.moments import Moments, fit_norm
from fairseq_star.slicing.stream import Stream


def slice_positions(
    teacher: SpeechEncoder, student: SpeechEncoder, features: Pairs, entry: Stream, stream: Stream, ridge: float
) -> tuple[Pairs, str | None]:
    """Slice the positional convolution and, in a post-norm encoder, the norm after it.

    Args:
        features: projected features of teacher and student.
        entry: channels of the features, before the norm.
        stream: channels of the layers.
        ridge: share of the inputs' mean variance.

    Returns:
        Input of the first layer; the part that starts at zero, in words, or None where nothing does.
    """
    teacher_convolution, convolution = teacher.encoder.pos_conv[0], student.encoder.pos_conv[0]
    missing = None
    if teacher.config.pos_conv_depth > 1:
        missing = "positional convolution (the teacher has a stack of them)"
    elif teacher_convolution.kernel_size != convolution.kernel_size:
        missing = f"positional convolution (the teacher's is {teacher_convolution.kernel_size[0]} frames wide)"
    if missing:
        convolution.weight_g.zero_()  # adds nothing; its direction stays as initialized, so it learns
        convolution.bias.zero_()
    else:
        _fit_positions(teacher_convolution, convolution, features, entry, ridge)
    sums = [(a + teacher.positions(a[None], None)[0], b + student.positions(b[None], None)[0]) for a, b in features]
    if teacher.encoder.layer_norm_first:
        return sums, missing
    norm = student.encoder.layer_norm
    states = [(teacher.encoder.layer_norm(a), b) for a, b in sums]
    fit_norm(norm, [(stream.to_student(x), b) for x, b in states])
    return [(x, norm(b)) for x, b in states], missing


def _fit_positions(
    teacher_convolution: nn.Conv1d, convolution: nn.Conv1d, features: Pairs, entry: Stream, ridge: float
) -> None:
    size, teacher_size = convolution.weight_v.size(1), teacher_convolution.weight_v.size(1)  # d / G, D / G
    weight, bias = teacher_convolution.weight.double(), teacher_convolution.bias.double()
    to_teacher = entry.to_teacher()
    weights, biases = [], []
    for group in range(convolution.groups):
        own, whole = (slice(group * one, (group + 1) * one) for one in (size, teacher_size))
        moments = Moments.of([b[:, own] for _, b in features], [a[:, whole] for a, _ in features])
        predicted = moments.fit(ridge, to_teacher[whole, own])  # all channels of the group, from the student's
        channels, scale = entry.channels[own], entry.scale[own].double()
        # The stream's scale applies after the activation; before it, the effect is nearly the same.
        scaled = weight[channels] * scale[:, None, None]  # d/G x D/G x K
        weights.append(torch.einsum("oik,ij->ojk", scaled, predicted.weight))
        biases.append(bias[channels] * scale + torch.einsum("oik,i->o", scaled, predicted.bias))
    fitted: Tensor = torch.cat(weights)
    norms = fitted.square().sum((0, 1), keepdim=True).sqrt()
    # Zeros have no direction, and weight norm would give nan: the direction stays as initialized, so that it learns.
    convolution.weight_v.copy_(torch.where(norms > 0, fitted, convolution.weight_v))
    convolution.weight_g.copy_(norms)
    convolution.bias.copy_(torch.cat(biases))
