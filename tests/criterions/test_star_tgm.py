"""The criterion: conventions, padding and batch independence, through task and model as the trainer calls them."""

import pytest
import torch
from fairseq import tasks
from fairseq.logging import metrics

from fairseq_star.criterions.star_tgm import StarTGMConfig, StarTGMCriterion
from fairseq_star.errors import StarError
from fairseq_star.losses.layer_plan import match_layers
from fairseq_star.tasks.star_distillation import StarDistillationTask
from tests.support import tiny
from tests.support.steps import batch_of, build, gradient, relative_difference


@pytest.mark.parametrize("convention", ["paper", "reimplementation"])
@pytest.mark.parametrize("distance", ["mse", "l1", "kl"])
def test_half_batches_and_further_padding_change_nothing(corpus, teacher_path, convention, distance):
    options = {"layer_convention": convention, "distance": distance}
    task, student, criterion = build(corpus, teacher_path, options)
    loss, whole = gradient(student, criterion, batch_of(task, [0, 3, 5, 7]))
    halves_loss, halves = gradient(student, criterion, batch_of(task, [0, 7]), batch_of(task, [3, 5]))
    padded_loss, padded = gradient(student, criterion, batch_of(task, [0, 3, 5, 7], extra=16_000))
    assert halves_loss == pytest.approx(loss, rel=1e-5)
    assert padded_loss == pytest.approx(loss, rel=1e-5)
    assert relative_difference(halves, whole) < 1e-5
    assert relative_difference(padded, whole) < 1e-5


def test_fairseqs_group_norm_does_depend_on_the_padding(corpus, teacher_path):
    """What the option gives up, so that the test above cannot pass by chance."""
    task, student, criterion = build(corpus, teacher_path, padded_group_norm=True)
    loss, _ = gradient(student, criterion, batch_of(task, [0, 3, 5, 7]))
    padded_loss, _ = gradient(student, criterion, batch_of(task, [0, 3, 5, 7], extra=16_000))
    assert padded_loss != pytest.approx(loss, rel=1e-3)


def test_the_reimplementations_formula(corpus, teacher_path):
    """The formula: with no padding, mse over stacked einsum Grams plus the same over neighbouring layers."""
    task, student, criterion = build(corpus, teacher_path, {"layer_convention": "reimplementation"})
    batch = batch_of(task, [4])
    batch["net_input"]["source"] = batch["net_input"]["source"].repeat(2, 1) * torch.tensor([[1.0], [0.7]])
    batch["num_samples"] = batch["num_samples"] * 2
    teacher, student_states = task.provider.encode(batch), student(**batch["net_input"])

    def stacked(encoding):  # B x L+1 x T x D
        return torch.stack([encoding.projected_features, *encoding.hidden_states[1:]], dim=1)

    x, y = stacked(teacher), stacked(student_states)
    layerwise = torch.nn.functional.mse_loss(
        torch.einsum("bltd,blfd->bltf", y, y), torch.einsum("bltd,blfd->bltf", x, x)
    )
    intra_layer = torch.nn.functional.mse_loss(
        torch.einsum("bltd,blfd->bltf", y[:, :-1], y[:, 1:]), torch.einsum("bltd,blfd->bltf", x[:, :-1], x[:, 1:])
    )
    loss, sample_size, logged = criterion(student, batch)
    assert (loss / sample_size).item() == pytest.approx((layerwise + intra_layer).item(), rel=1e-5)
    assert (logged["layerwise"] / sample_size).item() == pytest.approx(layerwise.item(), rel=1e-5)
    assert (logged["intra_layer"] / sample_size).item() == pytest.approx(intra_layer.item(), rel=1e-5)


def test_counting_batch_frames_is_the_reimplementations_mean(corpus, teacher_path):
    options = {"layer_convention": "reimplementation", "count_padding": True}
    task, student, criterion = build(corpus, teacher_path, options, padded_group_norm=True)
    batch = batch_of(task, [0, 7])
    teacher = task.provider.encode(batch)
    states = student(**batch["net_input"], frames=teacher.frames)

    def gram(encoding):
        x = torch.stack([encoding.projected_features, *encoding.hidden_states[1:]], dim=1)
        return torch.einsum("bltd,blfd->bltf", x, x)

    expected = torch.nn.functional.mse_loss(gram(states), gram(teacher)).item()
    _, sample_size, logged = criterion(student, batch)
    assert (logged["layerwise"] / sample_size).item() == pytest.approx(expected, rel=1e-5)


