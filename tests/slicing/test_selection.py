"""Which channels and units are kept, against choices that recompute a whole least-squares fit for every candidate."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.slicing.moments import Moments
from fairseq_star.slicing.selection import BATCHES, most_explaining, strongest_by_group
from tests.support.slicing_cases import selected_forward


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=30)
@given(groups=st.integers(1, 4), size=st.integers(1, 6), kept=st.integers(1, 6), seed=st.integers(0, 100))
def test_of_each_group_the_strongest(groups, size, kept, seed):
    kept = min(kept, size)
    energy = drawn(groups * size, seed=seed).abs()
    expected = []
    for group in range(groups):
        numbers = sorted(range(group * size, (group + 1) * size), key=lambda number: -energy[number])[:kept]
        expected += sorted(numbers)
    assert strongest_by_group(energy, groups * kept, groups).tolist() == expected


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_forward_selection(seed, width):
    """Candidates that say the same in part, and targets of few of them: single energies would choose others."""
    candidates, count = 12, 5
    x = drawn(300, candidates * width, seed=seed) @ (
        torch.eye(candidates * width) + 0.4 * drawn(candidates * width, candidates * width, seed=seed + 50)
    )
    t = x @ drawn(candidates * width, 4, seed=seed + 100) + drawn(300, 4, seed=seed + 200)
    moments = Moments(x.size(1), t.size(1))
    moments.add(x + 2, t - 1)
    covariance = moments.covariance
    own, cross = covariance[: x.size(1), : x.size(1)], covariance[: x.size(1), x.size(1) :]
    before = own.clone(), cross.clone()
    chosen = most_explaining(own, cross, count, width)
    assert chosen.tolist() == selected_forward(x.numpy(), t.numpy(), count, width)
    assert torch.equal(own, before[0])
    assert torch.equal(cross, before[1])


def test_of_two_that_say_the_same_one_is_chosen():
    x = drawn(200, 6)
    x[:, 1] = x[:, 0] + 1e-3 * x[:, 1]  # each of these two explains more than any other, together no more than one
    t = torch.stack([3 * x[:, 0], x[:, 4], 0.5 * x[:, 5]], dim=1)
    moments = Moments(6, 3)
    moments.add(x, t)
    chosen = most_explaining(moments.covariance[:6, :6], moments.covariance[:6, 6:], 3).tolist()
    assert len({0, 1} & set(chosen)) == 1
    assert {4, 5} < set(chosen)
    energy = moments.covariance[:6, 6:].square().sum(1)
    assert {0, 1} < set(strongest_by_group(energy, 3).tolist())


@settings(max_examples=20)
@given(candidates=st.integers(1, 9), kept=st.integers(1, 9), width=st.integers(1, 3), rank=st.integers(0, 5))
def test_as_many_as_asked_for_none_twice_whatever_the_covariance(candidates, kept, width, rank):
    """Candidates without variance too, and targets that nothing explains."""
    kept = min(kept, candidates)
    x = drawn(20, rank) @ drawn(rank, candidates * width, seed=1)
    moments = Moments(candidates * width, 2)
    moments.add(x, drawn(20, 2, seed=2))
    size = candidates * width
    for cross in (moments.covariance[:size, size:], torch.zeros(size, 2, dtype=torch.float64)):
        own = moments.covariance[:size, :size]
        if rank == 0:  # a matrix of zeros cannot be weighed; a real candidate has some variance
            own = own + torch.eye(size, dtype=torch.float64)
        chosen = most_explaining(own, cross, kept, width).tolist()
        assert chosen == sorted(set(chosen))
        assert len(chosen) == kept
        assert all(0 <= number < candidates for number in chosen)


def test_several_a_step_are_nearly_as_good_as_one():
    """Of 96 and more two are chosen a step: the error stays near that of one at a time, and far below energies'."""
    candidates, count = 160, 2 * BATCHES
    x = drawn(600, 60) @ drawn(60, candidates, seed=1) + 0.3 * drawn(600, candidates, seed=2)
    t = x @ drawn(candidates, 8, seed=3)
    moments = Moments(candidates, 8)
    moments.add(x, t)
    own, cross = moments.covariance[:candidates, :candidates], moments.covariance[:candidates, candidates:]

    def error(chosen: torch.Tensor) -> float:
        design = np.hstack([x[:, chosen], np.ones((600, 1))])
        return float(np.square(t - design @ np.linalg.lstsq(design, t.numpy(), rcond=None)[0]).sum())

    several = error(most_explaining(own, cross, count))
    one = error(most_explaining(own, cross, BATCHES * 2 - 1))  # one a step, and one fewer
    assert several < 1.1 * one
    assert several < error(strongest_by_group(cross.square().sum(1), count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 3])
def test_candidates_and_targets_of_zeros_are_chosen_from_all_the_same(width, dtype):
    """As where all of the sample's frames are alike: nothing explains anything."""
    own, cross = torch.zeros(6 * width, 6 * width, dtype=dtype), torch.zeros(6 * width, 2, dtype=dtype)
    assert len(most_explaining(own, cross, 4, width)) == 4
