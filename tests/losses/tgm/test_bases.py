"""The loss in reduced coordinates is the loss of the states they stand for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.errors import StarError
from fairseq_star.losses.tgm import Bases, tgm_loss
from fairseq_star.losses.tgm.cost import form_cost
from fairseq_star.losses.tgm.naive import loop_tgm_loss
from tests.support.tgm_cases import (
    CASES,
    computed,
    converted,
    gradients,
    make_bases,
    make_states,
    relative_error,
)


@pytest.mark.parametrize(("form", "distance", "path"), CASES)
@given(data=st.data())
@settings(max_examples=5, deadline=None, derandomize=True)
def test_reduced_equals_the_loss_of_the_states_that_are_meant(form, distance, path, data):
    frames, utterances, states = (data.draw(st.integers(*ends)) for ends in [(1, 300), (1, 3), (2, 4)])
    lengths = [data.draw(st.integers(1, frames), label="frame_length") for _ in range(utterances)]
    width, dim, student_dim = data.draw(st.sampled_from([(6, 2, 4), (5, 5, 3), (9, 1, 2), (8, 6, 7)]), label="widths")
    options = {
        "layerwise_weight": data.draw(st.sampled_from([0.0, 0.3]), label="layerwise_weight"),
        "intra_layer_weight": data.draw(st.sampled_from([0.5, 2.0]), label="intra_layer_weight"),
        "first_layerwise_state": data.draw(st.integers(0, states - 1), label="first_layerwise_state"),
        "distance": distance,
    }
    coordinates, student = make_states(
        frames, utterances=utterances, dims=(dim, student_dim), states=states, seed=frames
    )
    matrices, bases = make_bases(width, dim, states, seed=frames)
    teacher = [z @ basis.mT for z, basis in zip(coordinates, matrices, strict=True)]
    expected = loop_tgm_loss(teacher, student, lengths, **options)
    with computed(path):
        actual = tgm_loss(coordinates, student, lengths, form=form, bases=bases, **options).total
    weights = torch.linspace(-1.5, 2.0, utterances, dtype=torch.float64)
    assert ((actual - expected).abs() <= 1e-10 * expected.abs().clamp(min=1e-4)).all()
    wanted = gradients(expected, weights, student)
    # l1 has a kink where a difference is 0, which no draw hits.
    assert (gradients(actual, weights, student) - wanted).norm() <= 1e-10 * wanted.norm().clamp(min=1e-4)


@pytest.mark.parametrize(("form", "distance", "path"), CASES)
@pytest.mark.parametrize(("width", "dim"), [(48, 48), (48, 12)])
def test_in_float32_to_1e_5_and_at_full_width_the_exact_loss(form, distance, path, width, dim):
    """At d = D_t the coordinates say all: the loss is that of the teacher's own states."""
    states, student = make_states(333, dims=(width, 24), dtype=torch.float32, scale=0.3)
    matrices, bases = make_bases(width, dim, len(states), dtype=torch.float32)
    coordinates = [state @ basis for state, basis in zip(states, matrices, strict=True)]
    if dim < width:
        states = [z @ basis.mT for z, basis in zip(coordinates, matrices, strict=True)]
    wide, weights = converted(student, torch.float64), torch.tensor([1.0, -0.5])
    expected = loop_tgm_loss(converted(states, torch.float64), wide, [333, 150], distance=distance)
    with computed(path):
        actual = tgm_loss(coordinates, student, [333, 150], form=form, distance=distance, bases=bases).total
    assert relative_error(actual, expected) < 1e-5
    error = relative_error(gradients(actual, weights, student), gradients(expected, weights, wide))
    # l1's slope is a sign: entries within rounding of 0 have either.
    assert error < (2e-3 if distance == "l1" else 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("form", "distance"), [("gram", "mse"), ("tiled", "mse"), ("tiled", "l1"), ("tiled", "kl")])
@pytest.mark.parametrize("both", [True, False])
def test_half_coordinates_equal_float32_of_the_same_values(dtype, form, distance, both):
    coordinates, student = make_states(200, dims=(12, 16), dtype=dtype)
    _, bases = make_bases(24, 12, len(coordinates), dtype=torch.float32)
    wide, weights = converted(student, torch.float32), torch.tensor([1.0, 3.0])
    student = student if both else wide
    options = {"form": form, "distance": distance, "bases": bases}
    with computed("batched"):
        expected = tgm_loss(converted(coordinates, torch.float32), wide, [200, 77], **options).total
        actual = tgm_loss(coordinates, student, [200, 77], **options).total
    assert relative_error(actual, expected) < 1e-3
    wanted = gradients(expected, weights, wide).to(student[0].dtype)
    assert relative_error(gradients(actual, weights, student), wanted) < 1e-3


def test_the_overlaps_matter():
    """Without them, as if all layers shared one basis, the loss is another one."""
    coordinates, student = make_states(50, dims=(3, 4))
    _, bases = make_bases(6, 3, len(coordinates))
    lengths = [50, 50]
    assert relative_error(
        tgm_loss(coordinates, student, lengths).total, tgm_loss(coordinates, student, lengths, bases=bases).total
    ) > 1e-2  # fmt: skip


def test_bases_that_do_not_fit_are_refused():
    coordinates, student = make_states(5, dims=(3, 4))
    _, bases = make_bases(6, 3, len(coordinates))
    with pytest.raises(StarError, match="3 overlaps of neighbouring bases, not 2"):
        tgm_loss(coordinates, student, None, bases=Bases(6, bases.overlaps[1:]))
    with pytest.raises(StarError, match=r"overlap 1 has shape \(2, 2\)"):
        tgm_loss(coordinates, student, None, bases=Bases(6, [overlap[:2, :2] for overlap in bases.overlaps]))


def test_the_cost_model_counts_the_meeting_of_two_bases():
    for form in ("gram", "tiled"):
        costs = [form_cost(form, 500, 192, 432, 13, two_bases=two_bases).operations for two_bases in (False, True)]
        assert costs[0] < costs[1] < 2 * costs[0]
