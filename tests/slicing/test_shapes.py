"""Which students fit a teacher, and the largest that keeps to a budget: properties of any teacher and any budget."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fairseq_star.encoder.config import HUBERT_BASE, EncoderConfig
from fairseq_star.encoder.frames import ConvLayer
from fairseq_star.encoder.macs import SUPERB_UTTERANCES, encoder_macs
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.errors import StarError
from fairseq_star.slicing import shapes
from fairseq_star.slicing.shapes import (
    MULTIPLE,
    as_student,
    check_fits,
    count_parameters,
    student_shape,
    superb_macs,
)
from tests.support import slicing_cases as cases

KERNELS = [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]


@st.composite
def configs(draw, least: int = 1) -> EncoderConfig:
    """A teacher's or a student's shape; convolutions as HuBERT's in kernels, of any channels."""
    heads, groups = draw(st.sampled_from([1, 2, 3, 4])), draw(st.sampled_from([1, 2, 4]))
    width = 12 * draw(st.integers(least, 8))
    channels = draw(st.lists(st.integers(least, 12).map(lambda n: 8 * n), min_size=7, max_size=7))
    if draw(st.booleans()):  # no projection
        channels[-1] = width
    layers = [ConvLayer(one, *kernel) for one, kernel in zip(channels, KERNELS, strict=True)]
    return EncoderConfig(
        conv_layers=layers, embed_dim=width, ffn_embed_dim=8 * draw(st.integers(least, 40)),
        num_layers=draw(st.integers(1, 3)), num_heads=heads, conv_pos=draw(st.sampled_from([1, 5, 16])),
        conv_pos_groups=groups, extractor_mode=draw(st.sampled_from(["default", "layer_norm"])),
        conv_bias=draw(st.booleans()), layer_norm_first=draw(st.booleans()), projection=channels[-1] != width,
    )  # fmt: skip


@settings(max_examples=25)
@given(config=configs())
def test_parameters_are_those_of_the_encoder(config):
    model = SpeechEncoder(config).to("meta")
    assert count_parameters(config) == sum(parameter.numel() for parameter in model.parameters())


@settings(max_examples=8)
@given(config=configs(), first=st.integers(0, 15))
def test_multiply_accumulates_are_those_that_torch_counts(config, first):
    """Over two of SUPERB's utterances; all 32 take seconds an example."""
    two = SUPERB_UTTERANCES[first::16]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "SUPERB_UTTERANCES", two)
        assert superb_macs(config) == sum(encoder_macs(config, two))


@pytest.mark.slow
@settings(max_examples=3)
@given(config=configs())
def test_they_are_over_all_of_superbs_utterances(config):
    assert superb_macs(config) == sum(encoder_macs(config, SUPERB_UTTERANCES))


def shape_or_refusal(teacher: EncoderConfig, **options) -> tuple[EncoderConfig | None, str]:
    try:
        return student_shape(teacher, **options), ""
    except StarError as error:
        return None, str(error)


@settings(max_examples=60)
@given(teacher=configs(least=2), data=st.data())
def test_a_shape_keeps_to_its_budget_can_be_sliced_and_is_as_large_as_it_can_be(teacher, data):
    budget = {}
    if data.draw(st.booleans()):
        budget["target_params"] = data.draw(st.floats(0.05, 0.99)) * count_parameters(teacher)
    if not budget or data.draw(st.booleans()):
        budget["target_macs"] = data.draw(st.floats(0.05, 0.99)) * superb_macs(teacher)
    depth = data.draw(st.integers(1, teacher.num_layers))

    def keeps(shape: EncoderConfig) -> bool:
        sizes = {"target_params": count_parameters(shape), "target_macs": superb_macs(shape)}
        return all(sizes[name] <= value for name, value in budget.items())

    shape, refusal = shape_or_refusal(teacher, num_layers=depth, **budget)
    if shape is None:
        assert "\n" not in refusal
        assert all(f"model.{name}=" in refusal for name in budget)
        assert ("the teacher is no larger" in refusal) == keeps(replace(teacher, num_layers=depth))
        assert ("even the narrowest student" in refusal) != ("the teacher is no larger" in refusal)
        return
    assert keeps(shape)
    check_fits(teacher, shape)
    assert shape.embed_dim < teacher.embed_dim
    assert shape.num_layers == depth
    assert (shape.embed_dim % shape.num_heads, shape.embed_dim % shape.conv_pos_groups) == (0, 0)
    assert shape.ffn_embed_dim % MULTIPLE == 0
    assert shape.projection == (shape.conv_layers[-1].channels != shape.embed_dim) == teacher.projection
    more = replace(shape, ffn_embed_dim=shape.ffn_embed_dim + MULTIPLE)
    assert more.ffn_embed_dim > teacher.ffn_embed_dim or not keeps(more)
    # What the config makes of fairseq's options, and these of it, is the same: so a run has just this shape.
    assert count_parameters(shape) == sum(parameter.numel() for parameter in SpeechEncoder(shape).parameters())


@settings(max_examples=30)
@given(teacher=configs(least=2), small=st.floats(0.2, 0.9), more=st.floats(1, 2))
def test_a_larger_budget_makes_no_narrower_student(teacher, small, more):
    budgets = sorted([small, min(small * more, 0.95)])
    smaller, larger = (shape_or_refusal(teacher, target_params=b * count_parameters(teacher))[0] for b in budgets)
    assume(smaller is not None)
    assert smaller.embed_dim <= larger.embed_dim