def test_weights(corpus, teacher_path):
    task, student, both = build(corpus, teacher_path)
    batch = batch_of(task, [0, 3])
    loss, _, logged = both(student, batch)
    assert loss.item() == pytest.approx((logged["layerwise"] + logged["intra_layer"]).item(), rel=1e-6)
    weighted = StarTGMCriterion(task, StarTGMConfig(layerwise_weight=0.5, intra_layer_weight=3.0))
    expected = (0.5 * logged["layerwise"] + 3 * logged["intra_layer"]).item()
    assert weighted(student, batch)[0].item() == pytest.approx(expected, rel=1e-5)
    for wrong in ({"layerwise_weight": -1.0}, {"layerwise_weight": 0.0, "intra_layer_weight": 0.0}):
        with pytest.raises(SystemExit, match="layerwise_weight"):
            StarTGMCriterion(task, StarTGMConfig(**wrong))


def test_logging_outputs_add_up(corpus, teacher_path):
    task, student, criterion = build(corpus, teacher_path)
    _, _, whole = criterion(student, batch_of(task, [0, 3, 5]))
    parts = [criterion(student, batch_of(task, part))[2] for part in ([0, 5], [3])]
    assert criterion.logging_outputs_can_be_summed()
    assert whole.keys() == {"loss", "layerwise", "intra_layer", "ntokens", "batch_frames", "nsentences", "sample_size"}
    for name, value in whole.items():
        if name == "batch_frames":  # padding and all, which is another batch's business
            continue
        assert float(sum(part[name] for part in parts)) == pytest.approx(float(value), rel=1e-5)


def test_a_deeper_teacher_is_matched_evenly_or_as_told(corpus, tmp_path):
    deep = tiny.write_teacher(tmp_path / "deep.pt", encoder_layers=6)
    _, _, criterion = build(corpus, deep)
    assert criterion.teacher_layers == [2, 4, 6]
    task, student, chosen = build(corpus, deep, {"teacher_layers": [1, 2, 5]})
    batch = batch_of(task, [0])
    assert len(task.provider.encode(batch, last_layer=5).hidden_states) == 6
    assert torch.isfinite(chosen(student, batch)[0])
    for teacher_layers, student_layers, told in [(4, 3, None), (6, 3, [1, 2]), (6, 3, [1, 2, 7]), (6, 3, [2, 1, 3])]:
        with pytest.raises(StarError, match="teacher_layers"):
            match_layers(teacher_layers, student_layers, told)
    with pytest.raises(StarError, match=r"student cannot be deeper: lower model\.encoder_layers"):
        match_layers(2, 3)


def test_random_crops_repeat_for_seed_epoch_and_utterance(corpus, teacher_path):
    task, _, _ = build(corpus, teacher_path, max_sample_size=6000)
    first = batch_of(task, [7])["net_input"]["source"]
    assert first.size(1) == 6000
    assert torch.equal(first, batch_of(task, [7, 0])["net_input"]["source"][:1])
    task.dataset("train").set_epoch(2)
    assert not torch.equal(first, batch_of(task, [7])["net_input"]["source"])


def test_the_teacher_is_seen_by_nobody(corpus, teacher_path):
    task, student, criterion = build(corpus, teacher_path)
    assert tasks.TASK_REGISTRY["star_distillation"] is StarDistillationTask
    assert list(criterion.parameters()) == []
    assert not any("teacher" in name for name, _ in [*student.named_modules(), *criterion.named_modules()])
    assert task.state_dict().keys() == {"sample_rate", "normalize", "teacher_digest"}


def test_the_log_tells_seconds_of_speech_in_a_second(corpus, teacher_path):
    task, student, criterion = build(corpus, teacher_path)
    logs = [criterion(student, batch_of(task, part))[2] for part in ([0, 5], [3])]
    with metrics.aggregate(new_root=True) as logged:
        for _ in ("begins to measure the time", "counts"):
            task.reduce_metrics(logs, criterion)
    frames = sum(task.teacher.geometry.num_frames(task.dataset("train").size(index)) for index in (0, 5, 3))
    assert logged["speech"].n == pytest.approx(frames * 320 / 16_000)
