"""Exports for torchaudio, TorchScript and onnxruntime: the student's hidden states, and what int8 leaves of them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fairseq_star.cli import main
from fairseq_star.deploy import torchscript
from fairseq_star.deploy.targets import load_target
from fairseq_star.errors import StarError
from fairseq_star.formats import export, target
from fairseq_star.formats.target import check_sources, student_states
from tests.support import convert_cases

DEPLOYED = ("torchaudio", "torchscript", "onnx")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return convert_cases.tiny_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module", params=list(convert_cases.CASES))
def case(request, tmp_path_factory):
    return convert_cases.student(tmp_path_factory.mktemp(request.param), request.param)


def worst(got: list[list[torch.Tensor]], expected: list[list[torch.Tensor]]) -> float:
    pairs = [pair for own, theirs in zip(got, expected, strict=True) for pair in zip(own, theirs, strict=True)]
    return float(torch.stack([(a - b).abs().max() for a, b in pairs]).max())


def noise(lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [30 * torch.randn(length, generator=generator) for length in lengths]


@pytest.mark.parametrize("name", DEPLOYED)
def test_all_hidden_states_are_the_students(case, name, tmp_path, recwarn):
    toolkit = load_target(name)()
    exported = export(case, toolkit, tmp_path / "exported")
    limit = 5e-5 if name == "onnx" else 1e-5
    assert max(exported.alone, exported.batched) < limit
    assert not recwarn.list
    # Said again in absolute numbers, of a batch and lengths that the exporter never saw, from a single frame on.
    sources = noise([400, 7_001, 25_113, 640, 16_000])
    for padded in (False, True):
        expected = student_states(case, sources, toolkit if padded else None)
        # How a processor adds up shows in the last digit of states far above 1.
        assert worst(toolkit.hidden_states(exported.path, sources, padded=padded), expected) < 2 * limit


@pytest.mark.slow
@pytest.mark.parametrize("architecture", convert_cases.WHOLE)
def test_the_architectures_at_their_full_depth(architecture, tmp_path):
    student = convert_cases.load_student(str(convert_cases.write_checkpoint(tmp_path / "student.pt", architecture)))
    for name in DEPLOYED:
        exported = export(student, load_target(name)(), tmp_path / name)
        assert max(exported.alone, exported.batched) < (5e-5 if name == "onnx" else 1e-5), name


def test_torchaudio_by_the_lines_of_its_docstring(student, tmp_path):
    import torchaudio

    path = export(student, load_target("torchaudio")(), tmp_path / "student.pt").path
    saved = torch.load(path, weights_only=True)
    model = torchaudio.models.wav2vec2_model(**saved["arguments"]).eval()
    model.load_state_dict(saved["state_dict"])
    [source] = noise([9_000])
    with torch.no_grad():
        layers, frame_lengths = model.extract_features(source[None])
    assert frame_lengths is None
    assert worst([[layer[0] for layer in layers]], [student_states(student, [source])[0][1:]]) < 1e-5
    assert (saved["sample_rate"], saved["normalize"]) == (16_000, False)


def outputs(name: str, path: Path, source: torch.Tensor, num_samples: torch.Tensor) -> list[torch.Tensor]:
    if name == "torchscript":
        return list(torch.jit.load(path)(source, num_samples))
    import onnxruntime

    inputs = {"source": source.numpy(), "num_samples": num_samples.numpy()}
    return list(map(torch.from_numpy, onnxruntime.InferenceSession(path).run(None, inputs)))


@pytest.mark.parametrize("name", ["torchscript", "onnx"])
@pytest.mark.parametrize("kind", ["starhubert", "pre_norm"])
def test_features_depend_on_no_neighbour_and_on_no_padding(kind, name, tmp_path):
    student = convert_cases.student(tmp_path, kind)
    path = export(student, load_target(name)(), tmp_path / "out").path
    num_samples = torch.tensor([12_000, 5_000])
    source = 1e3 * torch.ones(2, 12_000)  # padding too, which must not count
    for row, utterance in zip(source, noise(num_samples.tolist()), strict=True):
        row[: len(utterance)] = utterance
    last, states, frame_lengths = outputs(name, path, source, num_samples)
    assert states.shape[:2] == (student.config.num_layers + 1, 2)
    for number, length in enumerate(frame_lengths.tolist()):
        own = outputs(name, path, source[number : number + 1, : num_samples[number]], num_samples[number : number + 1])
        assert own[2].item() == length == student.model.geometry.num_frames(int(num_samples[number]))
        assert (states[:, number, :length] - own[1][:, 0]).abs().max() < 2e-5
        assert (last[number, :length] - own[0][0]).abs().max() < 2e-5


ALONE = """
import sys, torch
path, source, out = sys.argv[1:]
with torch.no_grad():
    torch.save(torch.jit.load(path)(torch.load(source)[None])[1], out)
assert not any(name.startswith(("fairseq", "torchaudio")) for name in sys.modules)
"""


def test_torchscript_needs_torch_alone(student, tmp_path):
    path = export(student, load_target("torchscript")(), tmp_path / "student.ts").path
    [source] = noise([9_000])
    torch.save(source, tmp_path / "source.pt")
    command = [sys.executable, "-c", ALONE, str(path), str(tmp_path / "source.pt"), str(tmp_path / "out.pt")]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    got = list(torch.load(tmp_path / "out.pt")[:, 0])
    assert worst([got], student_states(student, [source])) < 1e-5


def test_int8_is_a_third_of_the_size_and_close(tmp_path, capsys, monkeypatch):
    student = convert_cases.student(tmp_path, "starhubert_s")
    full = export(student, load_target("torchscript")(), tmp_path / "full.ts")
    main(["export", student.origin, "--to", "torchscript", "--int8", "--out", str(tmp_path / "int8.ts")])
    told = capsys.readouterr().out
    assert "TorchScript program (int8)" in told
    assert "1 - cosine" in told
    assert (tmp_path / "int8.ts").stat().st_size < 0.6 * full.num_bytes  # three layers: convolutions are most of it
    int8 = torch.jit.load(tmp_path / "int8.ts")
    source = check_sources()[0]
    ours, theirs = student_states(student, [source])[0][-1], int8(source[None])[0][0]
    cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=-1)
    assert torchscript.INT8_COSINE < cosine.mean() < 1

    def coarse(model):
        quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
        quantized.encoder.layer_norm.weight.data[::2] *= -1
        return quantized

    monkeypatch.setattr(torchscript, "quantize", coarse)
    with pytest.raises(StarError, match=r"\(1 - cosine\), more than 2e-02; .* was not written"):
        export(student, load_target("torchscript")(int8=True), tmp_path / "coarse.ts")
    assert not (tmp_path / "coarse.ts").exists()


@pytest.mark.parametrize("name", DEPLOYED)
def test_a_file_that_fails_the_comparison_is_not_left(student, name, tmp_path):
    with pytest.raises(StarError, match="was not written"):
        export(student, convert_cases.careless(name, 1e-2), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_torchaudio_cannot_express_and_what_is_not_installed(tmp_path, monkeypatch):
    relu = convert_cases.tiny_student(tmp_path, activation_fn="relu")
    with pytest.raises(StarError, match="GELU alone, this student activation_fn=relu"):
        export(relu, load_target("torchaudio")(), tmp_path / "out")
    for name in ("torchscript", "onnx"):
        exported = export(relu, load_target(name)(), tmp_path / name)
        assert max(exported.alone, exported.batched) < 5e-5
    monkeypatch.setattr(target.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(StarError, match=r"needs onnxruntime .*; pip install 'fairseq-star\[onnx\]'"):
        load_target("onnx")
