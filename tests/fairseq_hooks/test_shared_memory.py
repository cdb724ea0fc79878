"""A run whose data workers' batches do not fit into /dev/shm is refused in one line; every other one starts."""

import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq_star.data.dataset import DistillationDataset
from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks import shared_memory
from fairseq_star.fairseq_hooks.shared_memory import check_shared_memory
from tests.support.runs import TRAIN, hydra_arguments, start


def run_of(lengths: list[int], batches: list[list[int]], workers: int, multiple: int = 1, augment: object = None):
    trainer = SimpleNamespace(cfg=SimpleNamespace(dataset=SimpleNamespace(num_workers=workers)))
    dataset = SimpleNamespace(
        sizes=np.array(lengths), max_sample_size=sys.maxsize, pad_to_multiple=multiple, augment=augment
    )
    dataset.padded_samples = partial(DistillationDataset.padded_samples, dataset)
    return trainer, SimpleNamespace(dataset=dataset, frozen_batches=[np.array(batch) for batch in batches])


def refusal(monkeypatch, free: int, *run) -> str | None:
    monkeypatch.setattr(shared_memory.os, "statvfs", lambda path: SimpleNamespace(f_bavail=free // 4096, f_frsize=4096))
    try:
        check_shared_memory(*run)
    except StarError as error:
        return str(error)
    return None


@given(
    lengths=st.lists(st.integers(400, 500_000), min_size=1, max_size=12),
    workers=st.integers(0, 16),
    free=st.integers(0, 10**9),
    multiple=st.sampled_from([1, 320, 16_000]),
)
def test_refused_exactly_where_it_does_not_fit_and_the_named_number_of_workers_fits(lengths, workers, free, multiple):
    batches = [list(range(len(lengths)))[begin : begin + 4] for begin in range(0, len(lengths), 4)]
    padded = [len(batch) * -(-max(lengths[one] for one in batch) // multiple) * multiple for batch in batches]
    needed = 4 * max(padded) * (2 * workers + 1) if workers else 0
    with pytest.MonkeyPatch.context() as patch:
        message = refusal(patch, free, *run_of(lengths, batches, workers, multiple))
        assert (message is not None) == (needed > free // 4096 * 4096)
        if message:
            advised = int(message.rpartition("dataset.num_workers=")[2])
            assert advised < workers
            assert refusal(patch, free, *run_of(lengths, batches, advised, multiple)) is None


def test_two_sources_take_twice_the_room(monkeypatch):
    assert refusal(monkeypatch, 8192 * 4, *run_of([1024], [[0]], 2)) is None
    assert "/dev/shm has 0 MB free" in refusal(monkeypatch, 8192 * 4, *run_of([1024], [[0]], 4, augment=object()))


def test_a_run_says_it_before_its_first_update(corpus, teacher_path, tmp_path):
    before = "import os; from types import SimpleNamespace\n"
    before += "whole = os.statvfs\nsmall = SimpleNamespace(f_bavail=1, f_frsize=4096)\n"
    before += "os.statvfs = lambda path: small if path == '/dev/shm' else whole(path)\n"
    arguments = hydra_arguments(corpus, teacher_path, tmp_path / "run", "dataset.num_workers=2")
    process = start([before + part if part == TRAIN else part for part in arguments])
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "fairseq-star: /dev/shm has" in stderr
    assert "set dataset.num_workers=0" in stderr
    assert not list((tmp_path / "run").glob("*.pt"))
