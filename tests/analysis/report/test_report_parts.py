"""What the report's pictures show: likeness of layers, maps in step with the sound, maps in TensorBoard."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fairseq_star.analysis.report.compare import Students, compare, read_phones
from fairseq_star.analysis.similarity import linear_cka, tgm_error
from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.errors import StarError
from fairseq_star.plots.heatmaps import color_range, draw_map
from fairseq_star.plots.matrices import LayerMaps, UtteranceMaps, choose_layers, tgm
from fairseq_star.plots.style import DARK, LIGHT, themed
from fairseq_star.plots.tensorboard import TensorboardMaps

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra [report])")


def naive_cka(first: torch.Tensor, second: torch.Tensor) -> float:
    """By the definition over pairs of frames: HSIC of two linear kernels, normalized."""
    n = len(first)
    centring = torch.eye(n) - torch.full((n, n), 1 / n)
    left, right = (centring @ states @ states.T @ centring for states in (first, second))
    return float((left * right).sum() / (left.norm() * right.norm()))


def test_cka_is_its_definition():
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(50, width, generator=generator) + 3 for width in (7, 12)]
    found = linear_cka(states, states)
    for (row, column), value in np.ndenumerate(found):
        assert value == pytest.approx(naive_cka(states[row], states[column]), abs=1e-5)
    rotation, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator))
    assert linear_cka([states[1]], [states[1] @ rotation * 5 + 2])[0, 0] == pytest.approx(1, abs=1e-6)
    assert linear_cka([states[0]], [torch.ones(50, 4)])[0, 0] == 0
    unrelated = [torch.randn(5000, 8, generator=generator) for _ in range(2)]
    assert linear_cka(unrelated[:1], unrelated[1:])[0, 0] < 0.05


def test_tgm_error_is_a_distance_of_pairs():
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(5, 3, generator=generator), torch.randn(5, 2, generator=generator)
    squared = of_teacher = 0.0
    for i in range(5):
        for j in range(5):
            wanted, found = float(teacher[i] @ teacher[j]), float(student[i] @ student[j])
            squared += (found - wanted) ** 2
            of_teacher += wanted**2
    assert tgm_error(tgm(teacher), tgm(student)) == pytest.approx(math.sqrt(squared / of_teacher), rel=1e-5)


class Stub(nn.Module):
    """In a student's place: the teacher itself, its states changed."""

    def __init__(self, teacher, change):
        super().__init__()
        self.teacher, self.change = teacher, change

    def forward(self, source, frames):
        encoding = self.teacher(source, frames.num_samples)
        encoding.hidden_states = [self.change(state) for state in encoding.hidden_states]
        return encoding


class StubRun:
    """What ``compare`` and the maps use of a run."""

    def __init__(self, teacher, teacher_layers):
        self.task = self.criterion = self.provider = self
        self.encoder, self.teacher_layers = teacher, teacher_layers

    def encode(self, sample):
        return self.encoder(sample["net_input"]["source"], sample["num_samples"])


@pytest.fixture(scope="module")
def stub_run(teacher_path) -> StubRun:
    from fairseq_star.formats import load_teacher

    return StubRun(load_teacher(str(teacher_path)), [1, 2, 3])


def test_a_student_like_its_teacher(stub_run):
    """A copy of the teacher has no error and CKA 1; twice its size, the CKA stays, the error is that of 4 G - G."""
    students = Students(before=Stub(stub_run.encoder, lambda x: 2 * x), after=Stub(stub_run.encoder, lambda x: x))
    noise = torch.Generator().manual_seed(0)
    dataset = [{"source": 0.1 * torch.randn(n, generator=noise)} for n in (4000, 9000, 6000, 7000)]
    found = compare(stub_run, students, dataset, max_frames=50)
    assert found.num_frames == 50
    assert 2 <= found.num_utterances < 4  # it stops when it has enough
    assert found.tgm_error == pytest.approx(np.zeros(3), abs=1e-6)
    assert found.tgm_error_before == pytest.approx(np.full(3, 3.0), rel=1e-5)
    assert np.diag(found.cka) == pytest.approx(np.ones(4), abs=1e-5)
    assert found.matched(found.cka_before) == pytest.approx(np.ones(3), abs=1e-5)
    assert found.cka[0, 3] < found.cka[3, 3] - 1e-5


def test_layers_to_draw():
    assert choose_layers(12, None) == [1, 6, 12]
    assert choose_layers(1, None) == [1]
    assert choose_layers(3, [3, 1, 3]) == [1, 3]
    with pytest.raises(StarError, match="--layers 0: the student has layers 1 to 3"):
        choose_layers(3, [0])


def test_phones_of_a_line(tmp_path):
    (tmp_path / "valid.phn").write_text("x\na a b\nsil a a a sil\n")
    manifest = str(tmp_path / "valid.tsv")
    assert read_phones(manifest, 2, 5) == [(0, 1, "sil"), (1, 4, "a"), (4, 5, "sil")]
    assert read_phones(manifest, 2, 3) == [(0, 1, "sil"), (1, 3, "a")]  # of a cut utterance
    assert read_phones(manifest, 1, 5) == []  # too few labels
    assert read_phones(str(tmp_path / "train.tsv"), 0, 5) == []


