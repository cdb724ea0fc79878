"""Data workers that stay from epoch to epoch: the same batches, in each epoch its own."""

import multiprocessing

import pytest
import torch

from tests.support.steps import build

VIEW = {"max_sample_size": 4000, "mask_prob": 0.5, "mask_length": 2}


def epochs(task, split: str, num_workers: int, count: int = 3) -> tuple[list[list[dict]], list[set[int]]]:
    """Batches of the first epochs, and the processes that read each of them."""
    task.load_dataset(split)
    others = _children()
    batches, workers = [], []
    iterator = iterator_over(task, split, num_workers)
    for _ in range(count):
        epoch = iterator.next_epoch_itr(shuffle=False)
        first = next(epoch)
        workers.append(_children() - others)
        batches.append([first, *epoch])
    return batches, workers


def iterator_over(task, split: str, num_workers: int, **options):
    dataset = task.dataset(split)
    return task.get_batch_iterator(dataset, max_sentences=3, num_workers=num_workers, data_buffer_size=2, **options)


def _children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children()}


def equal(some: list[dict], others: list[dict]) -> bool:
    names = ("source", "mask_indices")
    pairs = [(a["net_input"][name], b["net_input"][name]) for a, b in zip(some, others, strict=True) for name in names]
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("stay", [True, False])
def test_each_epoch_has_its_own_crops_and_masks(corpus, teacher_path, stay):
    task, _, _ = build(corpus, teacher_path, persistent_workers=stay, **VIEW)
    found, workers = epochs(task, "train", 2)
    expected, none = epochs(task, "train", 0)
    assert none == [set()] * 3
    assert all(equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not equal(found[0], found[1])
    assert not equal(found[1], found[2])
    assert [len(some) for some in workers] == [2, 2, 2]
    assert (workers[0] == workers[2]) is stay


def test_workers_of_a_validation_end_with_it(corpus, teacher_path):
    task, _, _ = build(corpus, teacher_path, **VIEW)
    task.load_dataset("train")
    _, workers = epochs(task, "valid", 1, count=2)
    assert [len(some) for some in workers] == [1, 1]
    assert workers[0] != workers[1]


def test_a_run_resumed_within_an_epoch_reads_on(corpus, teacher_path):
    task, _, _ = build(corpus, teacher_path, **VIEW)
    expected, _ = epochs(task, "train", 0)
    iterator = iterator_over(task, "train", 1, disable_iterator_cache=True)
    iterator.load_state_dict({"epoch": 2, "iterations_in_epoch": 1, "shuffle": False, "version": 2})
    assert equal(list(iterator.next_epoch_itr(shuffle=False)), expected[1][1:])
    assert equal(list(iterator.next_epoch_itr(shuffle=False)), expected[2])
