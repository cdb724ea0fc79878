"""Data set, task, student and criterion without a trainer: one step's loss and gradient."""

import torch
from omegaconf import OmegaConf

from fairseq_star.criterions.star_tgm import StarTGMConfig, StarTGMCriterion
from fairseq_star.data.dataset import DistillationDataset
from fairseq_star.models.starhubert import StarHubertConfig
from fairseq_star.tasks.star_distillation import StarDistillationConfig, StarDistillationTask
from tests.support import tiny


def dataset_of(manifest, **options) -> DistillationDataset:
    defaults = {"normalize": False, "max_sample_size": None, "min_sample_size": 400, "random_crop": True, "seed": 1}
    return DistillationDataset(str(manifest), sample_rate=16_000, **{**defaults, "pad_to_multiple": 1, **options})


def build(corpus, teacher_path, criterion: dict | None = None, model: dict | None = None, **task_options):
    """Task, student without dropout, and criterion."""
    config = StarDistillationConfig(
        data=str(corpus), teacher=str(teacher_path), seed=1, train_subset="train", **task_options
    )
    task = StarDistillationTask.setup_task(OmegaConf.structured(config))
    torch.manual_seed(0)
    group_norm = task_options.get("padded_group_norm", False)
    student = StarHubertConfig(**{**tiny.STUDENT, **tiny.NO_DROPOUT, "padded_group_norm": group_norm, **(model or {})})
    student._name = "starhubert"
    student = task.build_model(OmegaConf.structured(student)).train()
    return task, student, StarTGMCriterion(task, StarTGMConfig(**(criterion or {})))


def batch_of(task, indices, split: str = "train", extra: int = 0) -> dict:
    """Utterances ``indices`` of a split, the batch padded by ``extra`` further samples."""
    if split not in task.datasets:
        task.load_dataset(split)
    dataset = task.dataset(split)
    batch = dataset.collater([dataset[index] for index in indices])
    batch["net_input"]["source"] = torch.nn.functional.pad(batch["net_input"]["source"], (0, extra))
    return batch


def gradient(student, criterion, *batches) -> tuple[float, torch.Tensor]:
    """Loss and gradient as the trainer forms them: sums over batches, divided by the summed sample size."""
    student.zero_grad()
    total, size = 0.0, 0
    for batch in batches:
        loss, sample_size, _ = criterion(student, batch)
        loss.backward()
        total, size = total + loss.item(), size + sample_size
    flat = torch.cat([parameter.grad.flatten() for parameter in student.parameters()])
    return total / size, flat / size


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()
