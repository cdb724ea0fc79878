"""Convolutions and projection, against patches written out and numpy's least squares."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fairseq_star.encoder.frames import ConvLayer
from fairseq_star.slicing import front_end
from fairseq_star.slicing.front_end import choose_channels, norm_of, run_block, slice_front_end
from fairseq_star.slicing.method import DEFAULT, Method
from fairseq_star.slicing.stream import Stream
from tests.support import slicing_cases as cases
from tests.support.slicing_cases import as_array, regressed, selected_forward

THEIRS = [ConvLayer(8, 10, 5), ConvLayer(8, 3, 2), ConvLayer(9, 2, 2)]
OWN = [ConvLayer(5, 10, 5), ConvLayer(6, 3, 2), ConvLayer(7, 2, 2)]
KINDS = {"group norm": {}, "layer norms": {"extractor_mode": "layer_norm", "conv_bias": True}}
STREAM = Stream(torch.arange(0, 24, 2), torch.linspace(0.5, 2, 12), 24)
METHOD = Method(convolution_ridge=0.01, ridge=0.05, products=torch.float64)


def patches(x: np.ndarray, taps: int, stride: int) -> np.ndarray:
    """What a convolution sees of ``x`` (C x T'), place by place: channel by channel its taps."""
    places = (x.shape[1] - taps) // stride + 1
    return np.array([[x[channel, place * stride + tap] for channel in range(len(x)) for tap in range(taps)]
                     for place in range(places)])  # fmt: skip


def sources() -> list[torch.Tensor]:
    return [source[: 2000 + 300 * number] for number, source in enumerate(cases.audio(4))]


class FrontEnd:
    """A student's front end, sliced out of its teacher's, and which channels each convolution kept."""

    def __init__(self, kind: str, method: Method = METHOD, count: int = 4):
        self.teacher = cases.base(conv_layers=THEIRS, **KINDS[kind]).model
        for parameter in self.teacher.feature_extractor.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
        self.student = cases.drawn(replace(self.teacher.config, conv_layers=OWN, embed_dim=12))
        self.kept: list[list[int]] = [[0]]
        fit = front_end._fit_convolution

        def keep(theirs, own, inputs, kept, chosen, method):
            assert kept.tolist() == self.kept[-1]
            self.kept.append(chosen.tolist())
            fit(theirs, own, inputs, kept, chosen, method)

        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(front_end, "_fit_convolution", keep)
            self.features = slice_front_end(self.teacher, self.student, sources()[:count], STREAM, method)

    def blocks(self):
        return list(zip(self.teacher.feature_extractor.conv_layers, self.student.feature_extractor.conv_layers,
                        strict=True))  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_each_convolution_is_a_regression_on_the_students_own_inputs(kind):
    """On the teacher's values before norm and activation, of the kept channels; the prior is the teacher's weights."""
    found = FrontEnd(kind)
    pairs = [(source[None], source[None]) for source in sources()]
    (first, own_first), *others = found.blocks()
    chosen = found.kept[1]
    assert torch.equal(own_first[0].weight, first[0].weight[chosen])
    assert kind == "group norm" or torch.equal(own_first[0].bias, first[0].bias[chosen])
    if kind == "group norm":
        assert torch.equal(norm_of(own_first).weight, norm_of(first).weight[chosen])
        assert torch.equal(norm_of(own_first).bias, norm_of(first).bias[chosen])
    pairs = [(run_block(first, a), run_block(own_first, b)) for a, b in pairs]
    for (theirs, own), kept, chosen in zip(others, found.kept[1:], found.kept[2:], strict=False):
        taps, stride = own[0].kernel_size[0], own[0].stride[0]
        x = np.vstack([patches(as_array(b), taps, stride) for _, b in pairs])
        t = np.vstack([
            patches(as_array(a), taps, stride) @ as_array(theirs[0].weight).reshape(len(theirs[0].weight), -1).T
            for a, _ in pairs
        ])[:, chosen]  # fmt: skip
        if theirs[0].bias is not None:
            t = t + as_array(theirs[0].bias)[chosen]
        prior = as_array(theirs[0].weight)[chosen][:, kept].reshape(len(chosen), -1)
        if own[0].bias is not None:
            weight, bias = regressed(x, t, METHOD.convolution_ridge, prior)
            assert np.allclose(as_array(own[0].bias), bias, atol=1e-4)
        else:
            weight, _ = regressed(x, t, METHOD.convolution_ridge, prior)
        found_weight = as_array(own[0].weight).reshape(len(chosen), -1)
        assert np.allclose(found_weight, weight, atol=1e-4 * np.abs(weight).max())
        if kind == "layer norms":
            target = as_array([norm_of(theirs)(theirs[0](a).T)[:, chosen] for a, _ in pairs])
            given = as_array([own[0](b).T for _, b in pairs])
            moved = given - given.mean(1, keepdims=True)
            normalized = moved / np.sqrt(np.square(moved).mean(1, keepdims=True) + 1e-5)
            for channel in range(len(chosen)):
                scale, shift = np.polyfit(normalized[:, channel], target[:, channel], 1)
                assert norm_of(own).weight[channel].item() == pytest.approx(scale, rel=1e-3, abs=1e-4)
                assert norm_of(own).bias[channel].item() == pytest.approx(shift, rel=1e-3, abs=1e-4)
        pairs = [(run_block(theirs, a), run_block(own, b)) for a, b in pairs]

    # The norm after the convolutions is the teacher's, of the kept channels; the projection a regression.
    chosen = found.kept[-1]
    assert torch.equal(found.student.layer_norm.weight, found.teacher.layer_norm.weight[chosen])
    x = as_array([found.student.layer_norm(b.T) for _, b in pairs])
    t = as_array([STREAM.to_student(found.teacher.post_extract_proj(found.teacher.layer_norm(a.T))) for a, _ in pairs])
    prior = as_array(STREAM.rows_of(found.teacher.post_extract_proj.weight))[:, chosen]
    weight, bias = regressed(x, t, METHOD.ridge, prior)
    assert np.allclose(as_array(found.student.post_extract_proj.weight), weight, atol=1e-4)
    assert np.allclose(as_array(found.student.post_extract_proj.bias), bias, atol=1e-4)
    given = x @ weight.T + bias
    assert np.allclose(as_array([b for _, b in found.features]), given, atol=1e-4)
    theirs = [found.teacher.post_extract_proj(found.teacher.layer_norm(a.T)) for a, _ in pairs]
    assert np.allclose(as_array([a for a, _ in found.features]), as_array(theirs), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_channels_kept_are_those_that_what_reads_them_asks_for(kind):
    """The next convolution, and of the last one the projection, which reads it through the norm; all places here."""
    found = FrontEnd(kind, replace(METHOD, rows=10**6))
    blocks, project = found.teacher.feature_extractor.conv_layers, found.teacher.post_extract_proj
    found.teacher.layer_norm.weight.mul_(torch.linspace(0.2, 3, 9))  # so that it matters
    again = cases.drawn(found.student.config)
    kept: list[list[int]] = []
    with pytest.MonkeyPatch.context() as patch:
        fit = front_end._fit_convolution
        patch.setattr(front_end, "_fit_convolution", lambda *given: kept.append(given[4].tolist()) or fit(*given))
        slice_front_end(found.teacher, again, sources(), STREAM, replace(METHOD, rows=10**6))
    states = [source[None] for source in sources()]
    for number, block in enumerate(blocks):
        states = [run_block(block, state) for state in states]
        if number + 1 < len(blocks):
            reader = blocks[number + 1][0]
            taps = reader.kernel_size[0]
            x = np.vstack([patches(as_array(one), taps, reader.stride[0]) for one in states])
        else:
            reader, taps = project, 1
            x = as_array([found.teacher.layer_norm(one.T) for one in states])
        t = x @ as_array(reader.weight).reshape(len(reader.weight), -1).T
        assert kept[number] == selected_forward(x, t, OWN[number].channels, taps)


@torch.no_grad()
def test_without_a_projection_the_last_convolutions_channels_are_the_streams():
    """Of the teacher too: the norm brings the scales in."""
    theirs = [*THEIRS[:2], ConvLayer(24, 2, 2)]
    teacher = cases.base(conv_layers=theirs, projection=False).model
    student = cases.drawn(replace(teacher.config, conv_layers=[*OWN[:2], ConvLayer(12, 2, 2)], embed_dim=12))
    features = slice_front_end(teacher, student, sources(), STREAM, METHOD)
    assert student.post_extract_proj is None
    given = [student.feature_extractor(source[None])[0].T for source in sources()]
    target = as_array([STREAM.to_student(teacher.layer_norm(teacher.feature_extractor(source[None])[0].T))
                       for source in sources()])  # fmt: skip
    x = as_array(given)
    moved = x - x.mean(1, keepdims=True)
    normalized = moved / np.sqrt(np.square(moved).mean(1, keepdims=True) + 1e-5)
    for channel in range(12):
        scale, shift = np.polyfit(normalized[:, channel], target[:, channel], 1)
        assert student.layer_norm.weight[channel].item() == pytest.approx(scale, rel=1e-3, abs=1e-4)
        assert student.layer_norm.bias[channel].item() == pytest.approx(shift, rel=1e-3, abs=1e-4)
    assert np.allclose(as_array([b for _, b in features]), as_array([student.layer_norm(one) for one in given]),
                       atol=1e-5)  # fmt: skip


@torch.no_grad()
def test_not_refitted_rows_and_columns_are_the_teachers():
    found = FrontEnd("layer norms", replace(METHOD, refit=False))
    for number, (theirs, own) in enumerate(found.blocks()):
        rows, columns = found.kept[number + 1], found.kept[number]
        assert torch.equal(own[0].weight, theirs[0].weight[rows][:, columns])
        assert torch.equal(own[0].bias, theirs[0].bias[rows])


@torch.no_grad()
def test_a_refit_is_nearer_to_the_teachers_values():
    """Of the last convolution, which has all errors before it."""
    left = {}
    for refit in (True, False):
        found = FrontEnd("group norm", replace(METHOD, refit=refit, convolution_ridge=1e-4))
        theirs, own = (model.feature_extractor for model in (found.teacher, found.student))
        wanted = torch.cat([theirs(source[None])[0].T[:, found.kept[-1]] for source in sources()])
        given = torch.cat([own(source[None])[0].T for source in sources()])
        left[refit] = float((wanted - given).square().sum() / (wanted - wanted.mean(0)).square().sum())
    assert left[True] < 0.7 * left[False]


@pytest.mark.parametrize("reader", ["convolution", "projection"])
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_channels_are_those_from_which_what_reads_them_is_predicted_best(reader, seed):
    generator = torch.Generator().manual_seed(seed)
    taps, stride = (3, 2) if reader == "convolution" else (1, 1)
    module = nn.Conv1d(8, 5, taps, stride, bias=False) if reader == "convolution" else nn.Linear(8, 5)
    module.weight.normal_(generator=generator)
    mix = torch.randn(8, 8, generator=generator)
    outputs = [mix @ torch.randn(8, frames, generator=generator) + 1 for frames in (40, 60, 33)]
    method = replace(DEFAULT, rows=10**6)  # all places
    x = np.vstack([patches(as_array(one), taps, stride) for one in outputs])
    t = x @ as_array(module.weight).reshape(5, -1).T
    chosen = choose_channels(iter(outputs), module, 4, method)
    assert chosen.tolist() == selected_forward(x, t, 4, taps)

    energy = np.square(x).mean(0) * np.square(as_array(module.weight).reshape(5, -1)).sum(0)
    strongest = np.argsort(energy.reshape(8, taps).sum(1))[-4:]
    assert choose_channels(iter(outputs), module, 4, replace(method, greedy=False)).tolist() == sorted(strongest)


def test_of_a_long_utterance_evenly_spread_places_are_looked_at():
    x = torch.arange(60.0)[None].repeat(2, 1)
    x[1] += 100
    found = front_end._patches(x, taps=3, stride=2, at_most=10)
    places = np.arange(29)[:: 29 // 10]
    assert found.tolist() == patches(as_array(x), 3, 2)[places].tolist()
    assert len(front_end._patches(x, 3, 2, 1000)) == 29


@torch.no_grad()
def test_what_the_teacher_gives_at_those_places_is_what_is_fitted():
    """With few rows an utterance the fit is that of the places looked at, the same ones on both sides."""
    method = replace(METHOD, rows=50, convolution_ridge=0.01)
    found = FrontEnd("group norm", method)
    (first, own_first), (theirs, own), _ = found.blocks()
    x, t = [], []
    for source in sources():
        a, b = run_block(first, source[None]), run_block(own_first, source[None])
        seen, wanted = patches(as_array(b), 3, 2), as_array(theirs[0](a)).T[:, found.kept[2]]
        step = max(1, len(seen) // 50)
        assert step > 1
        x.append(seen[::step])
        t.append(wanted[::step])
    prior = as_array(theirs[0].weight)[found.kept[2]][:, found.kept[1]].reshape(6, -1)
    weight, _ = regressed(np.vstack(x), np.vstack(t), 0.01, prior)
    assert np.allclose(as_array(own[0].weight).reshape(6, -1), weight, atol=1e-4 * np.abs(weight).max())


@torch.no_grad()
def test_convolutions_are_fitted_to_the_first_utterances_and_the_projection_to_all():
    one, other = FrontEnd("layer norms", replace(METHOD, first_utterances=2)), FrontEnd("layer norms", count=2)
    for (_, a), (_, b) in zip(one.blocks(), other.blocks(), strict=True):
        for value, again in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
            assert torch.equal(value, again)
    assert not torch.equal(one.student.post_extract_proj.weight, other.student.post_extract_proj.weight)
    assert len(one.features) == 4
    for source, (a, b) in zip(sources(), one.features, strict=True):
        given = one.student.layer_norm(one.student.feature_extractor(source[None])[0].T)
        assert torch.allclose(b, one.student.post_extract_proj(given), atol=1e-5)
        given = one.teacher.layer_norm(one.teacher.feature_extractor(source[None])[0].T)
        assert torch.allclose(a, one.teacher.post_extract_proj(given), atol=1e-5)
