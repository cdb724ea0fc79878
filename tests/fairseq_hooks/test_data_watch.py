"""Data workers that die or hang: the run ends in one line, however they do it."""

import time

import pytest
import torch
from fairseq.data.iterators import EpochBatchIterator

from fairseq_star.fairseq_hooks.data_watch import WatchedIterator, watch
from tests.support.runs import TRAIN, hydra_arguments, start

# Workers that do something to their third batch; the queue they hand batches over through is their loop's.
BEFORE = """
import os, signal, struct, sys, time
from torch.utils.data import get_worker_info
from fairseq_star.fairseq_hooks import data_watch
from fairseq_star.data.dataset import DistillationDataset
from fairseq_star.tasks.registration import register_all
register_all()
data_watch.WARN_AFTER, data_watch.PATIENCE = 2.0, {patience}
collate, collated = DistillationDataset.collater, []
def collater(self, samples):
    collated.append(len(samples))
    if len(collated) == 3 and get_worker_info() is not None:
        {fault}
    return collate(self, samples)
DistillationDataset.collater = collater
"""
HALF = """frame = sys._getframe()
        while "data_queue" not in frame.f_locals: frame = frame.f_back
        time.sleep(1)  # until what it handed over before is written
        os.write(frame.f_locals["data_queue"]._writer.fileno(), struct.pack("!i", 100_000) + bytes(50))
        os.kill(os.getpid(), signal.SIGKILL)"""
DIED = "a data worker died (DataLoader worker (pid"
FAULTS = {
    "dies in the middle of a batch": (HALF, DIED),
    "dies": ("os.kill(os.getpid(), signal.SIGKILL)", DIED),
    "leaves": ("os._exit(0)", DIED),
    "hangs": ("time.sleep(1000)", "no batch has come for 0 minutes, though all data workers are alive"),
    "is stopped": ("os.kill(os.getpid(), signal.SIGSTOP)", "no batch has come for 0 minutes"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_run_ends_in_one_line_when_a_worker(name, corpus, teacher_path, tmp_path):
    fault, told = FAULTS[name]
    options = ["dataset.num_workers=1", "dataset.batch_size=1", "dataset.disable_validation=true"]
    arguments = hydra_arguments(corpus, teacher_path, tmp_path / "run", *options)
    before = BEFORE.format(fault=fault, patience=4.0 if "no batch" in told else 600.0)
    begun = time.monotonic()
    process = start([before + part if part == TRAIN else part for part in arguments])
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 1, stdout
    [line] = [line for line in stderr.splitlines() if line.startswith("fairseq-star: ")]
    assert told in line
    assert "The same command resumes the run" in line
    assert "Traceback" not in stderr
    assert time.monotonic() - begun < 100


def test_the_same_epochs_of_a_run_are_watched_once():
    """fairseq hands out one iterator for all epochs, and the task watches what it is handed."""
    numbers = torch.utils.data.TensorDataset(torch.arange(3))
    epochs = EpochBatchIterator(numbers, collate_fn=list, batch_sampler=[[0], [1], [2]])
    for _ in range(3):
        watch(epochs)
    batches = epochs.next_epoch_itr(shuffle=False)._itr
    assert isinstance(batches, WatchedIterator)
    assert not isinstance(batches._batches, WatchedIterator)
    assert [int(number) for ((number,),) in batches] == [0, 1, 2]
