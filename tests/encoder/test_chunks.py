"""Students that hear in chunks: attention against its definition, what a frame knows, padding, neighbours."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.encoder import running_norm
from fairseq_star.encoder.chunks import Chunks, chunked_positions, naive_attend
from fairseq_star.encoder.frames import Frames
from fairseq_star.encoder.running_norm import measure_statistics
from fairseq_star.errors import StarError
from fairseq_star.models.starhubert import (
    StarHubertConfig,
    StarHubertModel,
    StarHubertStreamConfig,
    StarHubertStreamModel,
)
from tests.support import tiny

FEW = settings(max_examples=40, deadline=None)
CONTEXTS = [(16, 128, 0), (4, 7, 0), (3, 5, 2), (8, 0, 9), (0, 5, 2)]


def student(chunk: int, left: int, right: int, **overrides) -> StarHubertModel:
    torch.manual_seed(0)
    options = {**tiny.STUDENT, **tiny.NO_DROPOUT, "padded_group_norm": False, "chunk_frames": [chunk], **overrides}
    return StarHubertStreamModel(
        StarHubertStreamConfig(**options, left_context_frames=left, right_context_frames=right)
    ).eval()


def encode(model: StarHubertModel, source: torch.Tensor, num_samples: list[int], **options):
    return model.encode(source, Frames.of(model.geometry, num_samples, source), **options)


@st.composite
def layouts(draw) -> Chunks:
    lengths = draw(st.lists(st.integers(1, 150), min_size=1, max_size=3))
    total = max(lengths) + draw(st.integers(0, 5))
    padding = torch.arange(total) >= torch.tensor(lengths)[:, None]
    size, left, right = draw(st.integers(1, 80)), draw(st.integers(0, 90)), draw(st.integers(0, 9))
    return Chunks(size, left, right, total, padding if padding.any() else None, torch.device("cpu"))


@FEW
@given(layouts())
def test_blocks_attend_as_the_definition_says(chunks):
    batch = 2 if chunks.padding_mask is None else len(chunks.padding_mask)
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 2, chunks.num_frames + chunks.num_copies, 3)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    expected = naive_attend(chunks, *inputs)
    got = chunks.attend(*inputs)
    assert got.isfinite().all()
    got = got * chunks.valid()[:, None, :, None]
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    for ours, theirs in zip(*(torch.autograd.grad((out * weights).sum(), inputs) for out in (got, expected))):  # noqa: B905
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_heads_made_up_for_a_gpu_give_the_same(monkeypatch):
    chunks = Chunks(3, 5, 2, 20, None, torch.device("cpu"))
    inputs = torch.randn(3, 2, 2, 20 + chunks.num_copies, 6, generator=torch.Generator().manual_seed(0))
    plain = chunks.attend(*inputs)
    monkeypatch.setattr("fairseq_star.encoder.attention.in_half_on_gpu", lambda query: True)
    padded = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention",
        lambda query, *rest, **options: padded.append(query.size(-1)) or attend(query, *rest, **options),
    )  # fmt: skip
    torch.testing.assert_close(chunks.attend(*inputs), plain)
    assert padded == [8]


@FEW
@given(layouts())
def test_the_dense_mask_is_that_of_the_blocks(chunks):
    batch = 1 if chunks.padding_mask is None else len(chunks.padding_mask)
    shape = (batch, 1, chunks.num_frames + chunks.num_copies, 4)
    query, key, value = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = (query @ key.transpose(2, 3) / 2).masked_fill(~chunks.visible()[:, None], float("-inf"))
    dense = logits.softmax(-1) @ value
    own = chunks.valid()[:, None, :, None]
    torch.testing.assert_close(dense * own, naive_attend(chunks, query, key, value))


@pytest.mark.parametrize(("chunk", "left", "right"), CONTEXTS)
@pytest.mark.parametrize("layer_norm_first", [False, True])
def test_a_frame_knows_nothing_past_its_look_ahead(chunk, left, right, layer_norm_first):
    model = student(chunk, left, right, layer_norm_first=layer_norm_first)
    source, changed_from = tiny.ragged([40_000]), 21_000
    other = source.clone()
    other[:, changed_from:] += 1
    states, changed = (encode(model, audio, [40_000]).hidden_states for audio in (source, other))
    first_hearing = (changed_from - model.geometry.receptive_field) // model.geometry.downsample_rate + 1
    # Frames of chunks that end, their look-ahead too, before the first frame that hears a changed sample.
    unchanged = 0 if not chunk else max(first_hearing - right, 0) // chunk * chunk
    for state, of_other in zip(states, changed, strict=True):
        assert torch.equal(state[:, :unchanged], of_other[:, :unchanged])
    for state, of_other in zip(states[1:], changed[1:], strict=True):
        assert not torch.equal(state[:, unchanged], of_other[:, unchanged])


def test_left_context_is_bounded(monkeypatch):
    """But for the first norm's, whose statistics go back to the beginning: here they are the corpus's alone."""
    monkeypatch.setattr(running_norm, "PRIOR", 10**12)
    model = student(4, 8, 0, conv_pos=4)
    source, chunks, layers = tiny.ragged([40_000]), 10, 3
    other = source.clone()
    other[:, :400] += 1
    states, changed = (encode(model, audio, [40_000]).hidden_states for audio in (source, other))
    reach = 2 + layers * 8  # the positional convolution, then L frames a layer before a frame's chunk
    assert torch.equal(states[-1][:, reach + 4 :], changed[-1][:, reach + 4 :])
    assert not torch.equal(states[-1][:, : 4 * chunks], changed[-1][:, : 4 * chunks])


@pytest.mark.parametrize(("chunk", "left", "right"), CONTEXTS)
def test_an_utterance_does_not_depend_on_its_batch_nor_on_padding(chunk, left, right):
    model, samples, total = student(chunk, left, right), [30_000, 17_321, 400], 35_000
    source = tiny.ragged(samples, total)
    source[torch.arange(total) >= torch.tensor(samples)[:, None]] = 7.0
    batch = encode(model, source, samples, attention_layers=[2])
    assert all(state.isfinite().all() for state in batch.hidden_states)
    for row, num_samples in enumerate(samples):
        alone = encode(model, source[row : row + 1, :num_samples], [num_samples], attention_layers=[2])
        frames = alone.frames.frame_lengths[0]
        for got, expected in zip(batch.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(got[row, :frames], expected[0], rtol=1e-4, atol=1e-5)
        maps = batch.attention_maps[2][row, :frames], alone.attention_maps[2][0]
        torch.testing.assert_close(maps[0][:, :frames], maps[1])
        assert maps[0][:, frames:].sum() == 0


def test_the_gradient_is_that_of_the_utterances_alone():
    model, samples = student(3, 5, 2), [9_000, 5_000]
    source = tiny.ragged(samples)

    def gradient(*batches):
        model.zero_grad()
        for audio, lengths in batches:
            encoding = encode(model, audio, lengths)
            for row, frames in enumerate(encoding.frames.frame_lengths):
                encoding.hidden_states[-1][row, :frames].pow(3).sum().backward(retain_graph=True)
        return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])

    together = gradient((source, samples))
    apart = gradient((source[:1], samples[:1]), (source[1:, :5_000], samples[1:]))
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("chunk", "left", "right"), CONTEXTS)
def test_attention_maps_are_those_the_layers_use(chunk, left, right):
    model = student(chunk, left, right, encoder_attention_heads=1)
    encoding = encode(model, tiny.ragged([9_000]), [9_000], attention_layers=[1])
    weights, layer = encoding.attention_maps[1], model.encoder.layers[0]
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    if right and chunk:
        return  # values of copies are not those of their frames from the second layer on
    x = encoding.hidden_states[0]
    out = layer.self_attn.out_proj(weights @ layer.self_attn.v_proj(x))
    x = layer.self_attn_layer_norm(x + out)
    x = layer.final_layer_norm(x + layer.fc2(layer.activation_fn(layer.fc1(x))))
    torch.testing.assert_close(x, encoding.hidden_states[1], rtol=1e-4, atol=1e-5)


def test_one_chunk_of_everything_is_all_at_once():
    model = student(4, 8, 2)
    source = tiny.ragged([9_000])
    for whole, one_chunk in zip(*(encode(model, source, [9_000], chunk_frames=size).hidden_states for size in (0, 99))):  # noqa: B905
        torch.testing.assert_close(whole, one_chunk, rtol=1e-5, atol=1e-5)
    in_use, fours = (encode(model, source, [9_000], **wanted).hidden_states[-1] for wanted in ({}, {"chunk_frames": 4}))
    assert torch.equal(in_use, fours)


def test_weights_and_their_first_values_are_those_of_a_student_that_hears_all_at_once():
    torch.manual_seed(0)
    plain = StarHubertModel(StarHubertConfig(**tiny.STUDENT, padded_group_norm=False)).state_dict()
    streaming = student(4, 8, 2).state_dict()
    norm = "feature_extractor.conv_layers.0.2."
    assert [key for key in streaming if key not in (f"{norm}mean", f"{norm}variance")] == list(plain)
    assert len(streaming) == len(plain) + 2
    assert all(torch.equal(plain[key], streaming[key]) for key in plain)


def test_a_student_of_whole_utterances_hears_the_same_but_for_its_first_norm(monkeypatch):
    """All at once, and where the statistics of its first norm are the utterance's own, as a group norm's are."""
    monkeypatch.setattr(running_norm, "PRIOR", 10**12)
    torch.manual_seed(0)
    plain, streaming = StarHubertModel(StarHubertConfig(**tiny.STUDENT, padded_group_norm=False)), student(4, 8, 2)
    source = tiny.ragged([9_000])
    measure_statistics(streaming.feature_extractor, source)
    expected, got = encode(plain.eval(), source, [9_000]), encode(streaming, source, [9_000], chunk_frames=0)
    for mine, theirs in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@FEW
@given(layouts(), st.integers(1, 12))
def test_positions_see_no_further_than_their_chunk_hears(chunks, width):
    """Against the convolution of each chunk alone, with all that came before it."""
    torch.manual_seed(0)
    config = {"encoder_embed_dim": 4, "conv_pos": width, "conv_pos_groups": 2, "encoder_attention_heads": 2}
    pos_conv = student(4, 8, 0, **config).encoder.pos_conv.double()
    batch = 2 if chunks.padding_mask is None else len(chunks.padding_mask)
    features = torch.randn(batch, chunks.num_frames, 4, dtype=torch.float64)
    if chunks.padding_mask is not None:
        features = features.masked_fill(chunks.padding_mask[..., None], 0)
    got, valid = chunked_positions(pos_conv, features, chunks), chunks.valid()
    for number in range(chunks.num_chunks):
        first, end = number * chunks.size, min((number + 1) * chunks.size, chunks.num_frames)
        until = min(end + chunks.right, chunks.num_frames)
        expected = pos_conv(features[:, :until].transpose(1, 2)).transpose(1, 2)
        torch.testing.assert_close(got[:, first:end], expected[:, first:end])
        copies = slice(chunks.num_frames + number * chunks.right, None)
        found = got[:, copies][:, : until - end]
        own = valid[:, copies][:, : until - end, None]
        torch.testing.assert_close((found * own).expand(batch, -1, -1), expected[:, end:until] * own)


def test_recomputing_layers_give_the_same():
    source = tiny.ragged([9_000])
    expected = encode(student(3, 5, 2), source, [9_000]).hidden_states[-1]
    recomputing = student(3, 5, 2, checkpoint_activations=True).train()
    assert torch.equal(encode(recomputing, source, [9_000]).hidden_states[-1], expected)


def test_what_a_streaming_student_cannot_be_is_told_by_option():
    for options in [{"extractor_mode": "default"}, {"extractor_mode": "layer_norm"}]:
        with pytest.raises(StarError, match=r"model\.chunk_frames and model\.extractor_mode=running_norm go together"):
            student(4, 8, 0, **options)
    with pytest.raises(StarError, match="go together"):
        StarHubertModel(StarHubertConfig(**tiny.STUDENT, extractor_mode="running_norm", padded_group_norm=False))
    for options in [(-1, 8, 0), (4, -1, 0), (4, 8, -2)]:
        with pytest.raises(StarError, match=r"model\.chunk_frames=\[.*must be 0 or more"):
            student(*options)


@pytest.mark.slow
def test_compiled_layers_give_the_same():
    source, model = tiny.ragged([9_000, 5_000]), student(3, 5, 2)
    expected = encode(model, source, [9_000, 5_000]).hidden_states[-1]
    model.compile_layers()
    torch.testing.assert_close(encode(model, source, [9_000, 5_000]).hidden_states[-1], expected)
    assert not torch._dynamo.utils.counters["graph_break"]