def example(num_frames: int = 60, phones: bool = True) -> UtteranceMaps:
    """A click in the middle of frame 40 on noise, and maps that are bright for that frame alone."""
    geometry = FrameGeometry(receptive_field=400, downsample_rate=320)
    samples = np.random.default_rng(0).standard_normal(400 + 320 * (num_frames - 1)) * 1e-4
    samples[40 * 320 + 190 : 40 * 320 + 210] = 1.0
    teacher = np.zeros((num_frames, num_frames))
    teacher[40, :] = teacher[:, 40] = 1.0
    labels = [(0, 40, "sil"), (40, 41, "t"), (41, num_frames, "sil")] if phones else []
    layer = LayerMaps(1, 2, teacher, student=teacher * 0.5, before=teacher * 0)
    return UtteranceMaps("utt", samples, geometry, labels, "", [layer])


@pytest.mark.parametrize("phones", [True, False])
def test_everything_shares_one_time_axis(phones):
    """The click, its phone and its frame's bright column lie one above the other."""
    utterance = example(phones=phones)
    with themed(LIGHT):
        figure = draw_map(LIGHT, utterance, utterance.layers[0], "teacher")
    heat, *labels, spectrogram = figure.axes[:-1]
    assert len(labels) == 2 * phones
    for axes in (spectrogram, *labels[:1]):
        assert axes.get_xlim() == pytest.approx(heat.get_xlim())
        assert axes.get_position().x0 == pytest.approx(heat.get_position().x0)
        assert axes.get_position().x1 == pytest.approx(heat.get_position().x1)
    click = (40 * 320 + 200) / 16_000

    def brightest(axes) -> float:
        """Time of the brightest column of the picture in it."""
        image = axes.images[0]
        left, right, *_ = image.get_extent()
        columns = np.asarray(image.get_array(), dtype=float).mean(0)
        return left + (right - left) * (columns.argmax() + 0.5) / len(columns)

    assert brightest(heat) == pytest.approx(click, abs=1e-6)
    assert brightest(spectrogram) == pytest.approx(click, abs=0.01)
    if phones:
        box = labels[0].patches[1]
        assert box.get_x() + box.get_width() / 2 == pytest.approx(click, abs=1e-6)
        assert labels[1].get_ylim() == pytest.approx(heat.get_ylim())


def test_one_range_of_colours_for_a_layer():
    layer = example().layers[0]
    layer.teacher = np.linspace(-1, 4, 10_000).reshape(100, 100)
    low, high = color_range(layer, "teacher")
    assert (low, high) == color_range(layer, "student") == pytest.approx((-0.95, 3.95), abs=0.01)
    assert color_range(layer, "difference") == pytest.approx((-(high - low) / 2, (high - low) / 2))
    layer.teacher = np.ones((3, 3))
    low, high = color_range(layer, "teacher")
    assert high > low
    with themed(DARK):
        assert draw_map(DARK, example(), example().layers[0], "difference").get_facecolor()[0] < 0.2


def test_masked_frames_are_marked_where_they_are():
    utterance = example()
    layer = utterance.layers[0]
    layer.masked = layer.student
    utterance.mask_indices = np.zeros(len(layer.teacher), dtype=bool)
    utterance.mask_indices[[0, 1, 20, 21, 22, -1]] = True
    with themed(LIGHT):
        plain = draw_map(LIGHT, utterance, layer, "student").axes[0]
        heat = draw_map(LIGHT, utterance, layer, "masked").axes[0]
    assert not plain.patches
    across = [patch.get_extents().transformed(heat.transData.inverted()) for patch in heat.patches[::2]]
    end = len(layer.teacher)
    for box, span in zip(across, [(0, 2), (20, 23), (end - 1, end)], strict=True):
        assert (box.x0, box.x1) == pytest.approx([utterance.seconds(frame) for frame in span])


def test_maps_in_tensorboard(stub_run, tmp_path):
    """In the first validation and every second one after it, once each, and no random number is drawn."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    student = Stub(stub_run.encoder, lambda x: 0.5 * x)
    batch = {"net_input": {"source": torch.randn(2, 8000)}, "num_samples": [8000, 5000]}
    maps = TensorboardMaps(2, str(tmp_path))
    drawn = []
    for _ in range(4):
        maps.begin_validation(student)
        before = torch.random.get_rng_state()
        for _ in range(2):
            maps.draw(stub_run, stub_run, batch)
        assert torch.equal(before, torch.random.get_rng_state())
        events = event_accumulator.EventAccumulator(str(tmp_path / "tgm_maps"), {"images": 0}).Reload()
        drawn.append(sum(len(events.Images(tag)) for tag in events.Tags()["images"]))
    assert drawn == [9, 9, 18, 18]
    layers = ("01", "02", "03")
    assert set(events.Tags()["images"]) == {
        f"tgm_layer{n}/{which}" for n in layers for which in ("teacher", "student", "difference")
    }
    assert events.Images("tgm_layer02/student")[0].width > 400


def test_maps_options(tmp_path):
    never = TensorboardMaps(0, None)
    never.begin_validation(nn.Module())
    never.draw(None, None, {})
    with pytest.raises(StarError, match="log_tgm_maps=-1 must be 0 or more"):
        TensorboardMaps(-1, str(tmp_path))
    with pytest.raises(StarError, match=r"set common\.tensorboard_logdir"):
        TensorboardMaps(1, None)
