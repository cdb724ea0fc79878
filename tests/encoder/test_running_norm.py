"""The norm of what was received so far: against its definition, where it begins, and students of before it."""

import os

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.checkpoint import read_checkpoint
from fairseq_star.encoder.running_norm import (
    BLOCK_STEPS,
    PRIOR,
    QUIET,
    SILENT,
    Past,
    RecentNorm,
    RunningNorm,
    measure_statistics,
)
from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks import first_weights
from fairseq_star.fairseq_hooks.first_weights import MEASURED, begin_first_norm
from fairseq_star.formats import load_student
from fairseq_star.manifest import ManifestEntry, read_manifest, write_manifest
from fairseq_star.models.starhubert import StarHubertStreamConfig, StarHubertStreamModel
from fairseq_star.runtime import host
from tests.support import tiny
from tests.support.convert_cases import STREAM as STREAMING
from tests.support.convert_cases import write_checkpoint
from tests.support.steps import build

STREAM = {"extractor_mode": "running_norm", "chunk_frames": [4, 0]}


def student() -> StarHubertStreamModel:
    torch.manual_seed(0)
    return StarHubertStreamModel(StarHubertStreamConfig(**tiny.STUDENT, padded_group_norm=False))


def statistics(model) -> tuple[torch.Tensor, torch.Tensor]:
    norm = model.feature_extractor.conv_layers[0][2]
    return norm.mean, norm.variance


@given(st.lists(st.integers(0, 3_000), max_size=4))
def test_statistics_are_those_of_all_frames_together(lengths):
    model, audio = student(), [torch.randn(length) for length in lengths]
    convolution = model.feature_extractor.conv_layers[0][0]
    width = convolution.kernel_size[0]
    frames = [convolution(one[None, None])[0] for one in audio if len(one) >= width]
    together = torch.cat([torch.zeros(convolution.out_channels, 0), *frames], dim=1).double()
    assert measure_statistics(model.feature_extractor, audio) == together.size(1)
    mean, variance = statistics(model)
    if together.size(1) < 2:
        assert torch.equal(mean, torch.zeros_like(mean))
        assert torch.equal(variance, torch.ones_like(variance))
        return
    torch.testing.assert_close(mean.double(), together.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variance.double(), together.var(1, correction=0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16])
def test_normalizes_as_it_says_in_each_precision(precision):
    norm, x = filled(RunningNorm(3, step=4)), 1 + torch.randn(2, 3, 50)
    expected = by_hand(norm, x)
    torch.testing.assert_close(norm.to(precision)(x.to(precision)).float(), expected, rtol=3e-2, atol=3e-2)
    assert norm(x.to(precision)).dtype == precision


