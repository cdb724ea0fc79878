"""Slicing as a whole. The test that cannot lie: a student as wide as its teacher comes out as the teacher itself."""

import math
from dataclasses import replace

import pytest
import torch

from fairseq_star.errors import StarError
from fairseq_star.slicing import slicer, stream
from fairseq_star.slicing.measures import star_losses
from fairseq_star.slicing.method import DEFAULT, Method
from fairseq_star.slicing.slicer import _Slicer, slice_student
from fairseq_star.slicing.stream import choose_stream, gram_scales
from tests.support import slicing_cases as cases

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")
EXACT = Method(ridge=0, convolution_ridge=0, products=torch.float64)
BY_PARTS = {
    "no scales": replace(EXACT, scale=False),
    "no refit": replace(EXACT, refit=False),
    "by energy": replace(EXACT, greedy=False),
    "uncorrected": replace(EXACT, correct=False),
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """One of ``slicing_cases`` by name, made once."""
    made = {}

    def make(name: str):
        if name not in made:
            if "hf" in name or "wavlm" in name:
                pytest.importorskip("transformers", reason="transformers writes these")
            made[name] = cases.teacher(tmp_path_factory.mktemp("teacher"), name)
        return made[name]

    return make


@pytest.mark.parametrize(("method", "within"), [(EXACT, 1e-4), (DEFAULT, 1e-3)], ids=["exact", "default"])
@pytest.mark.parametrize("name", cases.WHOLE)
def test_a_student_as_wide_as_its_teacher_is_the_teacher(teacher, name, method, within):
    """At every state, on utterances that it was not computed from; the default's ridge pulls to the teacher too, and
    its products are in single precision."""
    theirs = teacher(name)
    student, layers = cases.as_wide(theirs), cases.all_layers(theirs)
    report = slice_student(theirs, student, cases.audio(normalize=theirs.normalize), layers=layers, method=method)
    unheard = cases.audio(3, seed=9, normalize=theirs.normalize)
    assert max(cases.errors(theirs, student, layers, unheard)) < within
    finished = [model.finished(torch.randn(5, theirs.embed_dim, generator=torch.manual_seed(0)))
                for model in (theirs.model, student)]  # fmt: skip
    assert torch.allclose(*finished, atol=1e-3), "a pre-norm encoder's final norm"
    assert max(report.unexplained) < 1e-8
    assert (report.at_zero, report.left_out, report.layers) == ([], [], layers)
    assert report.scale == pytest.approx((1, 1), abs=1e-4)


@pytest.mark.parametrize("method", BY_PARTS.values(), ids=BY_PARTS)
@pytest.mark.parametrize("name", ["hubert", "hubert large"])
def test_so_it_does_with_any_step_left_out(teacher, name, method):
    theirs = teacher(name)
    student, layers = cases.as_wide(theirs), cases.all_layers(theirs)
    slice_student(theirs, student, cases.audio(normalize=theirs.normalize), layers=layers, method=method)
    assert max(cases.errors(theirs, student, layers, cases.audio(3, 9, theirs.normalize))) < 1e-4


@pytest.mark.parametrize("name", cases.PARTS)
def test_what_a_student_cannot_have_of_its_teacher_is_told_and_the_rest_is_sliced(teacher, name):
    theirs = teacher(name)
    student, layers = cases.as_wide(theirs), cases.all_layers(theirs)
    sources = cases.audio(normalize=theirs.normalize)
    unheard = cases.audio(3, seed=9, normalize=theirs.normalize)
    random, zero = star_losses(theirs.model, student, unheard, layers)
    report = slice_student(theirs, student, sources, layers=layers)
    loss, again = star_losses(theirs.model, student, unheard, layers)
    assert again == zero
    assert math.isfinite(loss)
    assert loss < min(random, zero)
    assert all(map(math.isfinite, report.unexplained))
    assert all(weight.isfinite().all() for weight in student.state_dict().values())
    if "wavlm" in name:
        assert (report.at_zero, report.left_out) == ([], ["relative position bias"])
        assert max(cases.errors(theirs, student, layers, unheard)) < 5e-2, "all but the bias, small with random weights"
    if "data2vec" in name:
        assert (len(report.at_zero), report.left_out) == (1, [])
        assert "positional convolution (the teacher has a stack of them)" in report.at_zero[0]
        assert student.positions(torch.randn(1, 30, 24), None).abs().max() == 0
        assert student.encoder.pos_conv[0].weight_v.abs().max() > 0, "else it would never learn"


def test_another_width_of_positions_begins_at_zero():
    theirs = cases.base()
    student = cases.drawn(replace(cases.config(), conv_pos=8))
    report = slice_student(theirs, student, cases.audio(), layers=[1, 2])
    assert report.at_zero == ["positional convolution (the teacher's is 16 frames wide)"]
    assert student.positions(torch.randn(1, 30, 24), None).abs().max() == 0


NARROW = {
    "post-norm": ({}, {"embed_dim": 16, "ffn_embed_dim": 24}),
    "pre-norm": (
        {"layer_norm_first": True, "extractor_mode": "layer_norm", "conv_bias": True},
        {"embed_dim": 16, "ffn_embed_dim": 24},
    ),
}


def narrow(teacher, **sizes):
    """A student of these sizes, its convolutions of 8 channels but for the last two."""
    layers = [one._replace(channels=8) for one in teacher.config.conv_layers[:-2]] + teacher.config.conv_layers[-2:]
    return cases.drawn(replace(teacher.config, conv_layers=layers, **sizes))


@pytest.mark.parametrize("kind", NARROW)
def test_a_narrower_student_is_nearer_than_a_random_one_and_the_report_is_of_what_it_is(kind):
    settings, sizes = NARROW[kind]
    theirs = cases.base(**settings)
    student, sources = narrow(theirs, **sizes), cases.audio()
    random, zero = star_losses(theirs.model, student, sources, [1, 2])
    report = slice_student(theirs, student, sources, layers=[1, 2])
    loss, _ = star_losses(theirs.model, student, sources, [1, 2])
    assert loss < 0.5 * min(random, zero)
    assert all(0 < share < 1 for share in report.unexplained), report.unexplained
    assert report.utterances == len(sources)
    assert report.seconds_of_audio == pytest.approx(sum(map(len, sources)) / 16_000)
    assert 0.25 <= report.scale[0] <= report.scale[1] <= 4
    assert report.wall_seconds > 0


@pytest.mark.parametrize("left_out", ["refit", "correct", "greedy", "scale"])
def test_every_step_of_the_method_changes_the_student(left_out):
    theirs = cases.base()
    weights = []
    for method in (DEFAULT, replace(DEFAULT, **{left_out: False})):
        student = narrow(theirs, embed_dim=16, ffn_embed_dim=24)
        slice_student(theirs, student, cases.audio(), layers=[1, 2], method=method)
        weights.append(torch.cat([value.flatten() for value in student.state_dict().values()]))
    assert not torch.equal(*weights)


def test_what_is_reported_is_measured_by_another_way():
    """Share of the kept channels' variance, the student run as whoever uses it runs it; without scales, so that the
    kept channels are the teacher's own."""
    theirs, sources = cases.base(), cases.audio()
    student = narrow(theirs, embed_dim=16, ffn_embed_dim=24)
    report = slice_student(theirs, student, sources, layers=[1, 2], method=replace(DEFAULT, scale=False))
    assert report.scale == (1, 1)
    pairs = list(cases.state_pairs(theirs.model, student, sources, [1, 2]))
    channels = choose_stream([a for a, _ in pairs], 16, 4, scaled=False).channels
    for number, share in enumerate(report.unexplained):
        wanted = torch.cat([a[number][:, channels] for a, _ in pairs]).double()
        given = torch.cat([b[number] for _, b in pairs]).double()
        expected = (wanted - given).square().sum() / (wanted - wanted.mean(0)).square().sum()
        assert share == pytest.approx(expected.item(), rel=1e-3)


def test_states_have_the_scales_that_their_gram_matrices_ask_for(monkeypatch):
    """Of a post-norm encoder: as the student computes its states, no channel would be scaled once more; the report has
    the scales of all steps together."""
    theirs, sources, steps = cases.base(), cases.audio(), []
    student = narrow(theirs, embed_dim=16, ffn_embed_dim=24)
    for module in (stream, slicer):
        monkeypatch.setattr(module, "gram_scales", lambda pairs: steps.append(gram_scales(pairs)) or steps[-1])
    report = slice_student(theirs, student, sources, layers=[1, 2])
    assert len(steps) == 1 + 3, "all states together, then each"
    assert all((scale > stream.SCALES[0]).all() and (scale < stream.SCALES[1]).all() for scale in steps[1:])
    assert all((scale - 1).abs().max() > 1e-2 for scale in steps)
    whole = torch.stack(steps).prod(0)
    assert report.scale == pytest.approx((whole.min().item(), whole.max().item()), rel=1e-5)
    states = list(cases.state_pairs(theirs.model, student, sources, [1, 2]))
    for number in range(3):
        again = gram_scales([(a[number], b[number]) for a, b in states])
        assert (again - 1).abs().max() < 1e-3


def test_the_same_again_and_nothing_of_the_caller_changes():
    """Bit for bit, whatever the student's first weights, global random state and mode; the teacher stays as it was."""
    theirs, sources = cases.base(), cases.audio()
    before = {key: value.clone() for key, value in theirs.state_dict().items()}
    one, two = (narrow(theirs, embed_dim=16, ffn_embed_dim=24) for _ in range(2))
    two.load_state_dict({key: value + 1 for key, value in two.state_dict().items()})
    torch.manual_seed(3)
    state = torch.get_rng_state()
    slice_student(theirs, one, sources, layers=[1, 2])
    assert torch.equal(torch.get_rng_state(), state)
    two.train()
    slice_student(theirs, two, sources, layers=[1, 2])
    assert two.training
    assert not one.training
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key]), key
        assert value.requires_grad is False
    assert all(parameter.requires_grad for parameter in two.parameters())
    assert all(torch.equal(value, before[key]) for key, value in theirs.state_dict().items())


