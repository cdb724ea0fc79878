"""Audio fed in pieces of any size against the student's own hidden states of the whole utterance."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.deploy.attention import joined, joined_by_products
from fairseq_star.deploy.streaming import Streams
from fairseq_star.errors import StarError
from tests.support import convert_cases, tiny

KINDS = {
    "post_norm": {},
    "look_ahead": {"right_context_frames": 2},
    "pre_norm": {"layer_norm_first": True, "left_context_frames": 0, "right_context_frames": 5},
    "recent": {"norm_context_frames": 20, "right_context_frames": 2},
    "projection": {"conv_feature_layers": tiny.TEACHER_CONV, "conv_pos": 1, "left_context_frames": 1},
}
FEW = settings(max_examples=25, deadline=None)
SECOND = 16_000


@pytest.fixture(scope="module", params=list(KINDS))
def student(request, tmp_path_factory):
    return convert_cases.streaming_student(tmp_path_factory.mktemp(request.param), **KINDS[request.param])


def pieces_of(audio: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    """``audio`` cut into pieces of ``sizes`` samples, again and again to its end."""
    pieces, start, number = [], 0, 0
    while start < len(audio):
        pieces.append(audio[start : start + sizes[number % len(sizes)]])
        start, number = start + len(pieces[-1]), number + 1
    return pieces


def whole(student, audio: torch.Tensor, chunk: int) -> torch.Tensor:
    """layers + 1 x frames x D; none for what is shorter than a frame."""
    student.use_chunks(chunk)
    if len(audio) < student.model.geometry.receptive_field:
        return torch.empty(student.config.num_layers + 1, 0, student.config.embed_dim)
    return torch.stack(student.hidden_states([audio], SECOND)[0])


def difference(frames: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest, relative where states exceed 1, as every export's (``Target.difference``)."""
    if not expected.numel():
        return 0.0
    return float((frames - expected).abs().max() / expected.abs().max().clamp(min=1))


