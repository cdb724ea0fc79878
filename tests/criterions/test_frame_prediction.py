"""Frames alone (``frame_mse_weight=1``): the formula, and heads that no student checkpoint needs."""

import re

import pytest
import torch
from omegaconf import OmegaConf

from fairseq_star.analysis.evaluate import evaluate
from fairseq_star.checkpoint import read_checkpoint
from fairseq_star.criterions.star_tgm import StarTGMConfig, StarTGMCriterion
from fairseq_star.formats import load_teacher
from fairseq_star.models.starhubert import StarHubertConfig
from fairseq_star.tasks.star_distillation import StarDistillationConfig, StarDistillationTask
from tests.support import tiny

FRAMES_ALONE = {"layerwise_weight": 0.0, "intra_layer_weight": 0.0, "frame_mse_weight": 1.0}


@pytest.fixture(scope="module")
def parts(corpus, teacher_path):
    config = StarDistillationConfig(data=str(corpus), teacher=str(teacher_path), seed=1)
    task = StarDistillationTask.setup_task(OmegaConf.structured(config))
    torch.manual_seed(0)
    student = StarHubertConfig(**{**tiny.STUDENT, **tiny.NO_DROPOUT, "padded_group_norm": False})
    student._name = "starhubert"
    model = task.build_model(OmegaConf.structured(student)).train()
    task.load_dataset("train")
    return task, model, StarTGMCriterion(task, StarTGMConfig(**FRAMES_ALONE))


def batch_of(task, *indices: int, extra: int = 0) -> dict:
    dataset = task.dataset("train")
    batch = dataset.collater([dataset[index] for index in indices])
    batch["net_input"]["source"] = torch.nn.functional.pad(batch["net_input"]["source"], (0, extra))
    return batch


def test_it_is_the_mean_square_of_each_frame_through_a_head_a_layer(parts):
    task, model, criterion = parts
    loss, size, logged = criterion(model, batch_of(task, 0, 5))
    by_hand = 0.0
    for index in (0, 5):
        batch = batch_of(task, index)
        source, num_samples = batch["net_input"]["source"], batch["num_samples"]
        taught, learned = task.teacher(source, num_samples).hidden_states, model(source).hidden_states
        assert len(criterion.heads) == len(taught) - 1 == 3
        for layer, head in enumerate(criterion.heads, start=1):
            by_hand += ((taught[layer] - learned[layer] @ head.weight.T - head.bias) ** 2).mean().item() / 3
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert (size, logged["sample_size"]) == (2, 2)

    loss.backward()
    for module in (criterion, model.encoder, model.feature_extractor):
        assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters() if parameter.dim() > 1)
    padded, _, _ = criterion(model, batch_of(task, 0, 5, extra=8000))
    assert padded.item() == pytest.approx(loss.item(), rel=1e-5)


def test_the_heads_are_trained_and_saved_apart_from_the_student(train, tmp_path):
    options = [f"criterion.{name}={value}" for name, value in FRAMES_ALONE.items()]
    options += ["optimization.lr=[0.01]", "lr_scheduler.warmup_updates=1"]
    save_dir = tmp_path / "run"
    first = train(*options, "optimization.max_update=2", save_dir=save_dir)
    assert first.returncode == 0, first.stderr
    checkpoint = str(save_dir / "checkpoint_last.pt")
    before = read_checkpoint(checkpoint, "test")
    resumed = train(*options, "optimization.max_update=4", save_dir=save_dir)
    assert resumed.returncode == 0, resumed.stderr
    after = read_checkpoint(checkpoint, "test")
    assert after["optimizer_history"][-1]["num_updates"] == 4

    assert set(after["criterion"]) == {f"heads.{layer}.{kind}" for layer in range(3) for kind in ("weight", "bias")}
    assert not torch.equal(before["criterion"]["heads.0.weight"], after["criterion"]["heads.0.weight"])
    assert not any("heads" in name for name in after["model"])
    # Its trained heads belong to the loss that is told.
    result = evaluate(checkpoint)
    logged = float(re.findall(r"valid on 'valid' subset \| loss ([\d.]+)", resumed.stdout)[-1])
    assert result.after == dict.fromkeys(("loss", "frames"), pytest.approx(logged, rel=1e-3))
    student = load_teacher(checkpoint)
    assert student.num_parameters == sum(value.numel() for value in after["model"].values())