def test_a_streaming_student_hears_in_its_chunks_again_and_has_statistics():
    theirs, sources = cases.base(), cases.audio()
    student = cases.drawn(replace(theirs.config, extractor_mode="running_norm", chunk_frames=(4, 0),
                                  left_context_frames=7, embed_dim=16))  # fmt: skip
    slice_student(theirs, student, sources, layers=[1, 2])
    assert student.chunk_frames == 4
    norm = student.feature_extractor.conv_layers[0][2]
    values = torch.cat([student.feature_extractor.conv_layers[0][0](source[None]) for source in sources], dim=1)
    assert torch.allclose(norm.mean, values.mean(1), atol=1e-6)
    assert torch.allclose(norm.variance, values.var(1, unbiased=False), rtol=1e-4)


# Of four layers the first two, say, are one of the student's.
HALF_DEPTH = {"post-norm": {}, "pre-norm": {"layer_norm_first": True}}


def barely(teacher, number: int):
    """Make a layer of the teacher add next to nothing, so that the other of its pair is the one to take."""
    layer = teacher.model.encoder.layers[number - 1]
    for part in (layer.self_attn.out_proj, layer.fc2):
        part.weight.mul_(1e-3)
        part.bias.mul_(1e-3)


@pytest.mark.parametrize("weak", [(1, 4), (2, 3), (1, 3)])
@pytest.mark.parametrize("kind", HALF_DEPTH)
def test_of_two_layers_the_one_that_explains_more_is_taken(kind, weak):
    theirs = cases.base(depth=4, **HALF_DEPTH[kind])
    for number in weak:
        barely(theirs, number)
    student = cases.drawn(replace(theirs.config, num_layers=2))
    report = slice_student(theirs, student, cases.audio(), layers=[2, 4])
    assert report.layers == [number for number in range(1, 5) if number not in weak]
    assert max(report.unexplained) < 2e-3


