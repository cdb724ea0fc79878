"""Invalid options, reported in one line before training.

fairseq itself ends in a traceback at the first batch, at the end of the first epoch or at the first validation, or
starts from scratch in another run's folder. ``resuming.py`` checks the checkpoint that a run resumes from.
"""

import ast
import logging
import os
from dataclasses import dataclass

from fairseq import checkpoint_utils
from fairseq.criterions import FairseqCriterion
from omegaconf import DictConfig, ListConfig, OmegaConf

from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.models.starhubert import StarHubertModel
from fairseq_star.runtime.job import num_cores

logger = logging.getLogger(__name__)

logger = logging.getLogger(__name__)
LAST = "checkpoint_last.pt"  # fairseq's default of checkpoint.restore_file, looked for in checkpoint.save_dir
# What an option (or each of its values) must be at least, where it is given.
LEAST = {
    "task.max_sample_size": 1,
    "task.min_sample_size": 0,
    "task.pad_to_multiple": 1,
    "dataset.batch_size": 1,
    "dataset.batch_size_valid": 1,
    "dataset.max_tokens": 1,
    "dataset.max_tokens_valid": 1,
    "dataset.num_workers": 0,
    "dataset.validate_interval": 1,
    "checkpoint.save_interval": 1,
    "common.log_interval": 1,
    "optimization.update_freq": 1,
}
GPU_PRECISIONS = ("fp16", "amp", "memory_efficient_fp16")  # bf16 trains on a CPU as well
RESETS = ("reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader")


@dataclass(frozen=True)
class Start:
    """The checkpoint that a run starts from."""

    path: str
    option: str  # that names it, for messages
    weights_alone: bool  # without the optimizer's state: a new run from old weights


def check_options(cfg: DictConfig, criterion: FairseqCriterion, *, on_gpu: bool) -> None:
    """Check a run's options.

    Args:
        cfg: the whole configuration.
        criterion: names in ``logged``, if it has any, are what it logs.
        on_gpu: whether the run has a GPU.

    Raises:
        StarError: a number below its minimum, a GPU's precision without one, a cosine of no updates after the
            warm-up, or a ``best_checkpoint_metric`` that no validation will log.
    """
    for name, least in LEAST.items():
        value = OmegaConf.select(cfg, name)
        values = value if isinstance(value, ListConfig | list) else [value]
        if any(number is not None and number < least for number in values):
            raise StarError(f"{name}={value} must be {least} or more")
    workers, cores = OmegaConf.select(cfg, "dataset.num_workers") or 0, num_cores()
    if workers > cores:
        logger.warning(f"dataset.num_workers={workers} is more than the {cores} cores that this job may use")
    for name in GPU_PRECISIONS:
        if OmegaConf.select(cfg, f"common.{name}") and not on_gpu:
            why = "common.cpu=true leaves it aside" if cfg.common.cpu else "torch finds none on this machine"
            raise StarError(f"common.{name}=true needs a GPU, and {why}; leave it out to train in float32")
    schedule, last = cfg.lr_scheduler, cfg.optimization.max_update
    if schedule._name == "cosine" and schedule.get("lr_period_updates", 0) <= 0 and schedule.warmup_updates == last:
        # fairseq divides by zero at the last update
        raise StarError(
            f"lr_scheduler.warmup_updates={last} is all of optimization.max_update; lower it, or train longer"
        )
    metric, logged = cfg.checkpoint.best_checkpoint_metric, getattr(criterion, "logged", None)
    if logged is not None and not cfg.dataset.disable_validation and metric not in logged:
        raise StarError(
            f"checkpoint.best_checkpoint_metric={metric} is nothing that validation logs; take one of "
            f"{', '.join(logged)}"
        )


def starting_point(cfg: DictConfig, suffix: str = "") -> Start | None:
    """Return the checkpoint a run starts from, chosen as by fairseq's ``load_checkpoint``; None: from scratch.

    Args:
        cfg: the section ``checkpoint``.
        suffix: that fairseq puts before ``.pt``.

    Raises:
        StarError: a file that is named is not there, or options that contradict each other.
    """
    _check_values(cfg)
    if cfg.restore_file != LAST:
        path = cfg.restore_file.replace(".pt", f"{suffix}.pt")
        return Start(_existing(path, "restore_file", cfg.save_dir), "checkpoint.restore_file", cfg.reset_optimizer)
    last = os.path.join(cfg.save_dir, LAST.replace(".pt", f"{suffix}.pt"))
    if checkpoint_utils.PathManager.exists(last):
        return Start(last, "checkpoint.save_dir", cfg.reset_optimizer)
    for name in ("continue_once", "finetune_from_model"):
        if (path := cfg.get(name)) is not None:
            alone = name == "finetune_from_model" or cfg.reset_optimizer
            return Start(_existing(path, name, cfg.save_dir), f"checkpoint.{name}", alone)
    return None


