"""Estimate of a run before it starts, measured on this machine with its own options; ``fairseq-star plan``."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from fairseq import utils
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import omegaconf_no_object_check
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fairseq_star.analysis.plan.measure import Measured, measure
from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks.throughput import step_macs
from fairseq_star.runtime.job import num_cores
from fairseq_star.tasks.registration import register_all
from fairseq_star.teacher.cache.codec import SCALE_BYTES
from fairseq_star.teacher.cache.store import StateStore

FLOAT, ADAM = 4, 2  # bytes of a weight; Adam's moments of each


@dataclass
class Plan:
    """Estimates for a run. Hours are of training alone: neither saving nor validation is counted."""

    device: str
    world_size: int
    updates: int
    epochs: float
    utterances_an_update: float
    seconds_an_update: float
    hours: float
    hours_cached: float  # with the teacher running in the first epoch alone
    audio_seconds_a_second: float  # of all workers
    mfu: float  # rate of the encoders' multiplications (without padding) relative to a large matrix product's here
    teacher_share: float  # of a step
    data_share: float  # time to read a batch, divided among the data workers, relative to a step's
    padding: float  # share of samples
    peak_bytes: int
    total_bytes: int  # that may be used
    memory_limit: str  # what limits them
    peak_grows: bool  # for some minutes: a CPU process keeps freed memory, in pieces of all sizes
    batch_size_that_fits: int  # utterances of the longest one's duration
    checkpoint_bytes: int
    checkpoints: int  # on the disk at once
    cache_bytes: dict[str, int] = field(default_factory=dict)  # by compression; empty: none possible
    warnings: list[str] = field(default_factory=list)
    sliced: bool = False  # the run starts by slicing its first weights out of the teacher

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        cache = ", ".join(f"{name} {size / 1e9:,.2f} GB" for name, size in self.cache_bytes.items())
        cached = f"; with a teacher cache {_duration(self.hours_cached)}" if cache else ""
        kept = ", more after minutes (task.pad_to_multiple=3200 bounds that)" if self.peak_grows else ""
        rows = {
            "updates": f"{self.updates:,} of {self.utterances_an_update:.1f} utterances, {self.epochs:,.1f} epochs",
            "an update": f"{self.seconds_an_update:.3f} s on {self.world_size} x {self.device}",
            "the run": f"{_duration(self.hours)}{cached} (the teacher is {self.teacher_share:.0%} of a step)",
            "audio": f"{self.audio_seconds_a_second:,.1f} s of speech a second, {self.mfu:.0%} of what a large matrix "
            "product reaches here",
            "data": f"reading takes {self.data_share:.0%} of a step's time; padding is {self.padding:.1%}",
            "memory": f"{self.peak_bytes / 2**20:,.0f} MiB of {self.total_bytes / 2**20:,.0f} (limited by "
            f"{self.memory_limit}) at the largest batch{kept}; about {self.batch_size_that_fits:,} utterances of the "
            "longest's length would fit",
            "disk": f"{self.checkpoints} checkpoints of {self.checkpoint_bytes / 1e6:,.0f} MB; teacher cache: "
            + (cache or "none is possible with these options"),
        }
        if self.sliced:
            rows["begins"] = (
                "sliced out of the teacher, which takes a minute or a few first; `fairseq-star slice TEACHER --data "
                "DIR --sizes 0.25 0.1` compares sizes before any training"
            )
        return "\n".join([*(f"{name:<10} {text}" for name, text in rows.items()), *self.warnings])


def _duration(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def plan(config_dir: str, config_name: str, overrides: Sequence[str], *, steps: int = 5) -> Plan:
    """Estimate a run before it starts.

    A batch's time is assumed proportional to its samples, padding included, with the factor measured on ``steps``
    batches between the largest and the smallest. An update is ``optimization.update_freq`` batches. Where data workers
    are slower than the step, their time counts.

    Args:
        config_dir, config_name, overrides: as for ``fairseq-hydra-train``.
        steps: how many to measure, 1 or more.

    Raises:
        StarError: an invalid option, or the run could not start.
    """
    if steps < 1:
        raise StarError(f"plan: --steps {steps} must be 1 or more")
    cfg = run_config(config_dir, config_name, overrides)
    sliced = str(cfg.model.get("init")) == "sliced"  # before it is measured with random weights
    world_size = cfg.distributed_training.distributed_world_size
    measured = measure(cfg, steps)
    batches, sizes = measured.batches, [step.batch.padded for step in measured.steps]
    step_seconds = sum(step.seconds for step in measured.steps)
    mean_padded = sum(batch.padded for batch in batches) / len(batches)
    per_sample = step_seconds / sum(sizes)
    data = sum(step.data for step in measured.steps) / max(cfg.dataset.num_workers, 1) / step_seconds
    batch_seconds = per_sample * mean_padded * max(1.0, data)
    update_freq = cfg.optimization.update_freq[0]
    batches_an_update = update_freq * world_size
    updates = _updates(cfg, len(batches) / batches_an_update)
    epochs = updates * batches_an_update / len(batches)
    teacher = sum(step.teacher for step in measured.steps) / step_seconds
    seconds = batch_seconds * update_freq
    rate = measured.trainer.task.cfg.sample_rate
    own = sum(batch.samples for batch in batches)
    extra = (measured.peak_bytes - measured.bytes_before) / len(measured.largest.indices)
    return Plan(
        device=measured.device,
        world_size=world_size,
        updates=updates,
        epochs=epochs,
        utterances_an_update=sum(len(batch.indices) for batch in batches) / len(batches) * batches_an_update,
        seconds_an_update=seconds,
        hours=updates * seconds / 3600,
        hours_cached=updates * seconds * (1 - teacher * max(0.0, 1 - 1 / max(epochs, 1.0))) / 3600,
        audio_seconds_a_second=own / rate / len(batches) * world_size / batch_seconds,
        mfu=_flops(measured) / step_seconds / measured.trainer.task.steps.throughput.ceiling,
        teacher_share=teacher,
        data_share=data,
        padding=1 - own / sum(batch.padded for batch in batches),
        peak_bytes=measured.peak_bytes,
        total_bytes=measured.total_bytes,
        memory_limit=measured.memory_limit,
        peak_grows=measured.device == "cpu" and not cfg.task.release_memory and cfg.task.pad_to_multiple == 1,
        batch_size_that_fits=max(0, int((measured.total_bytes - measured.bytes_before) / max(extra, 1.0))),
        checkpoint_bytes=_checkpoint_bytes(measured),
        checkpoints=_checkpoints(cfg, updates, math.ceil(len(batches) / batches_an_update)),
        cache_bytes=_cache_bytes(measured),
        warnings=_warnings(cfg, measured, data),
        sliced=sliced,
    )


def run_config(config_dir: str, config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a run's whole configuration as fairseq does before it trains.

    Args:
        config_dir: folder of the recipes.
        config_name: a recipe's file name without ``.yaml``.
        overrides: such as ``task.data=DIR``.

    Raises:
        StarError: there is no such recipe, it has no such option, or it trains another task.
    """
    if not (Path(config_dir) / f"{config_name}.yaml").is_file():
        raise StarError(f"plan: there is no {config_name}.yaml in --config-dir {config_dir}; name a recipe of it")
    register_all()
    hydra_init(config_name)
    GlobalHydra.instance().clear()
    try:
        with warnings.catch_warnings(), initialize_config_dir(str(Path(config_dir).resolve()), version_base="1.1"):
            warnings.simplefilter("ignore")  # hydra's, about how fairseq names its schema
            cfg = compose(config_name, overrides=list(overrides))
        if OmegaConf.select(cfg, "task._name") != "star_distillation":
            raise StarError(f"plan: {config_name} trains another task than star_distillation; name a recipe of that")
        utils.import_user_module(cfg.common)
        add_defaults(cfg)
        with omegaconf_no_object_check():
            cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True, throw_on_missing=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise StarError(f"plan: {str(error).strip().splitlines()[0]} (options as of fairseq-hydra-train)") from error
    OmegaConf.set_struct(cfg, True)
    return cfg