def test_the_layer_taken_leaves_less_than_the_other_would(monkeypatch):
    """With the choice turned round, the first pair's state is further off."""
    theirs, sources = cases.base(depth=4), cases.audio()
    kept = {}
    for sign in (1, -1):
        student = narrow(theirs, num_layers=2, embed_dim=16, ffn_embed_dim=24)
        own = _Slicer._left
        with monkeypatch.context() as patch:
            patch.setattr(_Slicer, "_left", lambda self, states, sign=sign, own=own: sign * own(self, states))
            kept[sign] = slice_student(theirs, student, sources, layers=[2, 4])
    assert kept[1].layers != kept[-1].layers
    assert kept[1].layers[0] != kept[-1].layers[0]
    assert kept[1].unexplained[1] < -kept[-1].unexplained[1]


def test_the_choice_alone_decides_not_its_order():
    """The weights kept are those of the layer taken, also where it was the first one tried."""
    theirs = cases.base(depth=2)
    barely(theirs, 2)
    student = cases.drawn(replace(theirs.config, num_layers=1))
    report = slice_student(theirs, student, cases.audio(), layers=[2])
    assert report.layers == [1]
    assert torch.allclose(student.encoder.layers[0].fc1.weight, theirs.model.encoder.layers[0].fc1.weight, atol=1e-4)


def test_a_student_that_does_not_fit_is_refused():
    with pytest.raises(StarError, match=r"model\.encoder_embed_dim=48 must be at most the teacher's 24"):
        slice_student(cases.base(), cases.drawn(cases.config(embed_dim=48)), cases.audio(1), layers=[1, 2])
