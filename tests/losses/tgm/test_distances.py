"""Distances between Gram matrices: each written out entry by entry, and a new one that is a function and an entry."""

import math

import pytest
import torch

from fairseq_star.losses.tgm import tgm_loss
from fairseq_star.losses.tgm.distances import DISTANCES, Distance, Rows
from tests.support.tgm_cases import assert_same, computed, make_states


def written_out(name, teacher, student, widths):
    """Distance of each row, in loops over entries."""
    found = []
    for p, q in zip(teacher.tolist(), student.tolist(), strict=True):
        if name == "mse":
            found.append(sum((a - b) ** 2 for a, b in zip(p, q, strict=True)))
        elif name == "l1":
            found.append(sum(abs(a - b) for a, b in zip(p, q, strict=True)))
        else:
            p, q = ([math.exp(x / width**0.5) for x in row] for row, width in zip((p, q), widths, strict=True))
            shares = [(a / sum(p), b / sum(q)) for a, b in zip(p, q, strict=True)]
            found.append(sum(a * math.log(a / b) for a, b in shares))
    return found


@pytest.mark.parametrize("name", ["mse", "l1", "kl"])
def test_a_distance_is_its_formula(name):
    assert set(DISTANCES) == {"mse", "l1", "kl"}
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(4, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    rows = DISTANCES[name].of_rows(Rows(teacher, student, 5, 3))
    assert rows.tolist() == pytest.approx(written_out(name, teacher, student, (5, 3)), rel=1e-12)


@pytest.mark.parametrize("path", ["each", "batched"])
def test_a_new_distance_needs_no_more_than_its_function(monkeypatch, path):
    huber = Distance(lambda rows: torch.nn.functional.huber_loss(*rows[:2], reduction="none").sum(-1))
    monkeypatch.setitem(DISTANCES, "huber", huber)
    teacher, student = make_states(200, utterances=3, states=3)
    with computed(path):
        assert_same(teacher, student, [200, 128, 129], "tiled", 1e-10, distance="huber")
        value = tgm_loss(teacher, student, [200, 128, 129], distance="huber").total
    assert (value > 0).all()