def _updates(cfg: DictConfig, an_epoch: float) -> int:
    ends = [cfg.optimization.max_update or math.inf, (cfg.optimization.max_epoch or math.inf) * math.ceil(an_epoch)]
    return int(min(ends)) if min(ends) < math.inf else math.ceil(an_epoch)


def _flops(measured: Measured) -> float:
    """Operations of teacher (forward) and student (forward, and twice that backward), without padding."""
    task, model = measured.trainer.task, measured.trainer.model
    lengths = task.dataset(measured.trainer.cfg.dataset.train_subset).cropped_lengths()
    num_samples = np.concatenate([lengths[step.batch.indices] for step in measured.steps])
    return 2 * step_macs(num_samples, model.config, task.teacher.config)


def _checkpoints(cfg: DictConfig, updates: int, an_epoch: int) -> int:
    """Return how many checkpoints a run of so many updates leaves, at most, as fairseq's ``save_checkpoint`` does."""
    saved, every = cfg.checkpoint, cfg.checkpoint.save_interval_updates
    if saved.no_save:
        return 0
    validated = not cfg.dataset.disable_validation
    count = (not saved.no_last_checkpoints) + (1 + max(saved.keep_best_checkpoints, 0) if validated else 0)
    if not saved.no_epoch_checkpoints:
        epochs = updates // an_epoch // saved.save_interval
        count += epochs if saved.keep_last_epochs < 0 else min(epochs, saved.keep_last_epochs)
    if every > 0:
        within = updates // every - updates // math.lcm(every, an_epoch)  # those at an epoch's end are of the epoch
        count += within if saved.keep_interval_updates < 0 else min(within, saved.keep_interval_updates)
    return count


