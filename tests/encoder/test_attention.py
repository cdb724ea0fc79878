"""Self-attention against fairseq's own and torchaudio's WavLM; heads made up to a multiple of 8 on a GPU alone."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from fairseq.models.wav2vec.wav2vec2 import TransformerSentenceEncoderLayer
from fairseq.modules import MultiheadAttention
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.encoder import attention
from fairseq_star.encoder.attention import SelfAttention, Whole
from fairseq_star.models.starhubert import StarHubertConfig, StarHubertModel
from fairseq_star.runtime.torchaudio_import import import_torchaudio
from tests.support.fake_gpu import HotPath, gpu, on_gpu


def both(width, heads, dropout=0.0) -> tuple[SelfAttention, MultiheadAttention]:
    torch.manual_seed(0)
    theirs = MultiheadAttention(width, heads, self_attention=True, dropout=dropout).double()
    own = SelfAttention(width, heads, width // heads, dropout=dropout).double()
    own.load_state_dict(theirs.state_dict())
    return own, theirs


def inputs(width, lengths):
    torch.manual_seed(1)
    x = torch.randn(max(lengths), len(lengths), width, dtype=torch.float64, requires_grad=True)
    return x, torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("made_up", [False, True])
@given(
    sizes=st.sampled_from([(54, 1), (12, 2), (24, 3), (34, 2), (16, 2), (7, 1)]),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
)
@settings(max_examples=25, derandomize=True)
def test_value_and_gradient_are_fairseqs(made_up, sizes, lengths):
    own, theirs = both(*sizes)
    x, padding_mask = inputs(sizes[0], lengths)
    expected = theirs(x, x, x, key_padding_mask=padding_mask, need_weights=False)[0]
    with mock.patch.object(attention, "in_half_on_gpu", return_value=made_up):
        found = own(x, Whole(padding_mask))
    valid = ~padding_mask.T
    torch.testing.assert_close(found[valid], expected[valid])
    weights = torch.randn(x.shape, dtype=torch.float64)
    pairs = (
        torch.autograd.grad((out * weights)[valid].sum(), [x, *module.parameters()])
        for out, module in ((found, own), (expected, theirs))
    )
    for mine, of_theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, of_theirs)


def test_dropout_is_of_the_weights_in_training_alone():
    own, _ = both(12, 2, dropout=0.5)
    x, padding_mask = inputs(12, [9, 4])
    with mock.patch.object(F, "scaled_dot_product_attention", side_effect=F.scaled_dot_product_attention) as called:
        own.train()(x, Whole(padding_mask))
        own.eval()(x, Whole(padding_mask))
    assert [call.args[4] for call in called.call_args_list] == [0.5, 0.0]


@pytest.mark.parametrize("layer_norm_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_layer_is_fairseqs_in_its_first_weights_and_on_a_cpu_its_every_bit(layer_norm_first, training):
    config = StarHubertConfig(encoder_embed_dim=36, encoder_ffn_embed_dim=40, encoder_attention_heads=4,
                              conv_pos_groups=4, encoder_layers=1, layer_norm_first=layer_norm_first,
                              padded_group_norm=False)  # fmt: skip
    model = StarHubertModel(config).train(training)
    theirs = TransformerSentenceEncoderLayer(36, 40, 4, activation_fn="gelu", layer_norm_first=layer_norm_first)
    [own] = model.encoder.layers
    assert list(own.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(own.state_dict())
    x, padding_mask = torch.randn(40, 2, 36), torch.arange(40) >= torch.tensor([40, 25])[:, None]
    torch.manual_seed(0)
    found = own(x, Whole(padding_mask))
    torch.manual_seed(0)
    expected, _ = theirs.train(training)(x, self_attn_padding_mask=padding_mask)
    assert torch.equal(found, expected)


def test_wavlms_bias_is_torchaudios():
    torch.manual_seed(0)
    import_torchaudio()
    from torchaudio.models.wav2vec2.wavlm_attention import WavLMSelfAttention

    theirs = WavLMSelfAttention(24, 3, has_relative_attention_bias=True, num_buckets=32, max_distance=64)
    torch.manual_seed(0)
    own = SelfAttention(24, 3, 8, relative_position=(32, 64), has_table=True)
    stacked = torch.cat([part.weight for part in (own.q_proj, own.k_proj, own.v_proj)])
    assert torch.equal(stacked, theirs.attention.in_proj_weight), "drawn as torchaudio draws it"
    assert torch.equal(own.relative_attention_bias.weight, theirs.rel_attn_embed.weight)
    assert torch.equal(own.grep_linear.weight, theirs.gru_rel_pos_linear.weight)
    with torch.no_grad():
        own.grep_a.normal_()
        own.out_proj.bias.zero_()  # as both are once first weights are drawn
        theirs.gru_rel_pos_const.copy_(own.grep_a)
    x, padding_mask = torch.randn(150, 2, 24), torch.arange(150) >= torch.tensor([150, 70])[:, None]
    bias = own.position_bias(150)
    assert torch.equal(bias[0], theirs.compute_bias(150, 150))
    added = torch.zeros(padding_mask.shape).masked_fill(padding_mask, float("-inf"))
    expected, _ = theirs(x.transpose(0, 1), added, position_bias=bias)
    torch.testing.assert_close(own(x, Whole(padding_mask), bias), expected.transpose(0, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "autocast", "float32"])
@pytest.mark.parametrize("ragged", [True, False])
def test_what_reaches_the_kernel(precision, ragged):
    """Heads of 54, made up to 56 where torch would leave its fast kernels: in half precision, with a mask."""
    dtype = torch.float32 if precision == "autocast" else getattr(torch, precision)
    with gpu():
        student = StarHubertModel(StarHubertConfig(encoder_layers=1, padded_group_norm=False)).eval()
        on_gpu(student, dtype)
        mask = torch.zeros(2, 99, dtype=torch.bool, device="cuda") if ragged else None
        own = student.encoder.layers[0].self_attn
        x = torch.empty(99, 2, 432, dtype=dtype, device="cuda")
        with (
            torch.autocast("cuda", enabled=precision == "autocast", dtype=torch.float16),
            mock.patch.object(F, "scaled_dot_product_attention", side_effect=F.scaled_dot_product_attention) as called,
            HotPath(),
        ):
            out = own(x, Whole(mask))
        assert out.shape == x.shape
        (query, _, _, mask, *_), options = called.call_args
        made_up = ragged and precision != "float32"
        assert query.shape[-1] == (56 if made_up else 54)
        if made_up:
            assert query.dtype in (torch.float16, torch.bfloat16)
            assert mask.dtype == torch.bool  # which torch turns into the query's type
            assert options["scale"] == pytest.approx(54**-0.5)


def test_the_rule_is_about_half_precision_on_a_gpu():
    with gpu():
        for dtype, expected in [(torch.float32, False), (torch.float16, True), (torch.bfloat16, True)]:
            assert attention.in_half_on_gpu(torch.empty(1, dtype=dtype, device="cuda")) == expected
            assert not attention.in_half_on_gpu(torch.empty(1, dtype=dtype))
