"""Check of the shared memory of data workers: a run that would hang in a small ``/dev/shm`` does not start.

torch's data workers write each batch to ``/dev/shm``, of which a container has 64 MB by default. Where it is full a
worker dies of SIGBUS, and fairseq's thread that loads ahead waits for its batch for ever.
"""

import os

from fairseq.data.iterators import EpochBatchIterator

from fairseq_star.data.dataset import PREFETCH_FACTOR
from fairseq_star.errors import StarError

FOLDER = "/dev/shm"
SAMPLE_BYTES = 4  # float32


def check_shared_memory(trainer, batches: EpochBatchIterator) -> None:
    """Compare the most that a run's data workers put into shared memory with the space that is free there.

    Args:
        trainer: of a run that is about to begin.
        batches: of its training set, as fairseq divided it over the ranks.

    Raises:
        StarError: the largest batches do not fit; the message names the folder and the option.
    """
    workers = trainer.cfg.dataset.num_workers
    if not workers or not os.path.isdir(FOLDER):
        return
    dataset = batches.dataset
    sources = 1 if dataset.augment is None else 2  # of the student and of the teacher
    most = max(map(dataset.padded_samples, batches.frozen_batches)) * SAMPLE_BYTES * sources
    found = os.statvfs(FOLDER)
    free, needed = found.f_bavail * found.f_frsize, most * (PREFETCH_FACTOR * workers + 1)
    if needed > free:
        raise StarError(
            f"{FOLDER} has {free / 1e6:,.0f} MB free and dataset.num_workers={workers} needs up to "
            f"{needed / 1e6:,.0f} MB of it, batches of {most / 1e6:,.1f} MB; enlarge it (docker run --shm-size=1g), or "
            f"set dataset.num_workers={max(0, int(free / most - 1) // PREFETCH_FACTOR)}"
        )
