"""Small computations side by side."""

import threading
import time

import pytest
import torch

from fairseq_star.analysis.probe.features import map_on_cores


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_results_are_in_order_each_of_one_thread_several_at_once(three_threads):
    together = threading.Barrier(3, timeout=60)

    def compute(number: int) -> tuple[int, int, bool]:
        together.wait()  # passes only if three are at it
        time.sleep(0.01 * (number % 3))
        return number, torch.get_num_threads(), torch.is_grad_enabled()

    with torch.no_grad():
        assert list(map_on_cores(compute, range(12))) == [(number, 1, True) for number in range(12)]
    assert torch.get_num_threads() == 3


def test_few_items_are_held(three_threads):
    taken = []
    results = map_on_cores(lambda number: number, (taken.append(number) or number for number in range(100)))
    assert next(results) == 0
    assert len(taken) == 4
    assert sum(results) == sum(range(100))


def test_an_error_comes_out_and_ends_it(three_threads):
    begun = []

    def compute(number: int) -> None:
        begun.append(number)
        if number == 1:
            raise ValueError("one")

    with pytest.raises(ValueError, match="one"):
        list(map_on_cores(compute, range(1000)))
    assert len(begun) < 20
    assert torch.get_num_threads() == 3