def _check_values(cfg: DictConfig) -> None:
    if not cfg.restore_file:
        raise StarError("checkpoint.restore_file is empty; leave it out to resume from the run's own last checkpoint")
    if cfg.finetune_from_model and cfg.restore_file != LAST:
        raise StarError("checkpoint.finetune_from_model and checkpoint.restore_file are both given; leave one out")
    resets = [f"checkpoint.{name}" for name in RESETS if cfg[name]]
    if resets and cfg.finetune_from_model is not None:
        raise StarError(f"checkpoint.finetune_from_model resets all by itself; leave out {', '.join(resets)}")
    try:
        overrides = ast.literal_eval(cfg.optimizer_overrides)
    except (ValueError, SyntaxError, TypeError):
        overrides = None
    if not isinstance(overrides, dict):
        raise StarError(
            f"checkpoint.optimizer_overrides={cfg.optimizer_overrides} is no Python dict such as {{'lr': 0.001}}; "
            "correct it, or leave it out"
        )


def _existing(path: str, name: str, save_dir: str) -> str:
    if checkpoint_utils.PathManager.isfile(path):
        return path
    kind = "a folder, not a checkpoint file" if os.path.isdir(path) else "not there"
    inside = os.path.join(save_dir, path)
    remedy = f"did you mean {inside}?" if os.path.isfile(inside) else "correct it, or leave it out"
    raise StarError(f"checkpoint.{name}: {path} is {kind} (nothing was begun or overwritten); {remedy}")


def adopt_audio_format(cfg: DictConfig, teacher: FrozenEncoder) -> None:
    """Set the task's sample rate and normalization to the teacher's, and warn where its kind was trained otherwise.

    Raises:
        StarError: one is given and contradicts it.
    """
    for name in ("sample_rate", "normalize"):
        wanted, trained = getattr(cfg, name), getattr(teacher, name)
        if wanted is not None and wanted != trained:
            raise StarError(f"task.{name}={wanted} contradicts the teacher, trained with {trained}; leave it out")
        setattr(cfg, name, trained)
    if teacher.config.extractor_mode == "layer_norm" and not teacher.normalize:
        logger.warning(
            "the teacher's front end has layer norms, as of models trained on audio of zero mean and unit variance, "
            "but its checkpoint says normalize=false; fairseq-star doctor --deep measures how much it matters"
        )


def check_student(teacher: FrozenEncoder, student: StarHubertModel, cfg: DictConfig) -> None:
    """Check that a student can learn from its teacher with the task's options.

    Raises:
        StarError: their frames differ, utterances would be cropped to less than one, a streaming student would need
            audio normalized over the whole utterance, or rounded weights would be compiled.
    """
    if teacher.geometry != student.geometry:
        rates = [teacher.sample_rate / model.geometry.downsample_rate for model in (teacher, student)]
        raise StarError(
            f"teacher and student frames differ: {rates[0]:g} Hz with {teacher.geometry.receptive_field} samples a "
            f"frame against {rates[1]:g} Hz with {student.geometry.receptive_field} samples a frame; change "
            "model.conv_feature_layers"
        )
    shortest = teacher.geometry.receptive_field
    if cfg.max_sample_size is not None and cfg.max_sample_size < shortest:
        raise StarError(
            f"task.max_sample_size={cfg.max_sample_size} crops utterances to less than one frame, {shortest} samples; "
            "raise it (240000 are 15 s of 16 kHz) or leave it out"
        )
    if student.config.chunk_frames and teacher.normalize:
        raise StarError(
            "model.chunk_frames: this teacher takes audio of zero mean and unit variance (task.normalize=true), and so "
            "would the student, but a stream does not have an utterance's mean and variance in advance; take a teacher "
            "of audio that is not normalized, such as HuBERT Base"
        )
    if cfg.compile and student.cfg.weight_bits:
        raise StarError("task.compile=true cannot compile model.weight_bits; leave one of them out")


def check_save_dir(save_dir: str) -> None:
    """Make ``checkpoint.save_dir`` and check that it can be written to.

    Raises:
        StarError: it is a file, or cannot be written to.
    """
    try:
        _verify_checkpoint_directory(save_dir)
    except OSError as error:
        reason = "it is a file" if os.path.isfile(save_dir) else error.strerror
        raise StarError(
            f"checkpoint.save_dir: {save_dir} cannot be written to ({reason}); name a folder that can be"
        ) from error


_verify_checkpoint_directory = checkpoint_utils.verify_checkpoint_directory