def noise(num_samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


@FEW
@given(
    sizes=st.lists(st.integers(1, 5 * SECOND) | st.integers(1, 700), min_size=1, max_size=4),
    num_samples=st.integers(0, 5 * SECOND) | st.integers(0, 3_000),
    chunk=st.sampled_from([3, 4, 16]),
)
def test_fed_in_pieces_every_frame_is_the_offline_students(student, sizes, num_samples, chunk):
    num_samples = min(num_samples, 2_000 * sum(sizes) // len(sizes))  # in a few thousand pieces
    audio, live = noise(num_samples), Streams.of(student, chunk_frames=chunk)
    frames = torch.cat([live.feed([piece])[0] for piece in pieces_of(audio, sizes)] + live.flush(), dim=1)
    expected = whole(student, audio, chunk)
    assert frames.shape == expected.shape
    assert difference(frames, expected) < 1e-5


@st.composite
def with_pauses(draw) -> torch.Tensor:
    """Audio that stretches of zeros and of hiss interrupt."""
    sizes = draw(st.lists(st.integers(1, 12_000), min_size=1, max_size=5))
    levels = [draw(st.sampled_from([0.0, 1e-4, 0.2, 1.0])) for _ in sizes]
    return torch.cat([level * noise(size, size) for size, level in zip(sizes, levels, strict=True)])


@pytest.mark.parametrize(
    "options", [{}, {"right_context_frames": 3}, {"left_context_frames": 0}, {"left_context_frames": 40, "conv_pos": 5}]
)
def test_pauses_are_the_same_live_and_in_whole_utterances(tmp_path, options):
    student = convert_cases.streaming_student(tmp_path, norm_context_frames=15, **options)

    @settings(max_examples=8, deadline=None)
    @given(
        audio=with_pauses(), sizes=st.lists(st.integers(200, 9_000), min_size=1, max_size=4), chunk=st.integers(1, 20)
    )
    def check(audio, sizes, chunk):
        live = Streams.of(student, chunk_frames=chunk)
        frames = torch.cat([live.feed([piece])[0] for piece in pieces_of(audio, sizes)] + live.flush(), dim=1)
        expected = whole(student, audio, chunk)
        assert frames.isfinite().all()
        assert difference(frames, expected) < 1e-5
        one_chunk = whole(student, audio, max(1, frames.size(1)))
        assert difference(one_chunk, whole(student, audio, 0)) < 1e-5

    check()


def test_after_a_pause_a_stream_begins_as_it_begins_anew(tmp_path):
    """After zeros and after a hiss that is silence; statistics of all so far are off by far."""
    audio, off = noise(2 * SECOND), {}
    audio[:400] = 0  # the pause's last frame ends within it
    for context, level in ((20, 0.0), (20, 1e-4), (0, 0.0)):
        student = convert_cases.streaming_student(tmp_path, norm_context_frames=context)
        pause = level * noise(30 * SECOND // (4 * 320) * 4 * 320, seed=1)
        live, fresh = (Streams.of(student, chunk_frames=4) for _ in range(2))
        live.feed([pause])
        got, expected = (torch.cat(each.feed([audio]) + each.flush(), dim=1) for each in (live, fresh))
        off[context, level] = difference(got[:, -expected.size(1) :], expected)
    assert off[20, 0.0] < 1e-5
    assert off[20, 1e-4] < 1e-5
    assert off[0, 0.0] > 0.1


def test_sample_by_sample_each_frame_comes_at_its_look_ahead(student):
    audio, live = noise(6_000), Streams.of(student, chunk_frames=3)
    rate, geometry = live.shape.downsample_rate, student.model.geometry
    wait = round(live.look_ahead * SECOND / 1e3)
    assert wait == (2 + student.config.right_context_frames) * rate + geometry.receptive_field
    came = []
    for number, piece in enumerate(audio.split(1), start=1):
        came += [number] * live.feed([piece])[0].size(1)
    # A chunk's frames come together; its first one waited longest, from the first sample that it hears.
    assert came == [wait + frame // 3 * 3 * rate for frame in range(len(came))]
    assert len(came) + live.flush()[0].size(1) == geometry.num_frames(6_000)


@FEW
@given(
    lengths=st.lists(st.integers(0, SECOND), min_size=2, max_size=4),
    order=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4_000)), min_size=1, max_size=20),
)
def test_streams_are_independent_and_begin_anew(student, lengths, order):
    audios = [noise(length, seed) for seed, length in enumerate(lengths)]
    live = Streams.of(student, chunk_frames=4, num_streams=len(lengths))
    given, fed = [[] for _ in lengths], [0] * len(lengths)
    for number, size in order:  # one stream at a time, the others silent
        number %= len(lengths)
        pieces = [audio[:0] for audio in audios]
        pieces[number] = audios[number][fed[number] : fed[number] + size]
        fed[number] += len(pieces[number])
        for kept, frames in zip(given, live.feed(pieces), strict=True):
            kept.append(frames)
    rest = [audio[at:] for audio, at in zip(audios, fed, strict=True)]
    for kept, frames in zip(given, live.feed(rest), strict=True):
        kept.append(frames)
    # They end one by one, and another utterance begins in the place of each.
    for number, kept in enumerate(given):
        kept += live.flush([number])
        assert difference(torch.cat(kept, 1), whole(student, audios[number], 4)) < 1e-5
    again = [noise(5_000, seed=9)] * len(lengths)
    fresh = [torch.cat(parts, 1) for parts in zip(live.feed(again), live.flush(), strict=True)]
    assert all(difference(frames, whole(student, again[0], 4)) < 1e-5 for frames in fresh)
    live.feed(again)
    live.reset()
    assert all(frames.size(1) == 0 for frames in live.flush())


@FEW
@given(
    streams=st.integers(1, 3),
    num_past=st.integers(0, 9),
    num_new=st.integers(1, 6),
    scale=st.sampled_from([0.1, 1.0, 100.0]),
    data=st.data(),
)
def test_attention_by_products_is_torchs(streams, num_past, num_new, scale, data):
    generator = torch.Generator().manual_seed(num_past + num_new)
    parts = [scale * torch.randn(streams, 2, frames, 5, generator=generator) for frames in (num_past, num_new)]
    past, new = parts
    rows = st.lists(st.booleans(), min_size=num_past + num_new, max_size=num_past + num_new).filter(any)
    mask = torch.tensor([data.draw(rows) for _ in range(streams)])[:, None]
    given_in = new.flip(3), past, past.roll(1, 3), new, new.roll(1, 3), mask
    torch.testing.assert_close(joined_by_products(*given_in), joined(*given_in), atol=1e-5 * scale, rtol=1e-4)


def test_memory_of_a_stream_is_told_and_does_not_grow(student):
    live = Streams.of(student, chunk_frames=4)
    shape, width = live.shape, student.config.embed_dim
    state = (shape.past_features + 2 * 3 * shape.left_context_frames) * width * 4 + 8
    state += (4 if student.config.norm_context_frames else 2) * shape.first_channels * 4
    assert live.state_bytes == state + 4 * shape.window(4)
    for _ in range(3):
        live.feed([noise(SECOND)])
        kept = sum(value.untyped_storage().nbytes() for value in live._state)
        kept += sum(4 * len(piece) for pieces in live._pieces for piece in pieces)
        assert kept <= live.state_bytes


def test_arrays_of_numpy_and_what_cannot_be_fed(student, tmp_path):
    live = Streams.of(student, chunk_frames=4)
    audio = noise(5_000).numpy()
    frames = torch.cat([*live.feed([audio.astype(np.float64)]), *live.flush()], 1)
    assert difference(frames, whole(student, torch.from_numpy(audio), 4)) < 1e-5
    with pytest.raises(StarError, match=r"2 pieces of audio for 1 streams; give one for each"):
        live.feed([audio, audio])
    with pytest.raises(StarError, match=r"audio\[0\] has shape \(5000,\) and type int16"):
        live.feed([audio.astype(np.int16)])
    for options in ({"chunk_frames": 0}, {"num_streams": 0}):
        with pytest.raises(StarError, match="give 1 or more of each"):
            Streams.of(student, **{"chunk_frames": 4, **options})
    with pytest.raises(StarError, match="processes whole utterances only; train one that streams"):
        Streams.of(convert_cases.tiny_student(tmp_path))
    with pytest.raises(StarError, match="takes audio of zero mean and unit variance, and a stream does not have"):
        Streams.of(replace(student, normalize=True), chunk_frames=4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_sample_that_no_recording_has_is_refused_and_the_stream_goes_on(student, value):
    """It would stay in the running norm's statistics, and in the attention of all frames to come."""
    audio = 0.1 * torch.randn(8_000, generator=torch.Generator().manual_seed(0))
    live, other = Streams.of(student, chunk_frames=4), Streams.of(student, chunk_frames=4)
    bad = audio[4_000:].clone()
    bad[7] = value
    frames = live.feed([audio[:4_000]])
    with pytest.raises(StarError, match="no recording has"):
        live.feed([bad])
    frames += live.feed([audio[4_000:]]) + live.flush()
    assert torch.equal(torch.cat(frames, 1), torch.cat(other.feed([audio]) + other.flush(), 1))
    with pytest.raises(StarError, match="no recording has"):
        student.hidden_states([bad], 16_000)
    student.hidden_states([2.0**15 * audio], 16_000)


@pytest.mark.parametrize("value", [float("nan"), 1e30])
@pytest.mark.parametrize("place", [0, 1])
def test_a_piece_that_is_refused_leaves_the_other_streams_as_they_were(student, value, place):
    """The caller gives the pieces again, here as lists: none of them was taken in half."""
    audio = [0.1 * noise(8_000, seed) for seed in (0, 1)]
    live = Streams.of(student, chunk_frames=4, num_streams=2)
    frames = [live.feed([one[:4_000] for one in audio])]
    bad = [one[4_000:].tolist() for one in audio]
    bad[place][7] = value
    with pytest.raises(StarError, match=rf"audio\[{place}\] has a sample of"):
        live.feed(bad)
    frames += [live.feed([one[4_000:].tolist() for one in audio]), live.flush()]
    for number, one in enumerate(audio):
        alone = Streams.of(student, chunk_frames=4)
        expected = torch.cat(alone.feed([one]) + alone.flush(), 1)
        assert difference(torch.cat([given[number] for given in frames], 1), expected) < 1e-5
