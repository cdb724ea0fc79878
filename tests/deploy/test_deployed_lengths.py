"""Rows of any length in what TorchScript and ONNX run: the frames there are, none for the shortest, never nan."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.deploy.inference_module import InferenceStudent
from fairseq_star.deploy.targets import load_target
from fairseq_star.encoder.frames import ConvLayer, FrameGeometry
from tests.support import convert_cases

SAMPLES = 2_000  # five frames of the students here, whose first sees 400 samples
LENGTHS = [*range(-3, 801), SAMPLES, SAMPLES + 1, 100_000]
QUICK = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.fixture(scope="module", params=["post_norm", "pre_norm"])
def student(request, tmp_path_factory):
    """A group norm student, and one of layer norms that normalizes its audio."""
    folder, pre_norm = tmp_path_factory.mktemp("student"), request.param == "pre_norm"
    return convert_cases.student(folder, "pre_norm") if pre_norm else convert_cases.tiny_student(folder)


def noise(num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, SAMPLES, generator=torch.Generator().manual_seed(0))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.just(1), st.integers(1, 12), st.integers(1, 6)), min_size=1, max_size=8),
    st.lists(st.integers(0, 20_000), min_size=1, max_size=8),
)
def test_frame_counts_of_any_convolutions(layers, num_samples):
    layers = [ConvLayer(*layer) for layer in layers]
    lengths, geometry = torch.tensor(num_samples), FrameGeometry.of(layers)
    at_once = geometry.all_num_frames(lengths)
    for _, kernel, stride in layers:
        lengths = FrameGeometry(kernel, stride).all_num_frames(lengths)
        assert lengths.dtype == torch.long
        assert lengths.min() >= 0
    assert lengths.tolist() == at_once.tolist() == geometry.all_num_frames(num_samples)


@QUICK
@given(num_samples=st.lists(st.integers(-3, 410) | st.integers(411, SAMPLES + 500), min_size=1, max_size=5))
def test_rows_of_any_length_are_finite_and_leave_the_others_alone(num_samples, student):
    model, source = InferenceStudent(student), noise(len(num_samples))
    last, states, frame_lengths = model(source, torch.tensor(num_samples))
    assert frame_lengths.tolist() == [student.model.geometry.num_frames(number) for number in num_samples]
    assert last.isfinite().all()
    assert states.isfinite().all()
    for row, (number, length) in enumerate(zip(num_samples, frame_lengths.tolist(), strict=True)):
        if length:
            _, alone, _ = model(source[row : row + 1, :number])
            length = alone.size(2)  # a row said to be longer than its audio has the frames of its audio
            torch.testing.assert_close(states[:, row, :length], alone[:, 0], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["torchscript", "onnx"])
def test_exported_programs_count_alike(name, student, tmp_path):
    path, source, num_samples = tmp_path / "program", noise(1).expand(len(LENGTHS), -1), torch.tensor(LENGTHS)
    load_target(name)().write(student, path)
    if name == "onnx":
        import onnxruntime

        inputs = {"source": source.numpy(), "num_samples": num_samples.numpy()}
        got = map(torch.from_numpy, onnxruntime.InferenceSession(path).run(None, inputs))
    else:
        got = torch.jit.load(path)(source, num_samples)
    last, states, frame_lengths = got
    assert frame_lengths.tolist() == [student.model.geometry.num_frames(number) for number in LENGTHS]
    assert last.isfinite().all()
    expected = InferenceStudent(student)(source, num_samples)[1]
    torch.testing.assert_close(states, expected, atol=5e-5, rtol=1e-5)
