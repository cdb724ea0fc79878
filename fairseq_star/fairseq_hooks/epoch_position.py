"""The position within an epoch, which a checkpoint carries, and the batches that it counts.

fairseq keeps a number of batches alone. With other batches than before, it skips as many of these, or ends in a
traceback where there are not as many.
"""

import hashlib
import logging
import math
from collections.abc import Mapping

import numpy as np
import torch.distributed as dist
from fairseq.data.iterators import EpochBatchIterator
from omegaconf import DictConfig

from fairseq_star.data.dataset import DistillationDataset
from fairseq_star.data.origin import CORPUS, corpus_origin, differences
from fairseq_star.runtime.workers import rank_and_world_size

logger = logging.getLogger(__name__)
ORIGIN = "origin"  # in the iterator's state
BATCHES, SEED, WORKERS = "batches", "common.seed", "number of processes"


class RecordedBatches(EpochBatchIterator):
    """fairseq's iterator, whose position is taken up only for the batches that it was counted in.

    With another number of processes the batches stay the same, each process taking every so-many-th: as many are
    skipped as all of them had together, rounded down. Otherwise the epoch begins again, which is logged.

    Args:
        iterator: made by fairseq; not to be used any more.
        dataset: of its batches.
        options: those that decide on batches, by name, for the log.
    """

    def __init__(self, iterator: EpochBatchIterator, dataset: DistillationDataset, options: dict):
        vars(self).update(vars(iterator))
        self.options = options
        self.origin = {CORPUS: corpus_origin(dataset.manifest), SEED: self.seed, BATCHES: _digest(self.frozen_batches)}

    def state_dict(self) -> dict:
        return super().state_dict() | {ORIGIN: self.origin | self.options | {WORKERS: self.num_shards}}

    def load_state_dict(self, state_dict: dict) -> None:
        rank, world_size = rank_and_world_size()
        outcome = [self._position(state_dict) if rank == 0 else None]
        if world_size > 1:  # files may be read on one machine and not on another, but all must go on alike
            dist.broadcast_object_list(outcome)
        position, said = outcome[0]
        if said and rank == 0:
            logger.warning(said)
        super().load_state_dict(state_dict | {"iterations_in_epoch": position})

    def _position(self, state: dict) -> tuple[int, str | None]:
        """Return the batches of the epoch that each process skips, and what there is to say of it."""
        done, origin = state.get("iterations_in_epoch", 0), state.get(ORIGIN)
        if not done:
            return 0, None
        now, epoch = {WORKERS: self.num_shards}, f"epoch {state['epoch']}"
        if origin is None and done < math.ceil(len(self.frozen_batches) / self.num_shards):
            return done, None  # of a version that recorded no origin
        differing = differences(origin, self.origin)
        had = origin[WORKERS] if not differing else 0
        if not differing and had == self.num_shards:
            return done, None
        if not differing and not self.grouped_shuffling:  # which forms groups of as many batches
            position = done * had // self.num_shards
            return position, (
                f"{epoch} goes on after {position * self.num_shards} of its {len(self.frozen_batches)} batches: "
                f"{differences(origin, now)[0]}"
            )
        reasons = differences(origin, self.origin | self.options | now)
        reasons = [reason for reason in reasons if not reason.startswith(BATCHES) or len(reasons) == 1]
        return 0, (
            f"{epoch} begins again: the checkpoint's position, after {done} batches of each process, is of "
            f"{', '.join(reasons)}; give the same options to go on from there"
        )


def batch_options(task: DictConfig, given: Mapping) -> dict:
    """Return the options that decide on a run's batches, by name.

    Args:
        task: the task's options.
        given: keyword arguments of ``get_batch_iterator``.
    """
    batches = {"dataset.batch_size": given.get("max_sentences"), "dataset.max_tokens": given.get("max_tokens")}
    return batches | {f"task.{name}": task[name] for name in ("max_sample_size", "min_sample_size")}


def _digest(batches: tuple) -> str:
    """Return what identifies a list of batches of utterance numbers, in its order."""
    sizes = np.array([len(batch) for batch in batches], dtype=np.int64)
    numbers = np.concatenate([np.asarray(batch, dtype=np.int64) for batch in batches])
    return hashlib.sha256(sizes.tobytes() + numbers.tobytes()).hexdigest()[:16]
