"""What the second look says of states and utterances: each planted fault by its name, nothing of healthy ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.analysis.doctor.layers import check_layers, effective_rank
from fairseq_star.analysis.doctor.sample import Sample, Utterance, level
from fairseq_star.analysis.doctor.utterances import check_loss_now, check_utterances
from fairseq_star.analysis.similarity import tgm_error
from fairseq_star.plots.matrices import tgm
from tests.support import tiny

FRAMES, TEACHER, STUDENT, LAYERS = 400, 32, 24, 4


def states(noise: float = 0.3, seed: int = 0) -> Sample:
    """A teacher's random states that change from layer to layer, and a student's: rotated, cut and with some noise."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    teacher = [randn(FRAMES, TEACHER)]
    for _ in range(LAYERS):
        teacher.append(0.9 * teacher[-1] + 0.45 * randn(FRAMES, TEACHER))
    turned = torch.linalg.qr(randn(TEACHER, TEACHER))[0][:, :STUDENT] * (TEACHER / STUDENT) ** 0.5
    student = [state @ turned + noise * randn(FRAMES, STUDENT) for state in teacher]
    return with_errors(Sample(None, None, [], teacher, student))


def with_errors(sample: Sample) -> Sample:
    pairs = zip(sample.teacher[1:], sample.student[1:], strict=True)
    sample.errors = [[tgm_error(tgm(of), tgm(its)) for of, its in pairs]]
    return sample


def utterances(count: int = 16, **planted: object) -> list[Utterance]:
    usual = [Utterance(f"utt{n}.wav", 100.0 * (1 + 0.05 * (n % 7)), -25.0 - n % 5, 0.5, 0.0) for n in range(count)]
    return [Utterance(**{**vars(usual[0]), "path": "odd.wav", **planted}), *usual[1:]]


@settings(max_examples=15)
@given(noise=st.floats(0, 0.6), seed=st.integers(0, 1000))
def test_no_false_alarm(noise, seed):
    assert list(check_layers(states(noise, seed))) == []
    assert list(check_utterances(Sample(None, None, utterances()))) == []


FAULTS = {
    "layer-does-not-learn": lambda state: 3 * torch.randn(state.shape, generator=torch.Generator().manual_seed(9)),
    "exploding-channels": lambda state: torch.cat([1000 * state[:, :1], state[:, 1:]], 1),
    "dead-channels": lambda state: state * (torch.arange(state.size(1)) % 3 > 0),
    "layer-without-rank": lambda state: state[:, :1] * torch.ones(state.size(1)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_layer_is_named(name):
    sample = states()
    sample.student[2] = FAULTS[name](sample.student[2])
    found = [
        (finding.name, "layer 2 of the student" in finding.sentence) for finding in check_layers(with_errors(sample))
    ]
    assert (name, True) in found
    assert all(is_of_it for _, is_of_it in found)


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("silent-utterances", {"decibels": -95.0}),
        ("clipped-utterances", {"clipped": 0.05, "peak": 1.0}),
        ("samples-out-of-range", {"peak": 12_000.0, "clipped": 0.9}),
        ("loss-outliers", {"loss": 900.0}),
    ],
)
def test_a_planted_utterance_is_listed(name, planted):
    [finding] = check_utterances(Sample(None, None, utterances(**planted)))
    assert finding.name == name
    assert "odd.wav" in finding.sentence


@pytest.mark.parametrize(("logged", "found"), [(None, 0), (100.0, 0), (60.0, 0), (40.0, 1)])
def test_the_loss_of_today_beside_the_logged_one(logged, found):
    assert len(list(check_loss_now(Sample(None, logged, utterances())))) == found


def test_levels(tmp_path):
    path = tiny.write_audio(tmp_path, [0.5]) / "utt000.wav"
    decibels, peak, clipped = level(str(path))
    assert -40 < decibels < -15
    assert 0.1 < peak < 1
    assert clipped == 0


def test_effective_rank():
    basis = torch.linalg.qr(torch.randn(500, 5, generator=torch.Generator().manual_seed(0)))[0]
    assert effective_rank((basis - basis.mean(0)) @ torch.eye(5, 8)) == pytest.approx(5, rel=0.05)
    assert effective_rank(torch.ones(20, 4)) == 0
    assert effective_rank(torch.arange(20.0)[:, None] * torch.ones(4)) == pytest.approx(1)
