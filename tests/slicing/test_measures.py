"""How near a student is to its teacher: STaR's loss and the variance kept, each by another way."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fairseq_star.losses.tgm import tgm_loss
from fairseq_star.slicing.measures import star_losses, state_pairs, variance_kept
from tests.support import slicing_cases as cases
from tests.support.slicing_cases import as_array, regressed


@pytest.fixture(scope="module")
def pair():
    teacher = cases.base(depth=4).model
    return teacher, cases.drawn(replace(teacher.config, embed_dim=12, num_layers=2))


def test_states_are_those_compared(pair):
    teacher, student = pair
    source = cases.audio(1)[0]
    [(theirs, own)] = state_pairs(teacher, student, [source], [2, 4])
    whole = cases.FrozenEncoder(teacher, sample_rate=16_000, normalize=False)(source[None], [len(source)])
    for number, state in zip((0, 2, 4), theirs, strict=True):
        assert torch.equal(state, whole.hidden_states[number][0])
    assert [state.shape[1] for state in own] == [12, 12, 12]


def test_the_loss_is_stars_mean_over_utterances(pair):
    teacher, student = pair
    sources, expected = cases.audio(3), []
    for source in sources:
        [(theirs, own)] = state_pairs(teacher, student, [source], [2, 4])
        theirs, own = ([state[None] for state in states] for states in (theirs, own))
        with torch.no_grad():
            expected.append(
                [float(tgm_loss(theirs, states, None).total) for states in (own, [0 * state for state in own])]
            )
    assert star_losses(teacher, student, sources, [2, 4]) == pytest.approx(np.mean(expected, axis=0), rel=1e-5)


def test_a_copy_of_the_teacher_has_no_loss_and_keeps_all(pair):
    teacher, _ = pair
    loss, zero = star_losses(teacher, teacher, cases.audio(3), [1, 2, 3, 4])
    assert abs(loss) < 1e-6 * zero
    assert variance_kept(teacher, teacher, cases.audio(4), [1, 2, 3, 4]) == pytest.approx(1, abs=1e-3)


def test_variance_kept_is_measured_on_what_was_not_fitted(pair):
    teacher, student = pair
    sources = cases.audio(5)
    with torch.no_grad():
        pairs = list(state_pairs(teacher, student, sources, [2, 4]))
    shares = []
    for number in range(3):
        x, t = (as_array([one[side][number] for one in pairs[::2]]) for side in (1, 0))
        weight, bias = regressed(x, t, 1e-3)
        x, t = (as_array([one[side][number] for one in pairs[1::2]]) for side in (1, 0))
        shares.append(1 - np.square(t - x @ weight.T - bias).sum() / np.square(t - t.mean(0)).sum())
    kept = variance_kept(teacher, student, sources, [2, 4])
    assert kept == pytest.approx(np.mean(shares), rel=1e-4)
    assert kept < 0.99
    assert math.isnan(variance_kept(teacher, student, sources[:1], [2, 4]))
