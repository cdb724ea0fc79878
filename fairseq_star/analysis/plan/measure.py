"""Cost of a few steps of a run on this machine: time, with the teacher's and the data's shares, and memory."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
import torch
from fairseq import tasks, utils
from fairseq.data.iterators import BufferedIterator
from fairseq.trainer import Trainer
from omegaconf import DictConfig
from torch.utils.data import DataLoader
from tqdm import tqdm

from fairseq_star.data.dataset import PREFETCH_FACTOR
from fairseq_star.errors import StarError, exit_on_star_error
from fairseq_star.fairseq_hooks.data_watch import WatchedIterator
from fairseq_star.fairseq_hooks.preflight import check_options
from fairseq_star.runtime.host import settle_on_host
from fairseq_star.runtime.job import free_memory, process_bytes
from fairseq_star.runtime.memory import synchronize
from fairseq_star.teacher.cache.settings import leave_cache_out


@dataclass(frozen=True)
class Batch:
    """A batch of the training set."""

    indices: Sequence[int]
    samples: int  # in all its utterances, without padding
    padded: int  # with padding


@dataclass(frozen=True)
class Step:
    """Time of a training step."""

    batch: Batch
    seconds: float  # forward, backward, update
    teacher: float  # seconds of these in the teacher
    data: float  # seconds to read and pad the batch, in one process


@dataclass
class Measured:
    """Result of :func:`measure`."""

    batches: list[Batch]  # of an epoch, over all workers
    steps: list[Step]
    bytes_before: int  # in use before the first step
    peak_bytes: int  # over all steps, the one with the most samples among them, everything included
    total_bytes: int  # the device's; on a CPU what the job may still take plus the process's own
    memory_limit: str  # what sets it, for messages
    device: str
    trainer: Trainer

    @property
    def largest(self) -> Batch:
        return max(self.batches, key=lambda batch: batch.padded)


def measure(cfg: DictConfig, num_steps: int) -> Measured:
    """Build a run as fairseq does, alone and without a cache, and train it for a few steps, the largest batch first.

    Only the task itself writes anything; no checkpoint is read.

    Args:
        cfg: the whole configuration.
        num_steps: steps after the first. Their batches are evenly spaced by size between the largest and the smallest
            and in random order, as a run's: freed memory that the process keeps grows where sizes go up and down.

    Raises:
        StarError: the run could not start, or its largest batch does not fit.
    """
    leave_cache_out(cfg.task)
    if cfg.model.get("init") is not None:
        cfg.model.init = "random"  # a step costs the same, and nothing is sliced or written
    cfg.distributed_training.distributed_world_size = 1
    np.random.seed(cfg.common.seed)
    utils.set_torch_seed(cfg.common.seed)
    settle_on_host(keep_memory=not cfg.task.release_memory)
    task = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model)
    criterion = task.build_criterion(cfg.criterion)
    for split in () if cfg.dataset.disable_validation else cfg.dataset.valid_subset.split(","):
        task.load_dataset(split)
    trainer = Trainer(cfg, task, model, criterion, None)
    device = "cuda" if trainer.cuda else "cpu"
    with exit_on_star_error():
        check_options(cfg, criterion, on_gpu=trainer.cuda)
    batches = _batches(trainer)
    trainer.begin_epoch(1)
    trainer.lr_step(1)

    task.provider.timed = True
    by_size = sorted(batches, key=lambda batch: -batch.padded)
    places = np.linspace(0, len(by_size) - 1, num_steps + 2).round().astype(int)[1:-1]
    places = np.random.default_rng(cfg.common.seed).permutation(places)
    chosen = [by_size[place] for place in places]
    read = [_seconds_to_read(trainer, batch) for batch in chosen]
    before = _allocated(device)
    # Read while steps run, as in training, since data workers share the cores with them. The largest also warms up.
    samples = _read_ahead(trainer, [by_size[0], *chosen])
    _step(trainer, by_size[0], next(samples), device)
    steps = [
        Step(batch, *_step(trainer, batch, next(samples), device), data)
        for batch, data in tqdm(list(zip(chosen, read, strict=True)), "plan", unit="step", disable=None)
    ]
    for _ in samples:  # until the workers and the thread end
        pass
    return Measured(batches, steps, before, _peak(device), *_total(device), device, trainer)


def _batches(trainer: Trainer) -> list[Batch]:
    epoch = trainer.get_train_iterator(epoch=1)
    lengths, batches = epoch.dataset.cropped_lengths(), []
    for indices in epoch.frozen_batches:
        own = int(lengths[np.asarray(indices)].sum())
        batches.append(Batch([int(index) for index in indices], own, epoch.dataset.padded_samples(indices)))
    return batches


def _seconds_to_read(trainer: Trainer, batch: Batch) -> float:
    dataset = trainer.task.dataset(trainer.cfg.dataset.train_subset)
    start = time.perf_counter()
    dataset.collater([dataset[index] for index in batch.indices])
    return time.perf_counter() - start


def _read_ahead(trainer: Trainer, batches: Sequence[Batch]) -> Iterator[dict]:
    dataset, cfg = trainer.task.dataset(trainer.cfg.dataset.train_subset), trainer.cfg.dataset
    # As many more as workers, thread and buffer read ahead, so that they are as busy as a run's up to the last step.
    more = islice(cycle(batches), PREFETCH_FACTOR * cfg.num_workers + 2)
    loader = DataLoader(
        dataset,
        batch_sampler=[batch.indices for batch in (*batches, *more)],
        collate_fn=dataset.collater,
        num_workers=cfg.num_workers,
        prefetch_factor=PREFETCH_FACTOR if cfg.num_workers else None,
    )
    # In a thread, as in a run; one ahead, since a run with a full buffer reads one batch a step.
    return WatchedIterator(BufferedIterator(1, loader))


def _step(trainer: Trainer, batch: Batch, sample: dict, device: str) -> tuple[float, float]:
    """Measure the seconds of a step, and the teacher's of these."""
    provider = trainer.task.provider
    start, provider.seconds = time.perf_counter(), 0.0
    try:
        trainer.train_step([sample], raise_oom=True)
    except torch.cuda.OutOfMemoryError as error:
        raise StarError(
            f"plan: a batch of {len(batch.indices)} utterances of {batch.padded // len(batch.indices):,} samples "
            "does not fit into the GPU's memory; lower dataset.batch_size or dataset.max_tokens, crop with "
            "task.max_sample_size, or set model.checkpoint_activations=true"
        ) from error
    synchronize(device)
    return time.perf_counter() - start, provider.seconds


def _allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else process_bytes("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else process_bytes("VmHWM")


def _total(device: str) -> tuple[int, str]:
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory, "the GPU"
    free = free_memory()
    return free.num_bytes + process_bytes("VmRSS"), free.limit
