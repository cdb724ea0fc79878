"""How close a student is to its teacher, before and after training, on a manifest."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from fairseq import tasks, utils
from omegaconf import OmegaConf
from tqdm import tqdm

from fairseq_star.checkpoint import read_checkpoint
from fairseq_star.errors import StarError

TERMS = ("loss", "layerwise", "intra_layer")


@dataclass
class Evaluation:
    """Mean losses over the utterances of a manifest, of the student at its initialization and as trained."""

    checkpoint: str
    num_updates: int
    teacher_parameters: int
    student_parameters: int
    num_utterances: int
    before: dict[str, float]
    after: dict[str, float]

    def __str__(self) -> str:
        lines = [
            f"teacher     {self.teacher_parameters:>12,} parameters",
            f"student     {self.student_parameters:>12,} parameters "
            f"({self.student_parameters / self.teacher_parameters:.1%} of the teacher's)",
            f"checkpoint  {self.checkpoint} ({self.num_updates:,} updates)",
            "",
            f"mean over {self.num_utterances} utterances   before training    after",
        ]
        for term in TERMS:
            after, before = self.after[term], self.before[term]
            lines.append(f"{term:<26}{before:>18.4f}{after:>12.4f}   ({after / before:.1%})" if before else term)
        return "\n".join(lines)


def evaluate(
    checkpoint: str, *, data: str | None = None, split: str = "valid", teacher: str | None = None
) -> Evaluation:
    """Measure a student checkpoint of this project with the criterion it was trained with.

    The student before training is rebuilt from the run's own seed and config, the way fairseq built it.

    Args:
        checkpoint: written by a ``star_distillation`` run.
        data, teacher: where manifests and teacher are now, if not where they were in training.
        split: manifest to use.

    Raises:
        StarError: the checkpoint cannot be read or is not one of a distillation run.
    """
    state = read_checkpoint(checkpoint, "evaluate")
    cfg = OmegaConf.create(state.get("cfg") or {})
    if OmegaConf.select(cfg, "task._name") != "star_distillation" or OmegaConf.select(cfg, "criterion._name") is None:
        raise StarError(f"evaluate: {checkpoint} was not written by a star_distillation run")
    cfg.task.data = data or cfg.task.data
    cfg.task.teacher = teacher or cfg.task.teacher
    cfg.task.teacher_cache = None  # two passes over one manifest are not worth its disk space

    np.random.seed(cfg.common.seed)
    utils.set_torch_seed(cfg.common.seed)
    task = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model)
    criterion = task.build_criterion(cfg.criterion)
    task.load_dataset(split)

    before = _mean_losses(task, model, criterion, split, cfg, "before")
    model.load_state_dict(state["model"], strict=True)
    after = _mean_losses(task, model, criterion, split, cfg, "after")
    return Evaluation(
        checkpoint=os.path.relpath(checkpoint),
        num_updates=state["optimizer_history"][-1]["num_updates"],
        teacher_parameters=task.teacher.num_parameters,
        student_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_utterances=len(task.dataset(split)),
        before=before,
        after=after,
    )


def _mean_losses(task, model, criterion, split: str, cfg, description: str) -> dict[str, float]:
    batches = task.get_batch_iterator(
        task.dataset(split),
        max_tokens=cfg.dataset.max_tokens_valid,
        max_sentences=cfg.dataset.batch_size_valid,
        seed=cfg.common.seed,
    ).next_epoch_itr(shuffle=False, set_dataset_epoch=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    totals, utterances = dict.fromkeys(TERMS, 0.0), 0
    for batch in tqdm(batches, desc=f"{split}, {description} training", leave=False, disable=None):
        batch = utils.move_to_cuda(batch) if device.type == "cuda" else batch
        _, sample_size, logged = task.valid_step(batch, model, criterion)
        utterances += sample_size
        for term in TERMS:
            totals[term] += float(logged[term])
    return {term: total / utterances for term, total in totals.items()}
