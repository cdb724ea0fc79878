"""The positional convolution of a student, against the teacher's on channels filled in by numpy's least squares."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fairseq_star.slicing.positions import slice_positions
from fairseq_star.slicing.stream import Stream
from tests.support import slicing_cases as cases
from tests.support.slicing_cases import as_array, regressed

GROUPS, TAPS, RIDGE = 4, 6, 0.05
CHANNELS = torch.tensor([0, 2, 3, 7, 9, 12, 14, 15, 16, 18, 20, 23])  # three of each group's six


def sliced(pre_norm: bool, scale: torch.Tensor):
    """Teacher, student, features and what came of slicing; the features have the scales where there is no norm."""
    teacher = cases.base(conv_pos=TAPS, conv_pos_groups=GROUPS, layer_norm_first=pre_norm).model
    teacher.encoder.pos_conv[0].weight_g.data.mul_(3)
    student = cases.drawn(replace(teacher.config, embed_dim=12))
    stream = Stream(CHANNELS, scale, 24)
    entry = stream if pre_norm else stream.unscaled()
    generator = torch.Generator().manual_seed(2)
    mix = torch.randn(24, 24, generator=generator)
    features = []
    for frames in (30, 44, 25):
        a = torch.randn(frames, 24, generator=generator) @ mix / 4 + 0.5
        features.append((a, entry.to_student(a) + 0.1 * torch.randn(frames, 12, generator=generator)))
    with torch.no_grad():
        found, at_zero = slice_positions(teacher, student, features, entry, stream, RIDGE)
    assert at_zero is None
    return teacher, student, features, entry, stream, found


@pytest.mark.parametrize("pre_norm", [False, True])
def test_kept_channels_read_what_the_left_out_ones_are_predicted_from(pre_norm):
    scale = torch.linspace(0.5, 1.5, 12)
    teacher, student, features, entry, _, _ = sliced(pre_norm, scale)
    theirs, own = teacher.encoder.pos_conv[0], student.encoder.pos_conv[0]
    weight, bias = as_array(theirs.weight), as_array(theirs.bias)
    b = features[0][1]
    with torch.no_grad():
        given = as_array(own(b.T[None])[0].T)[: len(b)]  # before activation
    expected = np.zeros_like(given)
    for group in range(GROUPS):
        inputs, outputs = slice(3 * group, 3 * group + 3), slice(6 * group, 6 * group + 6)
        fill, shift = regressed(
            as_array([y[:, inputs] for _, y in features]), as_array([x[:, outputs] for x, _ in features]), RIDGE,
            entry.to_teacher()[outputs, inputs].numpy(),
        )  # fmt: skip
        filled = as_array(b)[:, inputs] @ fill.T + shift  # T x 6, all of the group's channels
        for place in range(3 * group, 3 * group + 3):
            channel = int(CHANNELS[place])
            for frame in range(len(b)):
                value = bias[channel]
                for tap in range(TAPS):
                    at = frame + tap - TAPS // 2
                    if 0 <= at < len(b):
                        value += weight[channel, :, tap] @ filled[at]
                    else:  # beyond the utterance all is zero: what is filled in there is the prediction's constant
                        value += weight[channel, :, tap] @ shift
                expected[frame, place] = value * float(entry.scale[place])
    assert np.allclose(given, expected, atol=1e-4 * np.abs(expected).max())
    assert torch.isfinite(own.weight).all()


@pytest.mark.parametrize("pre_norm", [False, True])
def test_what_goes_on_is_what_the_encoder_computes(pre_norm):
    """Teacher and student alike; of a post-norm encoder after the norm, which brings the scales in."""
    teacher, student, features, _, stream, found = sliced(pre_norm, torch.linspace(0.5, 1.5, 12))
    with torch.no_grad():
        for (a, b), (x, y) in zip(features, found, strict=True):
            for model, before, after in ((teacher, a, x), (student, b, y)):
                states = before + model.positions(before[None], None)[0]
                states = states if pre_norm else model.encoder.layer_norm(states)
                assert torch.allclose(states, after, atol=1e-5)
        if pre_norm:
            return
        sums = as_array([b + student.positions(b[None], None)[0] for _, b in features])
    target = as_array([stream.to_student(x) for x, _ in found])
    moved = sums - sums.mean(1, keepdims=True)
    normalized = moved / np.sqrt(np.square(moved).mean(1, keepdims=True) + 1e-5)
    for channel in range(12):
        scale, shift = np.polyfit(normalized[:, channel], target[:, channel], 1)
        assert student.encoder.layer_norm.weight[channel].item() == pytest.approx(scale, rel=1e-3, abs=1e-4)
        assert student.encoder.layer_norm.bias[channel].item() == pytest.approx(shift, rel=1e-3, abs=1e-4)


def test_a_teacher_whose_positions_say_nothing_gives_a_student_that_can_learn_them():
    """Such as a student whose own began at zero: a weight of zeros has no direction, and its norm no inverse."""
    teacher = cases.base(conv_pos=TAPS, conv_pos_groups=GROUPS).model
    convolution = teacher.encoder.pos_conv[0]
    convolution.weight_g.data[..., 1:] = 0
    student = cases.drawn(replace(teacher.config, embed_dim=12))
    stream = Stream(CHANNELS, torch.ones(12), 24)
    x = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        slice_positions(teacher, student, [(x, x[:, CHANNELS])], stream, stream, RIDGE)
    own = student.encoder.pos_conv[0]
    positions = student.positions(torch.randn(1, 30, 12), None)
    assert positions.isfinite().all()
    positions.square().sum().backward()
    assert own.weight_g.grad.isfinite().all()
    assert own.weight_v.grad.isfinite().all()
    assert own.weight[..., 1:].abs().max() < 1e-6
