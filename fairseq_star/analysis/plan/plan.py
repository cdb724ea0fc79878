"""``fairseq-star plan``: how long a run will take and whether it fits, before it is begun."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from fairseq_star.analysis.plan.config import run_config
from fairseq_star.analysis.plan.measure import Measured, check_steps, measure
from fairseq_star.fairseq_hooks.throughput import step_macs
from fairseq_star.teacher.cache.codec import SCALE_BYTES
from fairseq_star.teacher.cache.store import StateStore

FLOAT, ADAM = 4, 2  # bytes of a weight; what Adam keeps beside each


@dataclass
class Plan:
    """What :func:`plan` found. Hours are of training alone: neither saving nor validating is counted."""

    device: str
    world_size: int
    updates: int
    epochs: float
    utterances_an_update: float
    seconds_an_update: float
    hours: float
    hours_cached: float  # the teacher in the first epoch alone
    audio_seconds_a_second: float  # of all workers
    mfu: float  # the encoders' multiplications for the utterances' own samples, of what a large product reaches here
    teacher_share: float  # of a step
    data_share: float  # seconds of reading a batch, shared among the data workers, of a step's
    padding: float  # share of samples
    peak_bytes: int
    total_bytes: int
    peak_grows: bool  # for some minutes: what is freed is kept, on the CPU, in pieces of all sizes
    batch_size_that_fits: int  # utterances as long as the longest
    checkpoint_bytes: int
    checkpoints: int  # that lie on the disk at once
    cache_bytes: dict[str, int] = field(default_factory=dict)  # by task.teacher_cache_compression; empty: it cannot be
    warnings: list[str] = field(default_factory=list)
    sliced: bool = False  # whether the run first slices its first weights out of the teacher

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
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
            "memory": f"{self.peak_bytes / 2**20:,.0f} MiB of {self.total_bytes / 2**20:,.0f} at the largest batch"
            f"{kept}; about {self.batch_size_that_fits:,} utterances of the longest's length would fit",
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
    """Measure a run that is not begun yet.

    A batch's time is taken as proportional to its samples, padding included, with the factor of ``steps`` batches
    between the largest and the smallest. An update is ``optimization.update_freq`` of them. Where data workers are
    slower than the step, their time is the update's.

    Args:
        config_dir, config_name, overrides: as of ``fairseq-hydra-train``.
        steps: that are measured.

    Raises:
        StarError: the options are none, or the run could not begin.
    """
    check_steps(steps)
    cfg = run_config(config_dir, config_name, overrides)
    sliced = str(cfg.model.get("init")) == "sliced"
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
    extra = (measured.peak_bytes - measured.bytes_before) / len(measured.worst.indices)
    saved = cfg.checkpoint
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
        peak_grows=measured.device == "cpu" and not cfg.task.release_memory and cfg.task.pad_to_multiple == 1,
        batch_size_that_fits=max(0, int((measured.total_bytes - measured.bytes_before) / max(extra, 1.0))),
        checkpoint_bytes=_checkpoint_bytes(measured),
        checkpoints=1 + (not saved.no_last_checkpoints) + max(saved.keep_interval_updates, 0),
        cache_bytes=_cache_bytes(measured),
        warnings=_warnings(cfg, measured, data),
        sliced=sliced,
    )


def _updates(cfg: DictConfig, an_epoch: float) -> int:
    ends = [cfg.optimization.max_update or math.inf, (cfg.optimization.max_epoch or math.inf) * math.ceil(an_epoch)]
    return int(min(ends)) if min(ends) < math.inf else math.ceil(an_epoch)


def _flops(measured: Measured) -> float:
    """Of the encoders over the utterances' own samples: teacher forward, student forward and twice that backward."""
    task, model = measured.trainer.task, measured.trainer.model
    lengths = task.dataset(measured.trainer.cfg.dataset.train_subset).cropped_lengths()
    heard = np.concatenate([lengths[step.batch.indices] for step in measured.steps])
    return 2 * step_macs(heard, model.config, task.teacher.config)


def _checkpoint_bytes(measured: Measured) -> int:
    trainer = measured.trainer
    weights = [*trainer.model.parameters(), *trainer.criterion.parameters()]
    return sum(weight.numel() for weight in weights) * FLOAT * (1 + ADAM)


def _cache_bytes(measured: Measured) -> dict[str, int]:
    """Of all splits' entries, by compression; ``pca`` with a quarter of the coordinates. Empty where none is kept."""
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
    found = []
    if measured.peak_bytes > 0.9 * measured.total_bytes:
        found.append(
            "warning: the largest batch takes more than nine tenths of the memory; lower dataset.batch_size or "
            "dataset.max_tokens, crop with task.max_sample_size, or set model.checkpoint_activations=true"
        )
    if data > 1:
        found.append(
            f"warning: {cfg.dataset.num_workers} data workers take longer to read a batch than a step takes; raise "
            "dataset.num_workers"
        )
    return found