def _checkpoint_bytes(measured: Measured) -> int:
    trainer = measured.trainer
    weights = [*trainer.model.parameters(), *trainer.criterion.parameters()]
    return sum(weight.numel() for weight in weights) * FLOAT * (1 + ADAM)


def _cache_bytes(measured: Measured) -> dict[str, int]:
    """Bytes of all splits' entries by compression, ``pca`` with a quarter of the width; empty: no cache is possible."""
    trainer = measured.trainer
    task, criterion = trainer.task, trainer.criterion
    if task.cfg.padded_group_norm or criterion.attention_layers or criterion.cfg.count_padding:
        return {}
    num_states = len(criterion.teacher_states)
    width = task.teacher.embed_dim
    frames = np.concatenate([task.teacher.geometry.num_frames(one.cropped_lengths()) for one in task.datasets.values()])
    rows = {"none": (torch.float16, width), "int8": (torch.int8, width + SCALE_BYTES)}
    rows["pca"] = torch.int8, max(width // 4, 1) + SCALE_BYTES
    return {
        name: int(StateStore(Path(), dtype).entry_bytes(num_states, frames, size).sum())
        for name, (dtype, size) in rows.items()
    }


def _warnings(cfg: DictConfig, measured: Measured, data: float) -> list[str]:
    lines = []
    if measured.peak_bytes > 0.9 * measured.total_bytes:
        lines.append(
            "warning: the largest batch takes more than nine tenths of the memory; lower dataset.batch_size or "
            "dataset.max_tokens, crop with task.max_sample_size, or set model.checkpoint_activations=true"
        )
    if cfg.dataset.num_workers > num_cores():
        lines.append(
            f"warning: dataset.num_workers={cfg.dataset.num_workers} is more than the {num_cores()} cores that this "
            "job may use"
        )
    if data > 1:
        lines.append(
            f"warning: {cfg.dataset.num_workers} data workers take longer to read a batch than a step takes; raise "
            "dataset.num_workers"
        )
    return lines
