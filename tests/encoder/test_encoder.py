"""Teacher and student: sizes, parity with fairseq's own forward, and independence of the batch."""

import pytest
import torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task
from fairseq.modules import MultiheadAttention

from fairseq_star.errors import StarError
from fairseq_star.formats import load_teacher
from fairseq_star.models.starhubert import (
    StarHubertConfig,
    StarHubertLargeConfig,
    StarHubertModel,
    StarHubertSmallConfig,
    StarHubertStreamConfig,
    StarHubertXSmallConfig,
)
from tests.support import tiny
from tests.support.tiny import ragged


def student(seed: int = 0, **overrides) -> StarHubertModel:
    torch.manual_seed(seed)
    return StarHubertModel(StarHubertConfig(**{**tiny.STUDENT, "padded_group_norm": False, **overrides})).eval()


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (StarHubertConfig, 22_308_592),
        (StarHubertLargeConfig, 26_630_752),
        (StarHubertSmallConfig, 14_114_800),
        (StarHubertXSmallConfig, 9_388_912),
        (StarHubertStreamConfig, 22_308_592),
    ],
)
def test_parameter_counts(config, parameters):
    model = StarHubertModel(config(padded_group_norm=False))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.post_extract_proj is None


def test_a_projection_where_widths_differ():
    model = student(encoder_embed_dim=24, conv_feature_layers=tiny.TEACHER_CONV)
    assert model.post_extract_proj.weight.shape == (24, 16)
    assert model(ragged([4000])).hidden_states[-1].shape[-1] == 24


@pytest.mark.parametrize(
    "override",
    [
        {"encoder_attention_heads": 3},
        {"conv_pos_groups": 5},
        {"encoder_layers": 0},
        {"dropout": 1.0},
        {"conv_feature_layers": "import os"},
    ],
)
def test_impossible_students_are_refused_by_option(override):
    with pytest.raises(StarError, match=next(iter(override))):
        student(**override)


@pytest.mark.parametrize("layer_norm_first", [False, True])
def test_teacher_is_fairseqs_hubert(tmp_path, layer_norm_first):
    mode = "layer_norm" if layer_norm_first else "default"
    path = tiny.write_teacher(tmp_path / "t.pt", layer_norm_first=layer_norm_first, extractor_mode=mode)
    [hubert], _, _ = load_model_ensemble_and_task([str(path)])
    hubert.eval()
    teacher = load_teacher(str(path))
    source = ragged([6000, 6000])
    states = teacher(source, [6000, 6000]).hidden_states
    with torch.no_grad():
        for layer in (1, 2, 3):
            expected, _ = hubert.extract_features(source, mask=False, output_layer=layer)
            torch.testing.assert_close(states[layer], expected, rtol=1e-5, atol=1e-5)


def test_option_restores_fairseqs_padded_group_norm(teacher_path):
    [hubert], _, _ = load_model_ensemble_and_task([str(teacher_path)])
    hubert.eval()
    samples, source = [6000, 3990], ragged([6000, 3990])
    # The frame masks of fairseq (view/all) and of the convolution formula agree on these lengths.
    padding_mask = torch.arange(6000) >= torch.tensor(samples)[:, None]
    with torch.no_grad():
        expected, mask = hubert.extract_features(source, padding_mask=padding_mask, mask=False)
    padded = load_teacher(str(teacher_path), valid_group_norm=False)(source, samples)
    own = load_teacher(str(teacher_path))(source, samples)
    assert torch.equal(mask, padded.frames.padding_mask)
    torch.testing.assert_close(padded.hidden_states[-1][~mask], expected[~mask], rtol=1e-5, atol=1e-5)
    assert (own.hidden_states[-1][~mask] - expected[~mask]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["teacher", "student"])
