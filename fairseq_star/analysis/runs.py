"""A distillation run, rebuilt from one of its checkpoints: its task with the teacher, its student before training."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fairseq import tasks, utils
from fairseq.criterions import FairseqCriterion
from fairseq.models import BaseFairseqModel
from omegaconf import DictConfig, OmegaConf

from fairseq_star.checkpoint import num_updates, read_checkpoint
from fairseq_star.errors import StarError
from fairseq_star.formats import hub
from fairseq_star.tasks.registration import register_all
from fairseq_star.tasks.star_distillation import StarDistillationTask
from fairseq_star.teacher.cache.settings import leave_cache_out


@dataclass
class Run:
    """Result of :func:`load_run`."""

    checkpoint: str
    cfg: DictConfig  # the run's whole configuration
    task: StarDistillationTask  # its teacher loaded
    model: BaseFairseqModel  # the student before training, until `load_trained`
    criterion: FairseqCriterion
    num_updates: int
    trained: dict  # the student's state dict in the checkpoint
    trained_criterion: dict  # the criterion's, empty where it has no weights

    def load_trained(self) -> None:
        """Load the trained weights into the student, and those of its heads into the criterion, if it has any."""
        self.model.load_state_dict(self.trained, strict=True)
        self.criterion.load_state_dict(self.trained_criterion, strict=True)


def load_run(
    checkpoint: str, *, data: str | None = None, teacher: str | None = None, option: str = "checkpoint"
) -> Run:
    """Rebuild a run from one of its checkpoints, the untrained student from the run's own seed, as fairseq built it.

    Args:
        checkpoint: written by a ``star_distillation`` run.
        data, teacher: current places of manifests and teacher, if not those of the training.
        option: the user's name of the checkpoint, for messages.

    Raises:
        StarError: the checkpoint cannot be read or is not one of a distillation run, or manifests or teacher are not
            where they were.
    """
    state = read_checkpoint(checkpoint, option)
    cfg = OmegaConf.create(state.get("cfg") or {})
    if OmegaConf.select(cfg, "task._name") != "star_distillation" or OmegaConf.select(cfg, "criterion._name") is None:
        raise StarError(f"{option}: {checkpoint} was not written by a star_distillation run")
    cfg.task.data = data or locate(checkpoint, cfg, "data", option)
    cfg.task.teacher = teacher or locate(checkpoint, cfg, "teacher", option)
    leave_cache_out(cfg.task)  # not worth its disk space for a pass or two over one manifest
    cfg.task.save_dir = None  # nothing resumes from there

    register_all()
    np.random.seed(cfg.common.seed)
    utils.set_torch_seed(cfg.common.seed)
    task = tasks.setup_task(cfg.task, from_checkpoint=True)  # whose options may be an older version's
    task.first_weights_folder = os.path.dirname(os.path.abspath(checkpoint))  # where the run saved them
    model = task.build_model(cfg.model)
    cfg.task.teacher = task.cfg.teacher  # with the commit of a HuggingFace id
    return Run(
        checkpoint=os.path.relpath(checkpoint),
        cfg=cfg,
        task=task,
        model=model,
        criterion=task.build_criterion(cfg.criterion),
        num_updates=num_updates(state),
        trained=state["model"],
        trained_criterion=state.get("criterion") or {},
    )


def locate(checkpoint: str, cfg: DictConfig, name: str, option: str) -> str | None:
    """Return ``task.data`` or ``task.teacher`` of the run that wrote ``checkpoint``, as a path from here.

    A relative one is looked up in the current folder, then in the one the run was started in, which follows from the
    checkpoint's place as long as it lies in ``checkpoint.save_dir``.

    Args:
        checkpoint: the file.
        cfg: its whole configuration.
        name: ``data`` or ``teacher``, in the config and as the command's option.
        option: the user's name of the checkpoint, for messages.

    Raises:
        StarError: it is in neither folder.
    """
    path = cfg.task.get(name)
    if not path or os.path.exists(path):
        return path
    folder, save_dir = Path(checkpoint).resolve().parent, Path(OmegaConf.select(cfg, "checkpoint.save_dir") or "")
    depth = len(save_dir.parts)
    if depth and not save_dir.is_absolute() and folder.parts[-depth:] == save_dir.parts:
        from_there = folder.parents[depth - 1] / path
        if from_there.exists():
            return str(from_there)
    if name == "teacher" and hub.is_id(path):
        return path
    raise StarError(
        f"{option}: {checkpoint} was trained with task.{name}={path}, which is not there; name its current place "
        f"with --{name}"
    )
