"""All terms: exact for any padding, any division into batches; the criterion's heads through faults and restarts."""

import numpy as np
import pytest
import torch

from fairseq_star.data.bad_audio import stand_in
from fairseq_star.losses.relations import AttentionMaps
from fairseq_star.losses.selection import ALL, Selection
from fairseq_star.losses.tgm.naive import loop_tgm_loss
from tests.support.steps import batch_of, build, gradient, relative_difference

HIDING = {"mask_prob": 0.5, "mask_length": 3, "mask_channel_prob": 0.2, "mask_channel_length": 2}
NONE = {"layerwise_weight": 0.0, "intra_layer_weight": 0.0}
UNITS = {"units": ["head"], "unit_weight": 1.0, "unit_unmasked_weight": 0.3, "unit_dim": 8}
FRAMES = {"frame_mse_weight": 1.0, "frame_l1_weight": 0.2, "frame_cosine_weight": 0.1, "frame_masked_weight": 2.0}
TERMS = {
    "hidden relations": {"tgm_frames": "masked"},
    "clear relations": {"tgm_frames": "unmasked"},
    "hidden l1": {"tgm_frames": "masked", "distance": "l1"},
    "units": {**NONE, **UNITS},
    "frames": {**NONE, **FRAMES},
    "all": {**UNITS, **FRAMES, "avg_attn_weight": 0.5},
}


@pytest.mark.parametrize("name", TERMS)
def test_half_batches_and_further_padding_change_nothing(corpus, teacher_path, name):
    task, student, criterion = build(corpus, teacher_path, TERMS[name], **HIDING)

    def padded(indices, extra):
        batch = batch_of(task, indices, extra=extra)
        mask, frames = batch["net_input"]["mask_indices"], task.provider.encode(batch).frames
        missing = task.teacher.geometry.num_frames(batch["net_input"]["source"].size(1)) - mask.size(1)
        batch["net_input"]["mask_indices"] = torch.nn.functional.pad(mask, (0, missing))
        assert max(frames.frame_lengths) <= mask.size(1)
        return batch

    loss, whole = gradient(student, criterion, padded([0, 3, 5, 7], 0))
    halves_loss, halves = gradient(student, criterion, padded([0, 7], 0), padded([3, 5], 0))
    padded_loss, further = gradient(student, criterion, padded([0, 3, 5, 7], 16_000))
    assert halves_loss == pytest.approx(loss, rel=1e-5)
    assert padded_loss == pytest.approx(loss, rel=1e-5)
    assert relative_difference(halves, whole) < 1e-5
    assert relative_difference(further, whole) < 1e-5


@pytest.mark.parametrize("which", ["masked", "unmasked"])
def test_relations_of_chosen_frames_are_the_loss_of_those_frames_alone(corpus, teacher_path, which):
    task, student, criterion = build(corpus, teacher_path, {"tgm_frames": which}, **HIDING)
    batch = batch_of(task, [0, 3, 7])
    teacher = task.provider.encode(batch)
    states = student(**batch["net_input"], frames=teacher.frames).hidden_states
    expected = 0.0
    for row, hidden in enumerate(batch["masked_frames"]):
        chosen = np.flatnonzero(hidden if which == "masked" else ~hidden)
        of_one = ([state[row : row + 1, chosen] for state in both] for both in (teacher.hidden_states, states))
        expected += loop_tgm_loss(*of_one, None).item()
    loss, _, _ = criterion(student, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_a_worker_with_nothing_goes_forward_and_backward_and_logs_the_same(corpus, teacher_path, name):
    task, student, criterion = build(corpus, teacher_path, TERMS[name], **HIDING)
    _, _, logged = criterion(student, batch_of(task, [0]))
    nothing, _, others = criterion(student, stand_in(task.teacher.geometry, student, masked=True))
    nothing.backward()
    assert set(others) == set(logged)
    assert all(parameter.grad is not None for parameter in criterion.parameters())
    # A pre-norm encoder's last norm and the like take no part in the loss of a real batch either.
    without = {key for key, parameter in student.named_parameters() if parameter.grad is None}
    student.zero_grad(set_to_none=True)
    criterion(student, batch_of(task, [0]))[0].backward()
    assert without == {key for key, parameter in student.named_parameters() if parameter.grad is None}


def test_all_frames_are_the_frames_as_they_are():
    selection = Selection.of(ALL, [3, 1], None)
    states = torch.arange(12.0).view(2, 3, 2)
    assert torch.equal(selection.take(states), torch.cat([states[0], states[1, :1]]))
    assert selection.sum_of_means(torch.tensor([1.0, 2.0, 3.0, 5.0])).item() == 7.0


def test_relations_that_are_not_asked_for_ask_the_teacher_for_nothing(corpus, teacher_path):
    _, _, criterion = build(corpus, teacher_path, {**NONE, "units": ["head"], "unit_unmasked_weight": 1.0})
    assert criterion.teacher_states == [3]
    _, _, criterion = build(corpus, teacher_path, {**NONE, "last_attn_weight": 1.0})
    assert criterion.teacher_states == [3]
    assert [type(term) for term in criterion.terms] == [AttentionMaps]


def test_frames_of_hidden_relations_are_refused_beside_what_contradicts_them(corpus, teacher_path):
    with pytest.raises(SystemExit, match=r"criterion\.tgm_frames=masked says which frames"):
        build(corpus, teacher_path, {"tgm_frames": "masked", "count_padding": True}, **HIDING)


@pytest.mark.parametrize("accelerated", ["masked", "unmasked"])
def test_packed_frames_give_their_gradient_back_where_they_lay(accelerated):
    selection = Selection.of(accelerated, [4, 2], [np.array([True, False, True, True]), np.array([False, True])])
    states = torch.randn(2, 4, 3, requires_grad=True)
    [packed] = selection.packed([states])
    weights = torch.arange(packed.size(1))[None] < torch.tensor([n for n in selection.counts if n])[:, None]
    (packed * weights[..., None]).sum().backward()
    expected = torch.zeros(2, 4)
    for row, numbers in enumerate(selection.frames):
        expected[row, torch.from_numpy(numbers)] = 1
    assert torch.equal(states.grad, expected[..., None].expand(2, 4, 3))
