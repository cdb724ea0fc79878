"""A distillation run, rebuilt from one of its checkpoints: its task with the teacher, its student before training."""

import logging
import os
from collections.abc import Sequence
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
from fairseq_star.losses.terms import WEIGHTS
from fairseq_star.losses.units import HEAD, UNITS, UnitPrediction
from fairseq_star.manifest import stream_manifest
from fairseq_star.tasks.registration import register_all
from fairseq_star.tasks.star_distillation import StarDistillationTask
from fairseq_star.teacher.cache.settings import leave_cache_out

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Places:
    """Current places of what a run was trained with, where not those of the training; as options of a command."""

    data: str | None = None  # folder of manifests
    teacher: str | None = None  # as task.teacher takes it
    noise: str | None = None  # manifest
    reverb: str | None = None  # manifest
    units: Sequence[str] | None = None  # files of centroids, in the order of criterion.units


def load_run(checkpoint: str, *, option: str = "checkpoint", **places: str | Sequence[str] | None) -> Run:
    """Rebuild a run from one of its checkpoints, the untrained student from the run's own seed, as fairseq built it.

    Noise, room responses and centroids that are not where they were are left out, which is logged.

    Args:
        checkpoint: written by a ``star_distillation`` run.
        option: the user's name of the checkpoint, for messages.
        places: of its files, as :class:`Places` has them.

    Raises:
        StarError: the checkpoint cannot be read or is not one of a distillation run, manifests or teacher are not
            where they were, or so are centroids without which no loss is left.
    """
    here = Places(**places)
    state = read_checkpoint(checkpoint, option)
    cfg = OmegaConf.create(state.get("cfg") or {})
    if OmegaConf.select(cfg, "task._name") != "star_distillation" or OmegaConf.select(cfg, "criterion._name") is None:
        raise StarError(f"{option}: {checkpoint} was not written by a star_distillation run")
    cfg.task.data = here.data or locate(checkpoint, cfg, "data", option)
    cfg.task.teacher = here.teacher or locate(checkpoint, cfg, "teacher", option)
    for name in ("noise", "reverb"):
        _place_recordings(checkpoint, cfg, name, getattr(here, name), option)
    heads = dict(state.get("criterion") or {})
    if not _place_units(checkpoint, cfg, here.units, option):
        heads = {key: value for key, value in heads.items() if not key.startswith(f"{UnitPrediction.heads_name}.")}
    leave_cache_out(cfg.task)  # not worth its disk space for a pass or two over one manifest
    cfg.task.save_dir = None  # nothing resumes from there

    register_all()
    np.random.seed(cfg.common.seed)
    utils.set_torch_seed(cfg.common.seed)
    task = tasks.setup_task(cfg.task, from_checkpoint=True)  # whose options may be an older version's
    task.first_weights_folder = os.path.dirname(os.path.abspath(checkpoint))  # where the run saved them
    model = task.build_model(cfg.model)
    cfg.task.teacher = task.cfg.teacher  # with the commit of a HuggingFace id
    criterion = task.build_criterion(cfg.criterion)
    now, had = task.state_dict().get(UNITS), (state.get("task_state") or {}).get(UNITS)
    if now and had and now != had:
        raise StarError(
            f"{option}: {checkpoint} learned other units than the files of criterion.units hold now; name those of the "
            "training with --units"
        )
    return Run(
        checkpoint=os.path.relpath(checkpoint),
        cfg=cfg,
        task=task,
        model=model,
        criterion=criterion,
        num_updates=num_updates(state),
        trained=state["model"],
        trained_criterion=heads,
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
    if not path or (found := _find(checkpoint, cfg, path)):
        return path and found
    if name == "teacher" and hub.is_id(path):
        return path
    raise StarError(
        f"{option}: {checkpoint} was trained with task.{name}={path}, which is not there; name its current place "
        f"with --{name}"
    )


def _find(checkpoint: str, cfg: DictConfig, path: str) -> str | None:
    """Return ``path`` as one from here, as :func:`locate` looks it up; None where it is in neither folder."""
    if os.path.exists(path):
        return path
    folder, save_dir = Path(checkpoint).resolve().parent, Path(OmegaConf.select(cfg, "checkpoint.save_dir") or "")
    depth = len(save_dir.parts)
    if depth and not save_dir.is_absolute() and folder.parts[-depth:] == save_dir.parts:
        from_there = folder.parents[depth - 1] / path
        if from_there.exists():
            return str(from_there)
    return None


def _place_recordings(checkpoint: str, cfg: DictConfig, name: str, given: str | None, option: str) -> None:
    """Set ``task.{name}_manifest`` to its current place, or to None, which is logged, where its audio is not there.

    Raises:
        StarError: ``given`` is not there.
    """
    key = f"{name}_manifest"
    if given:
        if not os.path.isfile(given):
            raise StarError(f"--{name} {given} is not there; name a manifest (.tsv)")
        cfg.task[key] = given
    elif path := cfg.task.get(key):
        found = _find(checkpoint, cfg, path)
        cfg.task[key] = found if found and os.path.isdir(stream_manifest(found)[0]) else None
        if cfg.task[key] is None:
            logger.warning(
                f"{option}: task.{key}={path} of the training is not there, or its audio is not: measured without; "
                f"--{name} names its current place"
            )


def _place_units(checkpoint: str, cfg: DictConfig, given: Sequence[str] | None, option: str) -> bool:
    """Set the files of ``criterion.units`` to their current places, or leave units out, which is logged.

    Returns:
        Whether the criterion has its units, if it had any.

    Raises:
        StarError: ``given`` is not a file for each, or the loss consists of units alone.
    """
    if not any(cfg.criterion.get(name) for name in UnitPrediction.weights):
        return True
    files = [path for path in cfg.criterion.units or () if path != HEAD]
    if given is not None and len(given) != len(files):
        raise StarError(f"--units: the run has {len(files)} files of units ({', '.join(files)}); name as many")
    found = list(given) if given is not None else [_find(checkpoint, cfg, path) for path in files]
    if None not in found:
        places = iter(found)
        cfg.criterion.units = [name if name == HEAD else next(places) for name in cfg.criterion.units]
        return True
    said = f"criterion.units: {files[found.index(None)]} of the training is not there"
    mend = f"--units names the current place{'s' if len(files) > 1 else ''}"
    for name in UnitPrediction.weights:
        cfg.criterion[name] = 0.0
    if not any(cfg.criterion.get(name) for name in WEIGHTS):
        raise StarError(f"{option}: {said}, and the loss consists of units alone; {mend}")
    logger.warning(f"{option}: {said}: losses are without units; {mend}")
    return False
