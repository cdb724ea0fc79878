"""What is hidden from the student: fairseq's own spans, of each utterance by itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fairseq.data.data_utils import compute_mask_indices
from hypothesis import given
from hypothesis import strategies as st

from fairseq_star.data.augment.masking import MIN_SPANS, Masking
from fairseq_star.data.augment.options import AugmentConfig
from tests.support import tiny
from tests.support.steps import batch_of, build, dataset_of

HIDING = {"mask_prob": 0.5, "mask_length": 3}


@pytest.mark.parametrize("selection", ["static", "normal", "poisson"])
def test_a_mask_is_fairseqs_for_the_same_seed(selection):
    masking = Masking.of(AugmentConfig(mask_prob=0.65, mask_selection=selection, mask_other=2.0), 16, seed=7)
    lengths, numbers = [200, 90, 64], [3, 11, 5]
    padding = torch.arange(200) >= torch.tensor(lengths)[:, None]
    expected = compute_mask_indices(
        (3, 200), padding, 0.65, 10, selection, 2.0, min_masks=MIN_SPANS, require_same_masks=False,
        seed=7, epoch=2, indices=torch.tensor(numbers),
    )  # fmt: skip
    for row, length, number in zip(expected, lengths, numbers, strict=True):
        assert np.array_equal(masking.draw_frames(length, 2, number), row[:length])
        assert not row[length:].any()
    assert masking.draw_channels(2, 3) is None


@given(st.integers(4, 300), st.floats(0.01, 0.99), st.integers(1, 40), st.integers(0, 10**6))
def test_something_is_always_hidden_and_something_clear(frames, prob, length, index):
    masking = Masking.of(AugmentConfig(mask_prob=prob, mask_length=min(length, frames - 1)), 16, seed=1)
    mask = masking.draw_frames(frames, 1, index)
    assert 0 < mask.sum() < frames
    assert np.array_equal(mask, masking.draw_frames(frames, 1, index))


def test_draws_follow_seed_epoch_and_utterance():
    masking = Masking.of(AugmentConfig(mask_prob=0.5, mask_channel_prob=0.3), 200, seed=1)
    drawn = [masking.draw_frames(100, 1, 0), masking.draw_frames(100, 2, 0), masking.draw_frames(100, 1, 1)]
    drawn.append(replace(masking, seed=2).draw_frames(100, 1, 0))
    assert len({mask.tobytes() for mask in drawn}) == 4
    assert 0 < masking.draw_channels(1, 0).sum() < 200


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mask_prob": 1.5}, "task.mask_prob=1.5 must be from 0 to below 1"),
        ({"mask_prob": 0.5, "mask_length": 40}, "task.mask_length=40 is too long: the shortest utterance, .* frames"),
        ({"mask_prob": 0.5, "mask_length": 0}, "task.mask_length must be 1 or more"),
        ({**HIDING, "mask_other": -1.0}, "task.mask_other 0 or more"),
        ({"mask_channel_prob": 0.5, "mask_channel_length": 16}, "task.mask_channel_length=16 .* 16 channels"),
    ],
)
def test_masks_that_cannot_be_end_in_one_line(corpus, teacher_path, options, told):
    task, _, _ = build(corpus, teacher_path, **options)
    with pytest.raises(SystemExit, match=told):
        task.load_dataset("train")


def test_a_masked_batch_is_the_same_however_it_is_cut(corpus, teacher_path):
    task, _, _ = build(corpus, teacher_path, **HIDING)
    whole = batch_of(task, [0, 3, 5])
    for row, index in enumerate([0, 3, 5]):
        part = batch_of(task, [index])
        n = len(part["masked_frames"][0])
        assert np.array_equal(part["masked_frames"][0], whole["masked_frames"][row])
        assert torch.equal(part["net_input"]["mask_indices"][0, :n], whole["net_input"]["mask_indices"][row, :n])
        assert not whole["net_input"]["mask_indices"][row, n:].any()


def test_hidden_frames_are_the_mask_embedding_and_nothing_else_is_touched(corpus, teacher_path):
    task, student, _ = build(corpus, teacher_path, mask_channel_prob=0.2, mask_channel_length=2, **HIDING)
    batch = batch_of(task, [0, 3])
    inputs = batch["net_input"]
    clear = student(inputs["source"], frames=task.provider.encode(batch).frames).projected_features
    masked = student(**inputs, frames=task.provider.encode(batch).frames).projected_features
    channels = inputs["mask_channels"][:, None].expand_as(masked)
    assert channels.any()
    assert (masked[channels] == 0).all()
    hidden = inputs["mask_indices"][..., None].expand_as(masked) & ~channels
    assert torch.equal(masked[hidden], student.mask_emb.expand_as(masked)[hidden])
    assert torch.equal(masked[~hidden & ~channels], clear[~hidden & ~channels])


def test_a_run_that_hides_nothing_has_no_mask(corpus, teacher_path):
    task, student, _ = build(corpus, teacher_path)
    assert "mask_emb" not in student.state_dict()
    assert set(batch_of(task, [0])["net_input"]) == {"source"}
    torch.manual_seed(0)
    _, masked, _ = build(corpus, teacher_path, **HIDING)
    weights = masked.state_dict()
    assert tuple(weights.pop("mask_emb").shape) == (tiny.STUDENT["encoder_embed_dim"],)
    assert all(torch.equal(value, weights[key]) for key, value in student.state_dict().items())


def test_a_dataset_without_a_view_is_todays(corpus):
    assert dataset_of(corpus / "train.tsv").augment is None
