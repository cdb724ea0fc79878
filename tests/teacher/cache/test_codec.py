"""Frames in 8 bits: what comes back, what the loss makes of it, how a codec is fitted, measured and kept."""

import multiprocessing
import os
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.encoder.frames import Frames
from fairseq_star.errors import StarError
from fairseq_star.losses.tgm import tgm_loss
from fairseq_star.losses.tgm.naive import loop_tgm_loss
from fairseq_star.teacher.cache.codec import FILE, FOLDER, MOST, Codec, keep_codec, read_codec
from fairseq_star.teacher.cache.codec_fit import compressed, fit_codec, measure
from fairseq_star.teacher.cache.kept_states import PROJECTED_FEATURES
from tests.support.tgm_cases import gradients, make_states, relative_error

WIDTH = 12


def utterance(frames: int, states: int = 3, seed: int = 0, width: int = WIDTH) -> list[torch.Tensor]:
    """Correlated states with an outlier dimension, n x D each."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) * torch.linspace(2, 0.05, width)
    made = [torch.randn(frames, width, generator=generator) @ mixing.T for _ in range(states)]
    for state in made:
        state[:, 3] += 50.0
    return made


def codec_of(dim: int | None, numbers=(0, 1, 2), seeds=range(4)) -> Codec:
    return fit_codec((utterance(60, len(numbers), seed) for seed in seeds), numbers, dim)


def batch(lengths: list[int], states: int = 3) -> tuple[list[torch.Tensor], Frames]:
    """S states B x T x D, padded, with their frames."""
    total = max(lengths) + 2
    padding = torch.arange(total) >= torch.tensor(lengths)[:, None]
    rows = [utterance(total, states, 100 + row) for row in range(len(lengths))]
    return [torch.stack([row[place] for row in rows]) for place in range(states)], Frames([], lengths, padding)


# ------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("dim", [None, 5, WIDTH])
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3), scale=st.sampled_from([1e-6, 1.0, 1e6]))
@settings(max_examples=15, derandomize=True)
def test_coordinates_come_back_within_half_a_step(dim, lengths, scale):
    codec = codec_of(dim)
    states, frames = batch(lengths)
    states = [state * scale for state in states]
    rows = torch.stack([codec.encode(place, state) for place, state in enumerate(states)])
    assert rows.dtype == torch.int8
    assert rows.shape == (3, len(lengths), max(lengths) + 2, codec.row_width)
    back = codec.decode(rows, frames.padding_mask)
    for place, state in enumerate(states):
        exact = state if dim is None else state @ codec.bases[place]
        steps = (exact - codec.offsets[place]) / codec.spreads[place]
        half = steps.abs().amax(-1, keepdim=True) / MOST / 2 * codec.spreads[place]
        error = (back[place] - exact).abs()
        allowed = half * 1.001 + exact.abs() * 1e-5 + codec.offsets[place].abs() * 1e-5
        assert (error <= allowed)[~frames.padding_mask].all()
    assert not back[:, frames.padding_mask].any(), "beyond an utterance's end all is zero"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dim", [None, 5])
def test_what_is_not_finite_is_seen(bad, dim):
    codec = codec_of(dim)
    states, _ = batch([7])
    assert codec.all_finite(codec.encode(1, states[1]))
    states[1][0, 4, 2] = bad
    assert not codec.all_finite(codec.encode(1, states[1]))


def test_a_frame_without_any_deviation_is_its_offset():
    codec = codec_of(None)
    rows = torch.stack([codec.encode(place, offset[None, None]) for place, offset in enumerate(codec.offsets)])
    assert torch.equal(codec.decode(rows)[:, 0, 0], codec.offsets)


# ------------------------------------------------------------------------------------------------ what is given


@pytest.mark.parametrize("distance", ["mse", "l1", "kl"])
@given(data=st.data())
@settings(max_examples=8, derandomize=True)
def test_the_loss_of_what_is_kept_is_that_of_the_states_it_stands_for(distance, data):
    """In float32, value and gradient, to 1e-5, for any widths, numbers of states and lengths."""
    numbers = data.draw(st.sampled_from([(0, 1, 2), (-1, 2), (0, 2, 3, 7)]), label="numbers")
    dim = data.draw(st.integers(1, WIDTH), label="dim")
    lengths = data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=3), label="lengths")
    codec = codec_of(dim, numbers)
    states, frames = batch(lengths, len(numbers))
    states = [state / 10 for state in states]
    rows = torch.stack([codec.encode(place, state) for place, state in enumerate(states)])
    given_states = codec.give(rows, frames, numbers, torch.float32).hidden_states
    coordinates, bases = given_states.coordinates(numbers)
    whole = [given_states.whole(number).double() for number in numbers]
    _, student = make_states(max(lengths) + 2, utterances=len(lengths), dims=(1, 5), states=len(numbers))
    narrow = [state.detach().float().requires_grad_() for state in student]
    expected = loop_tgm_loss(whole, student, lengths, distance=distance)
    actual = tgm_loss(coordinates, narrow, lengths, bases=bases, distance=distance).total
    assert ((actual - expected).abs() <= 1e-5 * expected.abs().clamp(min=1e-3)).all()
    one = torch.ones(len(lengths), dtype=torch.float64)
    wanted = gradients(expected, one, student)
    error = (gradients(actual, one.float(), narrow) - wanted).norm()
    assert error <= (2e-3 if distance == "l1" else 1e-5) * wanted.norm().clamp(min=1e-3)


@pytest.mark.parametrize("dim", [None, 5])
def test_whoever_takes_a_state_gets_it_whole(dim):
    codec = codec_of(dim, (PROJECTED_FEATURES, 0, 4))
    states, frames = batch([9, 4])
    rows = torch.stack([codec.encode(place, state) for place, state in enumerate(states)])
    encoding = codec.give(rows, frames, codec.numbers, torch.float64)
    back = codec.decode(rows, frames.padding_mask).double()
    whole = back if dim is None else back @ codec.bases.mT[:, None].double()
    torch.testing.assert_close(encoding.projected_features, whole[0])
    torch.testing.assert_close(encoding.hidden_states[0], whole[1])
    torch.testing.assert_close(encoding.hidden_states[-1], whole[2])
    assert len(encoding.hidden_states) == 5
    assert encoding.hidden_states[4].shape == (2, 11, WIDTH)
    with pytest.raises(KeyError):
        encoding.hidden_states[1]
    with pytest.raises(IndexError):
        encoding.hidden_states[5]


# ---------------------------------------------------------------------------------------------------- fitting


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5), dim=st.integers(1, WIDTH))
@settings(max_examples=15, derandomize=True)
def test_the_streamed_fit_is_that_of_all_frames_at_once(lengths, dim):
    """Singular vectors of all frames stacked: the reference. Also of fewer frames than coordinates."""
    sample = [utterance(n, 2, seed) for seed, n in enumerate(lengths)]
    codec = fit_codec(iter(sample), (0, 1), dim)
    for place in range(2):
        stacked = torch.cat([states[place] for states in sample]).double()
        energies = torch.linalg.svdvals(stacked).square()
        basis = codec.bases[place].double()
        torch.testing.assert_close(basis.mT @ basis, torch.eye(dim, dtype=torch.float64), atol=1e-5, rtol=0)
        kept = (stacked @ basis).square().sum()
        torch.testing.assert_close(kept, energies[:dim].sum(), rtol=1e-5, atol=0)
        assert codec.about["explained_energy"][place] == pytest.approx(float(kept / energies.sum()), abs=2e-6)
        coordinates = stacked @ basis
        torch.testing.assert_close(codec.offsets[place].double(), coordinates.mean(0), rtol=1e-4, atol=1e-4)
    assert codec.about["sample_frames"] == sum(lengths)
    assert (codec.spreads > 0).all()


def test_an_utterance_that_is_not_finite_is_left_out_and_none_is_refused():
    sample = [utterance(30, 3, seed) for seed in range(3)]
    broken = [state.clone() for state in sample[0]]
    broken[1][2, 2] = float("nan")
    with_it, without = fit_codec([*sample, broken], (0, 1, 2), 4), fit_codec(sample, (0, 1, 2), 4)
    assert with_it.kind == without.kind
    with pytest.raises(StarError, match="not finite"):
        fit_codec([broken], (0, 1, 2), 4)


# --------------------------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("dim", [None, 4, WIDTH])
def test_errors_are_those_of_the_matrices_written_out(dim):
    codec, held_out = codec_of(dim), [utterance(40, 3, seed) for seed in (7, 8)]
    found = measure(codec, held_out)
    expected_own, expected_cross = [], []
    for states in held_out:
        whole = [z[0] for z in compressed(codec, [state[None] for state in states])[0]]
        if dim is not None:
            whole = [z @ basis.mT for z, basis in zip(whole, codec.bases, strict=True)]
        expected_own.append([relative_error(w @ w.mT, x @ x.mT) for w, x in zip(whole, states, strict=True)])
        expected_cross.append(
            [
                relative_error(w @ v.mT, x @ y.mT)
                for (w, v), (x, y) in zip(pairwise(whole), pairwise(states), strict=True)
            ]
        )
    assert found["layerwise"] == pytest.approx(np.mean(expected_own, axis=0), rel=1e-2, abs=1e-5)
    assert found["intra_layer"] == pytest.approx(np.mean(expected_cross, axis=0), rel=1e-2, abs=1e-5)
    assert found["utterances"] == 2


def test_fewer_coordinates_cost_more():
    held_out = [utterance(50, 3, seed) for seed in (7, 8)]
    errors = [measure(codec_of(dim), held_out) for dim in (2, 5, WIDTH)]
    for name in ("layerwise", "intra_layer", "gradient"):
        worst = [max(found[name]) for found in errors]
        assert worst[0] > worst[1] > worst[2] > 0, name


def test_a_single_state_has_no_pairs():
    codec = fit_codec([utterance(40, 1)], (5,), 4)
    found = measure(codec, [utterance(30, 1, 3)])
    assert found["intra_layer"] == found["gradient"] == []
    assert len(found["layerwise"]) == 1


# ------------------------------------------------------------------------------------------------------- files


def folders(tmp_path):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir(exist_ok=True)
    return tmp_path, unfinished


@pytest.mark.parametrize("dim", [None, 5])
def test_a_codec_is_read_as_it_was_written(tmp_path, dim):
    codec = codec_of(dim)
    codec.about["held_out"] = measure(codec, [utterance(20, 3, 5)])
    assert read_codec(tmp_path) is None
    keep_codec(*folders(tmp_path)[:1], codec, folders(tmp_path)[1])
    back = read_codec(tmp_path)
    assert (back.kind, back.numbers, back.about) == (codec.kind, codec.numbers, codec.about)
    assert list((tmp_path / "unfinished").iterdir()) == []


def test_the_first_of_two_writers_is_who_both_go_on_with(tmp_path):
    store, unfinished = folders(tmp_path)
    first, second = codec_of(5), codec_of(5, seeds=range(2, 6))
    assert first.kind != second.kind
    assert keep_codec(store, first, unfinished).kind == first.kind
    assert keep_codec(store, second, unfinished).kind == first.kind
    assert list(unfinished.iterdir()) == []


def _keep(store, unfinished, seed, kinds):
    kinds.put(keep_codec(store, codec_of(5, seeds=[seed]), unfinished).kind)


def test_processes_that_race_end_with_one_codec(tmp_path):
    fork = multiprocessing.get_context("fork")
    kinds = fork.SimpleQueue()
    writers = [fork.Process(target=_keep, args=(*folders(tmp_path), seed, kinds)) for seed in range(4)]
    for writer in writers:
        writer.start()
    found = {kinds.get() for _ in writers}
    for writer in writers:
        writer.join()
    assert found == {read_codec(tmp_path).kind}


def test_every_damage_is_told_or_another_kind(tmp_path):
    """Rows bear their codec's kind: one whose numbers changed unseen would read none of them."""
    codec = codec_of(2)
    store, unfinished = folders(tmp_path)
    keep_codec(store, codec, unfinished)
    path = store / FOLDER / FILE
    whole = path.read_bytes()
    damages = [whole[: len(whole) * part // 8] for part in range(8)]
    damages += [whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :] for at in range(0, len(whole), 29)]
    for damage in damages:
        path.write_bytes(damage)
        try:
            found = read_codec(store)
        except StarError as error:
            told = str(error)
        else:
            told = f"is damaged or cannot be read; remove {store}"
            same = torch.equal(found.bases, codec.bases) and torch.equal(found.offsets, codec.offsets)
            assert (found.kind == codec.kind) == (same and torch.equal(found.spreads, codec.spreads))
        assert re.search(rf"is damaged or cannot be read.*remove {store}", told)


def test_a_folder_that_refuses_is_the_systems_error(tmp_path):
    store, unfinished = folders(tmp_path)
    (store / FOLDER).write_text("a file in its place")
    with pytest.raises((OSError, StarError)):
        keep_codec(store, codec_of(2), unfinished)
    assert os.listdir(unfinished) == []