def test_hubert_base_for_the_papers_budget():
    """What the docs and the recipes name."""
    shape = student_shape(HUBERT_BASE, target_params=22.31e6, target_macs=463.5e9)
    assert count_parameters(shape) <= 22.31e6
    assert superb_macs(shape) <= 463.5e9
    assert count_parameters(shape) > 0.98 * 22.31e6 or superb_macs(shape) > 0.98 * 463.5e9
    assert (shape.num_heads, shape.num_layers, shape.conv_pos) == (12, 12, 128)
    assert count_parameters(HUBERT_BASE) == sum(
        parameter.numel() for parameter in SpeechEncoder(HUBERT_BASE).to("meta").parameters()
    )


def test_budgets_that_cannot_be():
    teacher = cases.config()
    with pytest.raises(StarError, match=r"model\.target_params or model\.target_macs: give one"):
        student_shape(teacher)
    with pytest.raises(StarError, match=r"model\.target_params=1e\+09: the teacher is no larger than that"):
        student_shape(teacher, target_params=1e9)
    with pytest.raises(StarError, match=r"target_params=1e\+09 and model\.target_macs=1: even the narrowest"):
        student_shape(teacher, target_params=1e9, target_macs=1)
    with pytest.raises(StarError, match=r"model\.target_params=50: even the narrowest .* or fewer layers"):
        student_shape(teacher, target_params=50)
    with pytest.raises(StarError, match="target_params=nan"):
        student_shape(teacher, target_params=float("nan"))
    with pytest.raises(StarError, match="target_params=-1"):
        student_shape(teacher, target_params=-1)


def test_a_student_as_narrow_as_its_convolutions_has_a_projection_and_is_nowhere_wider():
    teacher = replace(cases.config(), embed_dim=16, conv_pos_groups=2, num_heads=2, ffn_embed_dim=64, projection=True)
    layers = [layer._replace(channels=8) for layer in teacher.conv_layers]
    teacher = replace(teacher, conv_layers=layers)
    shape = student_shape(teacher, target_params=0.6 * count_parameters(teacher))
    assert shape.conv_layers[-1].channels != shape.embed_dim
    check_fits(teacher, shape)


BASE = cases.config()
LAYERS = BASE.conv_layers
MISFITS = {
    "heads": ({"num_heads": 4}, "model.encoder_attention_heads=4 must be the teacher's 2"),
    "groups": ({"conv_pos_groups": 2}, "model.conv_pos_groups=2 must be the teacher's 4"),
    "pre-norm": ({"layer_norm_first": True}, "model.layer_norm_first=True must be the teacher's False"),
    "activation": ({"activation_fn": "relu"}, "model.activation_fn=relu must be the teacher's gelu"),
    "bias": ({"conv_bias": True}, "model.conv_bias=True must be the teacher's False"),
    "norms": ({"extractor_mode": "layer_norm"}, "model.extractor_mode=layer_norm must be the teacher's default"),
    "wider": ({"embed_dim": 32}, "model.encoder_embed_dim=32 must be at most the teacher's 24"),
    "units": ({"ffn_embed_dim": 56}, "model.encoder_ffn_embed_dim=56 must be at most the teacher's 48"),
    "deeper": ({"num_layers": 3}, "model.encoder_layers=3 must be at most the teacher's 2"),
    "kernels": (
        {"conv_layers": [*LAYERS[:-1], ConvLayer(16, 3, 2)]},
        "model.conv_feature_layers=[(16, 10, 5), (16, 3, 2), (16, 3, 2), (16, 3, 2), (16, 3, 2), (16, 2, 2), "
        "(16, 3, 2)] must be of the teacher's kernels and strides",
    ),
    "fewer convolutions": ({"conv_layers": LAYERS[:-1]}, "must be of the teacher's kernels and strides"),
    "channels": ({"conv_layers": [ConvLayer(17, 10, 5), *LAYERS[1:]]}, "must be no wider than the teacher's"),
    "projection": (
        {"embed_dim": 16, "projection": False},
        "the last of model.conv_feature_layers has model.encoder_embed_dim=16 channels, so that no projection follows",
    ),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_is_named_by_its_option(kind):
    changes, message = MISFITS[kind]
    with pytest.raises(StarError) as error:
        check_fits(BASE, replace(BASE, **changes))
    assert str(error.value).startswith("model.init=sliced: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_fits():
    check_fits(BASE, BASE)
    check_fits(BASE, replace(BASE, embed_dim=8, ffn_embed_dim=8, num_layers=1))
    check_fits(BASE, replace(BASE, extractor_mode="running_norm", chunk_frames=(4,)))
    check_fits(replace(BASE, relative_position=(32, 64)), BASE)
    check_fits(replace(BASE, pos_conv_depth=5), BASE)


def test_a_teachers_shape_as_a_students():
    special = replace(BASE, relative_position=(32, 64), pos_conv_depth=5, layer_norm_eps=1e-3, input_norm=False,
                      extractor_mode="running_norm", chunk_frames=(4,))  # fmt: skip
    assert as_student(special) == BASE
