"""Convolution specs and frame counts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_star.encoder.frames import FrameGeometry, Frames, parse_conv_layers
from fairseq_star.errors import StarError

BASE = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"


def test_spec_of_hubert_base():
    layers = parse_conv_layers(BASE)
    assert layers == [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2
    assert FrameGeometry.of(layers) == FrameGeometry(receptive_field=400, downsample_rate=320)


def test_symbol_for_the_width():
    assert parse_conv_layers("[(8,10,5)] + 2*[(D,1,1)]", width=432) == [(8, 10, 5), (432, 1, 1), (432, 1, 1)]
    with pytest.raises(StarError, match="'D'"):
        parse_conv_layers("[(D,10,5)]")


@pytest.mark.parametrize(
    "spec",
    [
        "__import__('os').system('touch hacked')",
        "[(512,10,5)] * 10**9",
        "[(512,10,5)] * 1000000000",
        "[(512,10)]",
        "[(512,10,0)]",
        "[(512,-10,5)]",
        "[512,10,5]",
        "[]",
        "",
        "(" * 2000,
        "[(512,10,5)",
        "[(512,10,5)] + 3",
        "lambda: 0",
        None,
    ],
)
def test_anything_else_is_refused(spec):
    with pytest.raises(StarError, match="conv_feature_layers"):
        parse_conv_layers(spec)


@given(
    st.lists(st.tuples(st.just(1), st.integers(1, 12), st.integers(1, 6)), min_size=1, max_size=8),
    st.integers(1, 20_000),
)
def test_frame_count_is_that_of_the_convolutions(layers, num_samples):
    frames = num_samples
    for _, kernel, stride in layers:
        frames = max(0, (frames - kernel) // stride + 1) if frames >= kernel else 0
    assert FrameGeometry.of(parse_conv_layers(repr(layers))).num_frames(num_samples) == frames


def test_padding_mask_of_a_ragged_batch():
    geometry = FrameGeometry(400, 320)
    frames = Frames.of(geometry, [400, 1040, 1359], torch.zeros(3, 1360))
    assert frames.frame_lengths == [1, 3, 3]
    assert frames.padding_mask.tolist() == [[False, True, True, True], [False] * 3 + [True], [False] * 3 + [True]]
    assert frames.all_counted().frame_lengths == [4, 4, 4]
    assert Frames.of(geometry, [1360, 1360], torch.zeros(2, 1360)).padding_mask is None


def test_too_short_an_utterance_is_named():
    with pytest.raises(StarError, match="399 samples"):
        Frames.of(FrameGeometry(400, 320), [399], torch.zeros(1, 399))
