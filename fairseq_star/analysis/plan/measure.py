"""What a few steps of a run cost on this machine: time, of which the teacher's and the data's, and memory."""

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

from fairseq_star.errors import StarError, told_in_one_line
from fairseq_star.fairseq_hooks.preflight import check_options
from fairseq_star.runtime.host import settle_on_host
from fairseq_star.runtime.memory import process_bytes, synchronize
from fairseq_star.teacher.cache.settings import leave_cache_out

PREFETCH_FACTOR = 2  # batches that a data worker is ahead, torch's default and so a run's


@dataclass(frozen=True)
class Batch:
    """One batch of the training set."""

    indices: Sequence[int]
    samples: int  # of all its utterances, their own
    padded: int  # with padding


@dataclass(frozen=True)
class Step:
    """What one of them took."""

    batch: Batch
    seconds: float  # forward, backward, update
    teacher: float  # seconds of these
    data: float  # seconds of reading and padding the batch, in one process


@dataclass
class Measured:
    """What :func:`measure` found."""

    batches: list[Batch]  # of an epoch, over all workers
    steps: list[Step]
    bytes_before: int  # held before the first step
    peak_bytes: int  # of all steps, the one with the most samples among them, all included
    total_bytes: int  # of the device; of the CPU what is free and what the process holds
    device: str
    trainer: Trainer

    @property
    def worst(self) -> Batch:
        """The batch that needs the most memory."""
        return max(self.batches, key=lambda batch: batch.padded)


def measure(cfg: DictConfig, num_steps: int) -> Measured:
    """Build a run as fairseq does, alone and without a cache, and train it for a few steps, the largest batch first.

    Nothing is written but what the task itself writes, no checkpoint is read.

    Args:
        cfg: the whole configuration.
        num_steps: after the first, of batches at even distances between the largest and the smallest, in an order at
            random, as a run's: what the process keeps of freed memory grows where sizes go up and down.

    Raises:
        StarError: the run could not begin, or its largest batch does not fit.
    """
    leave_cache_out(cfg.task)
    if cfg.model.get("init") is not None:
        cfg.model.init = "random"  # costs the same a step, and nothing is written or waited for
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
    with told_in_one_line():
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
    before = _held(device)
    # Read as in a run, beside the steps, with which data workers share the cores. The largest first; it also warms up.
    samples = _read_ahead(trainer, [by_size[0], *chosen])
    _step(trainer, by_size[0], next(samples), device)
    steps = [
        Step(batch, *_step(trainer, batch, next(samples), device), data)
        for batch, data in tqdm(list(zip(chosen, read, strict=True)), "plan", unit="step", disable=None)
    ]
    for _ in samples:  # so that workers and thread end
        pass
    return Measured(batches, steps, before, _peak(device), _total(device), device, trainer)


def _batches(trainer: Trainer) -> list[Batch]:
    dataset_of = trainer.cfg.dataset.train_subset
    frozen = trainer.get_train_iterator(epoch=1).frozen_batches
    lengths = trainer.task.dataset(dataset_of).cropped_lengths()
    multiple = trainer.task.cfg.pad_to_multiple
    found = []
    for indices in frozen:
        own = lengths[np.asarray(indices)]
        longest = -(-int(own.max()) // multiple) * multiple
        found.append(Batch([int(index) for index in indices], int(own.sum()), longest * len(own)))
    return found


def _seconds_to_read(trainer: Trainer, batch: Batch) -> float:
    dataset = trainer.task.dataset(trainer.cfg.dataset.train_subset)
    start = time.perf_counter()
    dataset.collater([dataset[index] for index in batch.indices])
    return time.perf_counter() - start


def _read_ahead(trainer: Trainer, batches: Sequence[Batch]) -> Iterator[dict]:
    dataset, cfg = trainer.task.dataset(trainer.cfg.dataset.train_subset), trainer.cfg.dataset
    # To the last step workers are as busy as a run's: so many more as they, thread and buffer are ahead.
    more = islice(cycle(batches), PREFETCH_FACTOR * cfg.num_workers + 2)
    loader = DataLoader(
        dataset,
        batch_sampler=[batch.indices for batch in (*batches, *more)],
        collate_fn=dataset.collater,
        num_workers=cfg.num_workers,
        prefetch_factor=PREFETCH_FACTOR if cfg.num_workers else None,
    )
    # In a thread, as a run's; one ahead, for a run reads one a step as soon as its own buffer is full.
    return iter(BufferedIterator(1, loader))


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


def _held(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else process_bytes("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else process_bytes("VmHWM")


def _total(device: str) -> int:
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    with open("/proc/meminfo") as lines:
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return free * 1024 + process_bytes("VmRSS")


def check_steps(num_steps: int) -> int:
    """``--steps`` as it is.

    Raises:
        StarError: it is below 1.
    """
    if num_steps < 1:
        raise StarError(f"plan: --steps {num_steps} must be 1 or more")
    return num_steps