@pytest.mark.parametrize("total", [9000, 25_000])
def test_an_utterance_does_not_depend_on_its_batch(kind, total, teacher_path):
    model = load_teacher(str(teacher_path)) if kind == "teacher" else student()
    samples = [9000, 7321, 400, 5119]
    source = ragged(samples, total)

    def encode(audio, num_samples):
        if kind == "teacher":
            return model(audio, num_samples)
        padding_mask = torch.arange(audio.size(1)) >= torch.tensor(num_samples)[:, None]
        return model(audio, padding_mask=padding_mask)

    batch = encode(source, samples)
    noisy = source.clone()
    noisy[torch.arange(total) >= torch.tensor(samples)[:, None]] = 7.0  # what lies in the padding must not matter
    batch_of_noisy = encode(noisy, samples)
    for utterance, num_samples in enumerate(samples):
        alone = encode(source[utterance : utterance + 1, :num_samples], [num_samples])
        frames = alone.frames.frame_lengths[0]
        assert batch.frames.frame_lengths[utterance] == frames
        for got, noisy_got, expected in zip(
            batch.hidden_states, batch_of_noisy.hidden_states, alone.hidden_states, strict=True
        ):
            torch.testing.assert_close(got[utterance, :frames], expected[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(noisy_got[utterance, :frames], expected[0], rtol=1e-4, atol=1e-5)


def test_group_norm_gradient_is_that_of_the_utterance_alone():
    model = student()
    samples = [5000, 3000]
    model(ragged(samples), padding_mask=torch.arange(5000) >= torch.tensor(samples)[:, None]).hidden_states[-1][
        1, :8
    ].sum().backward()
    batched = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model(ragged(samples)[1:, :3000]).hidden_states[-1][0, :8].sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(batched[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_attention_maps_are_those_the_layers_use(teacher_path):
    teacher = load_teacher(str(teacher_path))
    samples = [6000, 4000]
    encoding = teacher(ragged(samples), samples, attention_layers=[1, 3])
    assert sorted(encoding.attention_maps) == [1, 3]
    mask = encoding.frames.padding_mask
    for number, attention_map in encoding.attention_maps.items():
        layer = teacher.model.encoder.layers[number - 1]
        x = encoding.hidden_states[number - 1].transpose(0, 1)
        theirs = MultiheadAttention(x.size(-1), layer.self_attn.num_heads, self_attention=True).eval()
        theirs.load_state_dict(layer.self_attn.state_dict())
        _, expected = theirs(x, x, x, key_padding_mask=mask, need_weights=True)
        torch.testing.assert_close(attention_map, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(attention_map.sum(-1), torch.ones_like(attention_map[..., 0]))
        assert attention_map[1][:, mask[1]].abs().max() == 0


def test_teacher_stops_after_the_last_layer_asked_for(teacher_path):
    assert len(load_teacher(str(teacher_path))(ragged([4000]), [4000], last_layer=2).hidden_states) == 3


def test_teacher_is_frozen_and_stays_in_eval_mode(tmp_path):
    teacher = load_teacher(
        str(tiny.write_teacher(tmp_path / "t.pt", dropout=0.5, encoder_layerdrop=0.9, dropout_input=0.5))
    )
    teacher.train()
    source = ragged([4000])
    first, second = teacher(source, [4000]), teacher(source, [4000])
    assert len(first.hidden_states) == 4
    assert torch.equal(first.hidden_states[-1], second.hidden_states[-1])
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_teacher_follows_the_run(teacher_path):
    teacher = load_teacher(str(teacher_path))
    source = ragged([4000]).to(torch.bfloat16)
    teacher.follow(source)
    assert teacher(source, [4000]).hidden_states[-1].dtype == torch.bfloat16
    teacher.follow(source, dtype=torch.float32)
    assert teacher(source, [4000]).hidden_states[-1].dtype == torch.float32


def test_fairseqs_feature_interface():
    model = student()
    source = ragged([6000, 4000])
    padding_mask = torch.arange(6000) >= torch.tensor([6000, 4000])[:, None]
    encoding = model(source, padding_mask=padding_mask)
    last, mask = model.extract_features(source, padding_mask, mask=False)
    second, _ = model.extract_features(source, padding_mask, output_layer=2)
    assert torch.equal(last, encoding.hidden_states[-1])
    assert torch.equal(second, encoding.hidden_states[2])
    assert torch.equal(mask, encoding.frames.padding_mask)
    with pytest.raises(StarError, match="mask=False"):
        model.extract_features(source, mask=True)
