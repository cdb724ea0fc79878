"""The attention map losses against a loop, and that maps are formed only where a weight asks for them."""

import math

import pytest
import torch

from fairseq_star.encoder.attention import SelfAttention
from fairseq_star.losses.tgm.attention import attention_loss
from tests.support.steps import batch_of, build, gradient, relative_difference


def maps(lengths: list[int], layers: int, seed: int) -> list[torch.Tensor]:
    """Random attention maps as the encoder gives them: float64, zero at padded keys."""
    generator = torch.Generator().manual_seed(seed)
    total = max(lengths)
    padded = torch.arange(total) >= torch.tensor(lengths)[:, None]
    logits = torch.randn(layers, len(lengths), total, total, generator=generator, dtype=torch.float64) * 3
    return list(logits.masked_fill(padded[:, None], -math.inf).softmax(-1))


def by_loop(teacher_maps, student_maps, lengths) -> list[float]:
    """The formula written out: one query frame and one key frame at a time."""
    losses = []
    for utterance, frames in enumerate(lengths):
        loss = 0.0
        for teacher_map, student_map in zip(teacher_maps, student_maps, strict=True):
            for query in range(frames):
                for key in range(frames):
                    p, q = teacher_map[utterance, query, key].item(), student_map[utterance, query, key].item()
                    loss += p * math.log(p / q) / frames
        losses.append(loss)
    return losses


def test_equals_the_loop_and_its_gradient():
    lengths = [7, 1, 4]
    teacher_maps, student_maps = maps(lengths, 2, 0), maps(lengths, 2, 1)
    got = attention_loss(teacher_maps, student_maps, lengths)
    assert got.tolist() == pytest.approx(by_loop(teacher_maps, student_maps, lengths), rel=1e-10)
    leaves = [student_map.clamp_min(1e-3).requires_grad_() for student_map in student_maps]
    assert torch.autograd.gradcheck(lambda *given: attention_loss(teacher_maps, given, lengths), leaves)


def test_zero_where_equal_and_finite_where_the_student_underflows():
    [teacher_map] = maps([5], 1, 0)
    assert attention_loss([teacher_map], [teacher_map], [5]).item() == pytest.approx(0, abs=1e-12)
    student_map = teacher_map.float()
    student_map[0, 0, 0] = 0
    assert attention_loss([teacher_map], [student_map], [5]).isfinite().all()


@pytest.mark.parametrize("weights", [{"avg_attn_weight": 2.0}, {"last_attn_weight": 0.5}])
def test_the_criterion_adds_them_padding_exact(corpus, teacher_path, weights):
    task, student, criterion = build(corpus, teacher_path, {**weights, "layerwise_weight": 0.0})
    loss, whole = gradient(student, criterion, batch_of(task, [0, 3, 7]))
    padded_loss, padded = gradient(student, criterion, batch_of(task, [0, 3, 7], extra=9000))
    assert padded_loss == pytest.approx(loss, rel=1e-5)
    assert relative_difference(padded, whole) < 1e-5
    [(name, weight)] = weights.items()
    total, _, logged = criterion(student, batch_of(task, [0, 3]))
    expected = logged["intra_layer"] + weight * logged[name.removesuffix("_weight")]
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_attention_alone_can_be_distilled(corpus, teacher_path):
    weights = {"layerwise_weight": 0.0, "intra_layer_weight": 0.0, "avg_attn_weight": 1.0, "last_attn_weight": 1.0}
    task, student, criterion = build(corpus, teacher_path, weights)
    total, _, logged = criterion(student, batch_of(task, [0]))
    assert "layerwise" not in logged
    assert total.item() == pytest.approx((logged["avg_attn"] + logged["last_attn"]).item())
    assert logged["avg_attn"] > logged["last_attn"] > 0


@pytest.mark.parametrize(
    ("weights", "formed"), [({}, 0), ({"last_attn_weight": 1.0}, 2), ({"avg_attn_weight": 1.0}, 6)]
)
def test_maps_are_formed_only_for_the_layers_that_need_them(corpus, teacher_path, monkeypatch, weights, formed):
    calls = []
    original = SelfAttention.weights
    monkeypatch.setattr(SelfAttention, "weights", lambda *given: calls.append(1) or original(*given))
    task, student, criterion = build(corpus, teacher_path, weights)
    criterion(student, batch_of(task, [0]))
    assert len(calls) == formed
