"""Every form of the TGM loss, value and gradient, against the loop-written reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.losses.tgm import tgm_loss
from fairseq_star.losses.tgm.naive import loop_tgm_loss, stacked_tgm_loss
from tests.support.tgm_cases import (
    CASES,
    assert_same,
    computed,
    converted,
    gradients,
    make_states,
    near_states,
    relative_error,
)


@pytest.mark.parametrize(("form", "distance", "path"), CASES)
@given(data=st.data())
@settings(max_examples=8, deadline=None, derandomize=True)
def test_every_form_equals_the_loop_reference(form, distance, path, data):
    frames = data.draw(st.integers(1, 400), label="frames")
    utterances = data.draw(st.integers(1, 3), label="utterances")
    lengths = [data.draw(st.integers(1, frames), label="frame_length") for _ in range(utterances)]
    num_states = data.draw(st.integers(2, 4), label="states")
    options = {
        "layerwise_weight": data.draw(st.sampled_from([0.3, 1.0]), label="layerwise_weight"),
        "intra_layer_weight": data.draw(st.sampled_from([0.0, 2.0]), label="intra_layer_weight"),
        "first_layerwise_state": data.draw(st.integers(0, num_states - 1), label="first_layerwise_state"),
    }
    dims = data.draw(st.sampled_from([(6, 4), (5, 5), (3, 7), (1, 1)]), label="widths")
    teacher, student = make_states(frames, utterances=utterances, dims=dims, states=num_states, seed=frames)
    with computed(path):
        assert_same(teacher, student, lengths, form, 1e-10, distance=distance, **options)


@pytest.mark.parametrize(("form", "distance", "path"), CASES)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_block_edges_and_single_terms(form, distance, path, weights):
    teacher, student = make_states(257, utterances=3, states=3)
    options = {"layerwise_weight": weights[0], "intra_layer_weight": weights[1], "distance": distance}
    with computed(path):
        assert_same(teacher, student, [257, 128, 129], form, 1e-10, **options)
        assert_same(teacher, student, None, form, 1e-10, first_layerwise_state=2, **options)


# l1 has a kink where a difference is 0; its slope is compared with the reference above.
@pytest.mark.parametrize(("form", "distance", "path"), [case for case in CASES if case[1] != "l1"])
def test_gradcheck(form, distance, path):
    teacher, student = make_states(5, dims=(3, 2), states=3)

    def function(*states):
        return tgm_loss(teacher, states, [5, 3], form=form, distance=distance).total

    with computed(path):
        assert torch.autograd.gradcheck(function, student)


@pytest.mark.parametrize("form", ["auto", "gram", "tiled", "loops"])
def test_equals_the_reimplementation_without_padding(form):
    teacher, student = make_states(300, dims=(24, 16), dtype=torch.float32)
    expected = stacked_tgm_loss(teacher, student)
    if form == "loops":
        actual = loop_tgm_loss(teacher, student, None, first_layerwise_state=0).mean()
    else:
        actual = tgm_loss(teacher, student, None, first_layerwise_state=0, form=form).total.mean()
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
    one = torch.ones(())
    assert relative_error(gradients(actual, one, student), gradients(expected, one, student)) < 1e-5


@pytest.mark.parametrize(("form", "distance", "path"), CASES)
def test_float32_equals_float64(form, distance, path):
    teacher, student = make_states(333, dims=(96, 54), dtype=torch.float32, scale=0.3)
    wide = converted(student, torch.float64)
    weights = torch.tensor([1.0, -0.5])
    options = {"distance": distance, "first_layerwise_state": 0}
    expected = loop_tgm_loss(converted(teacher, torch.float64), wide, [333, 150], **options)
    with computed(path):
        actual = tgm_loss(teacher, student, [333, 150], form=form, **options)
    assert actual.total.dtype == torch.float32
    assert relative_error(actual.total, expected) < 1e-5
    error = relative_error(gradients(actual.total, weights, student), gradients(expected, weights, wide))
    # l1's slope is a sign: entries within rounding of 0 have either.
    assert error < (2e-3 if distance == "l1" else 1e-5)


# What float32 leaves of value and gradient where only 1e-3 noise tells student and teacher apart, so that the loss is
# 1e-6 of the Gram matrices' norms. The gradient has lost the same 3 digits in all forms, the plain T x T form included:
# they are not in the float32 Gram matrices either. `gram` has lost 6 of the value's; `auto` sees that and uses `tiled`.
@pytest.mark.parametrize(
    ("form", "frames", "value_error", "gradient_error"),
    [("auto", 600, 1e-5, 5e-4), ("tiled", 600, 1e-5, 5e-4), ("loops", 200, 1e-5, 5e-4), ("gram", 600, 5e-2, 1e-3)],
)
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_student_equal_to_the_teacher_but_for_noise(form, frames, value_error, gradient_error, offset):
    teacher, student = near_states(frames, 1e-3, offset=offset)
    wide = converted(student, torch.float64)
    one = torch.ones(1)
    expected = loop_tgm_loss(converted(teacher, torch.float64), wide, None)
    loops = form == "loops"
    actual = loop_tgm_loss(teacher, student, None) if loops else tgm_loss(teacher, student, None, form=form).total
    assert relative_error(actual, expected) < value_error
    assert relative_error(gradients(actual, one, student), gradients(expected, one, wide)) < gradient_error


@pytest.mark.parametrize("form", ["gram", "tiled"])
def test_a_trained_students_distance_keeps_five_digits(form):
    """Noise of a tenth, states mostly their mean frame: loss 1e-5 of the Gram matrices' norms, no fallback involved."""
    teacher, student = near_states(500, 0.1, offset=3.0)
    wide = converted(student, torch.float64)
    one = torch.ones(1)
    expected = loop_tgm_loss(converted(teacher, torch.float64), wide, None)
    actual = tgm_loss(teacher, student, None, form=form).total
    assert relative_error(actual, expected) < 1e-5
    assert relative_error(gradients(actual, one, student), gradients(expected, one, wide)) < 1e-5


@pytest.mark.parametrize(("form", "path"), [("gram", "each"), ("gram", "batched"), ("tiled", "batched")])
def test_a_half_precision_teacher_of_a_float32_student(form, path):
    teacher, student = make_states(200, dims=(24, 16), dtype=torch.float32)
    narrow = converted(teacher, torch.bfloat16)
    with computed(path):
        expected = tgm_loss(converted(narrow, torch.float32), student, [200, 77], form=form).total
        actual = tgm_loss(narrow, student, [200, 77], form=form).total
    assert relative_error(actual, expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("form", "distance", "path"), CASES)
def test_half_inputs_equal_float32_of_the_same_values(dtype, form, distance, path):
    teacher, student = make_states(200, dims=(24, 16), dtype=dtype)
    weights = torch.tensor([1.0, 3.0])
    wide = converted(student, torch.float32)
    with computed(path):
        expected = tgm_loss(converted(teacher, torch.float32), wide, [200, 77], form=form, distance=distance)
        actual = tgm_loss(teacher, student, [200, 77], form=form, distance=distance)
    assert actual.total.dtype == torch.float32
    assert relative_error(actual.total, expected.total) < 1e-3
    narrow = gradients(actual.total, weights, student)
    assert narrow.dtype == dtype
    assert relative_error(narrow, gradients(expected.total, weights, wide).to(dtype)) < 1e-3
