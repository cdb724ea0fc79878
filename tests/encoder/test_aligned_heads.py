"""Heads made up to a multiple of 8 attend as fairseq's own, and reach the kernel in half precision on a GPU alone."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.encoder import aligned_heads
from fairseq_star.encoder.aligned_heads import AlignedAttention, aligned_attention
from fairseq_star.models.starhubert import StarHubertConfig, StarHubertModel
from tests.support import tiny
from tests.support.fake_gpu import HotPath, gpu, on_gpu


def attention_of(width, heads, dropout=0.0):
    torch.manual_seed(0)
    return MultiheadAttention(width, heads, self_attention=True, dropout=dropout).double()


def inputs(width, lengths):
    torch.manual_seed(1)
    x = torch.randn(max(lengths), len(lengths), width, dtype=torch.float64, requires_grad=True)
    return x, torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]


@given(
    sizes=st.sampled_from([(54, 1), (12, 2), (24, 3), (34, 2), (16, 2), (7, 1)]),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
)
@settings(max_examples=25, derandomize=True)
def test_value_and_gradient_are_fairseqs(sizes, lengths):
    attention = attention_of(*sizes)
    x, padding_mask = inputs(sizes[0], lengths)
    expected = attention(x, x, x, key_padding_mask=padding_mask, need_weights=False)[0]
    found = aligned_attention(attention, x, padding_mask)
    valid = ~padding_mask.T
    torch.testing.assert_close(found[valid], expected[valid])
    weights = torch.randn(x.shape, dtype=torch.float64)
    leaves = [x, *attention.parameters()]
    pairs = (torch.autograd.grad((out * weights)[valid].sum(), leaves) for out in (found, expected))
    for mine, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_dropout_is_of_the_weights_in_training_alone():
    attention = attention_of(12, 2, dropout=0.5)
    x, padding_mask = inputs(12, [9, 4])
    with mock.patch.object(F, "scaled_dot_product_attention", side_effect=F.scaled_dot_product_attention) as called:
        aligned_attention(attention.train(), x, padding_mask)
        aligned_attention(attention.eval(), x, padding_mask)
    assert [call.kwargs["dropout_p"] for call in called.call_args_list] == [0.5, 0.0]


def test_an_encoder_keeps_its_weights_their_names_and_on_a_cpu_its_every_bit():
    config = StarHubertConfig(**{**tiny.STUDENT, "encoder_embed_dim": 36})
    torch.manual_seed(0)
    model = StarHubertModel(config).eval()
    with mock.patch("fairseq_star.encoder.modules.align_heads"):
        torch.manual_seed(0)
        plain = StarHubertModel(config).eval()
    assert {type(layer.self_attn) for layer in model.encoder.layers} == {AlignedAttention}
    assert {type(layer.self_attn) for layer in plain.encoder.layers} == {MultiheadAttention}
    weights, theirs = model.state_dict(), plain.state_dict()
    assert list(weights) == list(theirs)
    assert all(torch.equal(weights[name], theirs[name]) for name in weights)
    source, padding_mask = torch.randn(2, 9000), torch.arange(9000) >= torch.tensor([9000, 5000])[:, None]
    with torch.no_grad():
        pairs = zip(*(one(source, padding_mask=padding_mask).hidden_states for one in (model, plain)), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "autocast", "float32"])
@pytest.mark.parametrize("ragged", [True, False])
def test_what_reaches_the_kernel(precision, ragged):
    """Heads of 54, made up to 56 where torch would leave its fast kernels: in half precision, with a mask."""
    dtype = torch.float32 if precision == "autocast" else getattr(torch, precision)
    with gpu():
        student = StarHubertModel(StarHubertConfig(encoder_layers=1, padded_group_norm=False)).eval()
        on_gpu(student, dtype)
        mask = torch.zeros(2, 99, dtype=torch.bool, device="cuda") if ragged else None
        attention = student.encoder.layers[0].self_attn
        x = torch.empty(99, 2, 432, dtype=dtype, device="cuda")
        with (
            torch.autocast("cuda", enabled=precision == "autocast", dtype=torch.float16),
            mock.patch.object(F, "scaled_dot_product_attention", side_effect=F.scaled_dot_product_attention) as called,
            HotPath(),
        ):
            out, _ = attention(x, x, x, key_padding_mask=mask, need_weights=False)
        assert out.shape == x.shape
        (query, *_), options = called.call_args
        made_up = ragged and precision != "float32"
        assert query.shape[-1] == (56 if made_up else 54)
        if made_up:
            assert query.dtype in (torch.float16, torch.bfloat16)
            assert options["attn_mask"].dtype == query.dtype
            assert options["scale"] == pytest.approx(54**-0.5)


def test_the_rule_is_about_half_precision_on_a_gpu():
    with gpu():
        for dtype, expected in [(torch.float32, False), (torch.float16, True), (torch.bfloat16, True)]:
            assert aligned_heads.in_half_on_gpu(torch.empty(1, dtype=dtype, device="cuda")) == expected
            assert not aligned_heads.in_half_on_gpu(torch.empty(1, dtype=dtype))