@given(st.integers(1, 7), st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 40))
def test_a_stream_goes_on_where_it_was(step, steps_of_pieces, rest):
    """In pieces of whole steps, with the frames after them that a window hears too: value and gradient."""
    norm = filled(RunningNorm(3, step)).double()
    total = sum(steps_of_pieces) * step + rest + 1
    x = torch.randn(2, 3, total, dtype=torch.float64, requires_grad=True)
    whole, got = norm(x), []
    torch.testing.assert_close(whole, by_hand(norm, x), rtol=1e-5, atol=1e-5)
    heard, past, start = torch.zeros(2, 2, 3), torch.zeros(2).long(), 0
    for number in steps_of_pieces:
        out, before = norm.go_on(x[..., start : start + number * step + rest + 1], heard, past)
        got.append(out[..., : number * step])
        torch.testing.assert_close(out, whole[..., start : start + out.size(2)], rtol=1e-5, atol=1e-5)
        heard, past, start = before[..., number], past + number, start + number * step
    got = torch.cat([*got, out[..., number * step :]], dim=2)
    weights = torch.randn_like(x)
    for mine, theirs in zip(*(torch.autograd.grad((y * weights).sum(), x) for y in (got, whole)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def filled(norm: RunningNorm) -> RunningNorm:
    with torch.no_grad():
        for value, of in ((norm.mean, -0.2), (norm.variance, 0.3), (norm.weight, 1.5), (norm.bias, 0.1)):
            value.fill_(of)
    return norm


def by_hand(norm: RunningNorm, x: torch.Tensor) -> torch.Tensor:
    """Frame by frame: statistics of the steps that ended before it, and of the corpus as so many more."""
    out, prior = torch.empty_like(x), PRIOR * norm.step
    for frame in range(x.size(2)):
        before = x[..., : frame // norm.step * norm.step]
        count = prior + before.size(2)
        mean = (before.sum(2) + prior * norm.mean) / count
        square = (before.square().sum(2) + prior * (norm.variance + norm.mean.square())) / count
        out[..., frame] = (x[..., frame] - mean) / (square - mean.square() + norm.eps).sqrt() * norm.weight + norm.bias
    return out


@st.composite
def recordings(draw) -> torch.Tensor:
    """Two utterances, 2 x 3 x T, of loud, quiet and silent stretches."""
    sizes = draw(st.lists(st.integers(1, 400), min_size=1, max_size=4))
    levels = [draw(st.sampled_from([0.0, 1e-4, 0.03, 1.0, 20.0])) for _ in sizes]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    parts = [level * (0.3 + torch.randn(2, 3, size, generator=generator)) for size, level in zip(sizes, levels)]  # noqa: B905
    return torch.cat(parts, dim=2).double()


def recent_by_hand(norm: RecentNorm, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What :class:`RecentNorm` is defined as, step by step, and the energy of all whole steps."""
    corpus = torch.stack([norm.mean, norm.variance + norm.mean.square()])  # 2 x C
    out, energies = torch.empty_like(x), torch.zeros(len(x), x.size(2) // norm.step)
    for row, utterance in enumerate(x):
        sums, total, squares = torch.zeros(2, x.size(1)).double(), 0.0, 0.0
        for start in range(0, x.size(2), norm.step):
            frames = utterance[:, start : start + norm.step]
            prior = PRIOR * (squares / (total + SILENT) + SILENT)
            level = float(sums[1].detach().sum() / (corpus[1].sum() * (total + SILENT)))
            gain = min(max(level, QUIET), 1.0) ** (total / (total + prior))
            scaled = torch.stack([corpus[0] * gain**0.5, corpus[1] * gain])
            mean, square = (sums + prior * scaled) / (total + prior)
            deviation = ((square - mean.square()).clamp(min=0) + norm.eps).sqrt()
            out[row, :, start : start + norm.step] = (frames - mean[:, None]) / deviation[:, None] * norm.weight[
                :, None
            ] + norm.bias[:, None]
            if frames.size(1) == norm.step:
                moments = torch.stack([frames.mean(1), frames.square().mean(1)]).detach()
                energy = float(moments[1].sum() / corpus[1].sum())
                energies[row, start // norm.step] = energy
                moments = torch.stack([frames.mean(1), frames.square().mean(1)])
                weight, kept = energy / (energy + QUIET) * (energy >= SILENT), np.exp(-1 / norm.context)
                sums, total = kept * sums + weight * moments, kept * total + weight
                squares = kept * squares + weight**2
    return out, energies


@settings(deadline=None, max_examples=40)
@given(recordings(), st.integers(1, 7), st.integers(1, 200), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_recent_statistics_are_as_defined_whole_and_in_pieces(x, step, context, steps_of_pieces):
    norm = filled(RecentNorm(3, step, context)).double()
    expected, energies = recent_by_hand(norm, x)
    past = Past()
    whole = norm(x, past)
    torch.testing.assert_close(whole, expected, rtol=2e-4, atol=2e-4)
    num_steps = (x.size(2) - 1) // step
    torch.testing.assert_close(past.energy, energies[:, :num_steps], rtol=1e-5, atol=0)
    heard, start, got = torch.zeros(2, 4, 3), 0, []
    for number in [*steps_of_pieces, None]:
        end = None if number is None else start + number * step + 1
        if end is not None and end >= x.size(2):
            continue
        out, sums = norm.go_on(x[..., start:end], heard, torch.zeros(2).long())
        got.append(out if number is None else out[..., :-1])
        heard, start = sums[..., -1], start + (number or 0) * step
    torch.testing.assert_close(torch.cat(got, dim=2), whole, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_recent_statistics_is_that_of_the_definition():
    norm, generator = filled(RecentNorm(3, 2, 9)).double(), torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 2 * BLOCK_STEPS + 60, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    mine, theirs = (torch.autograd.grad((out * weights).sum(), x)[0] for out in (norm(x), recent_by_hand(norm, x)[0]))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [0.0, 1e-4])
def test_after_a_pause_the_statistics_are_a_streams_first(level):
    norm, x = filled(RecentNorm(3, 4, 100)), 1 + torch.randn(1, 3, 800)
    pause = level * torch.randn(1, 3, 4 * 50 * 60)
    after = norm(torch.cat([pause, x], dim=2))[..., pause.size(2) :]
    torch.testing.assert_close(after, norm(x), rtol=1e-4, atol=1e-4)
    before = RunningNorm(3, 4)
    assert (before(torch.cat([pause, x], dim=2))[..., pause.size(2) :] - before(x)).abs().max() > 1


def test_a_checkpoint_without_the_option_remembers_all_so_far(tmp_path):
    """The option's recipe value must not change a student that was trained without it."""
    path = write_checkpoint(tmp_path / "s.pt", STREAMING, **tiny.STUDENT)
    state = read_checkpoint(str(path), "checkpoint")
    del state["cfg"]["model"]["norm_context_frames"]
    torch.save(state, path)
    student = load_student(path)
    assert student.config.norm_context_frames == 0
    assert type(student.model.feature_extractor.conv_layers[0][2]) is RunningNorm


def test_a_quiet_recording_is_raised_to_the_level_of_speech():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 4 * 200)
    recent, running = (norm(0.1 * x)[..., 400:].std() for norm in (RecentNorm(3, 4, 100), RunningNorm(3, 4)))
    assert 0.7 < recent < 1.1
    assert recent > 2 * running


def test_a_run_measures_its_own_corpus_and_again_the_same(corpus, teacher_path):
    first, again = (build(corpus, teacher_path, model=STREAM)[1] for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(statistics(first), statistics(again), strict=True))
    root, entries = read_manifest(corpus / "train.tsv")
    assert len(entries) <= MEASURED
    audio = [torch.from_numpy(soundfile.read(f"{root}/{entry.path}", dtype="float32")[0]) for entry in entries]
    measure_statistics(again.feature_extractor, audio)
    for mine, theirs in zip(statistics(first), statistics(again), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert not torch.equal(statistics(first)[1], torch.ones_like(statistics(first)[1]))


def test_the_convolutions_that_measure_do_not_unbound_the_memory_of_those_that_train(corpus, monkeypatch):
    """oneDNN reads how much it may keep when the first of a process runs."""
    name, found = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", []
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(first_weights, "measure_statistics", lambda *_: found.append(os.environ.get(name)) or 0)
    begin_first_norm(student(), str(corpus / "train.tsv"), max_sample_size=None, seed=1)
    assert found == [str(host.PRIMITIVES)]


def test_what_cannot_be_read_is_left_to_the_check_of_the_manifest(tmp_path):
    """Neither does a manifest that is not there: a finished student brings its statistics."""
    audio = np.random.default_rng(0).standard_normal(8_000).astype(np.float32) / 10
    soundfile.write(tmp_path / "a.wav", audio, 16_000, subtype="FLOAT")
    (tmp_path / "b.wav").write_bytes(b"no audio")
    soundfile.write(tmp_path / "d.wav", np.append(audio[1:], np.float32("nan")), 16_000, subtype="FLOAT")
    write_manifest(
        tmp_path / "train.tsv", tmp_path, [ManifestEntry(name, 8_000) for name in ("a.wav", "b.wav", "c.wav", "d.wav")]
    )
    measured, expected, untouched = student(), student(), student()
    begin_first_norm(measured, str(tmp_path / "train.tsv"), max_sample_size=None, seed=1)
    measure_statistics(expected.feature_extractor, [torch.from_numpy(audio)])
    assert all(torch.equal(*pair) for pair in zip(statistics(measured), statistics(expected), strict=True))
    begin_first_norm(measured, str(tmp_path / "train.tsv"), max_sample_size=4_000, seed=1)
    # The last sample of d.wav, its only nan, is not heard.
    heard = [torch.from_numpy(samples[:4_000]) for samples in (audio, audio[1:])]
    measure_statistics(expected.feature_extractor, heard)
    for mine, theirs in zip(statistics(measured), statistics(expected), strict=True):
        torch.testing.assert_close(mine, theirs)
    begin_first_norm(untouched, str(tmp_path / "other.tsv"), max_sample_size=None, seed=1)
    assert torch.equal(statistics(untouched)[0], torch.zeros_like(statistics(untouched)[0]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"extractor_mode": "layer_norm"}, "as they were before 29 November 2026; train it again with running_norm"),
        ({"chunk_frames": None}, "extractor_mode.*default or layer_norm, as chunk_frames is not given"),
    ],
)
def test_students_of_another_kind_are_refused_in_a_sentence(tmp_path, changed, message):
    path = write_checkpoint(tmp_path / "s.pt", STREAMING, **tiny.STUDENT)
    state = read_checkpoint(str(path), "checkpoint")
    state["cfg"]["model"] |= changed | {"_name": "starhubert"}
    torch.save(state, path)
    with pytest.raises(StarError, match=message):
        load_student(path)
