"""ONNX files in 8 and 4 bits: their size, what they keep of the student, and which are refused."""

import json

import onnx
import pytest
import soundfile
import torch

from fairseq_star.cli import main
from fairseq_star.data.origin import CORPUS, corpus_origin
from fairseq_star.deploy.onnx_quantized import CALIBRATION
from fairseq_star.deploy.programs import STREAM
from fairseq_star.deploy.targets import load_target
from fairseq_star.errors import StarError
from fairseq_star.formats import export
from fairseq_star.manifest import ManifestEntry, write_manifest
from tests.support import convert_cases

STREAMS_IN_ONNX = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 7)  # 2.6's exporter fails on them


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return convert_cases.streaming_student(tmp_path_factory.mktemp("student"), encoder_layers=2, right_context_frames=2)


def noise(num_samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def test_int8_is_a_third_of_the_size_and_as_close_as_is_asked(tmp_path, monkeypatch, capsys):
    student = convert_cases.student(tmp_path, "starhubert_s")
    whole = export(student, load_target("onnx")(), tmp_path / "whole.onnx")
    main(["export", student.origin, "--to", "onnx", "--int8", "--out", str(tmp_path / "int8.onnx")])
    assert "ONNX file (int8), " in (told := capsys.readouterr().out)
    assert "1 - cosine (or a tenth of the worst frame's)" in told
    assert (tmp_path / "int8.onnx").stat().st_size < whole.num_bytes / 2.3  # three layers: convolutions are most of it
    [source] = [noise(20_000)]
    toolkit = load_target("onnx")(int8=True)
    [states] = toolkit.hidden_states(tmp_path / "int8.onnx", [source], padded=False)
    for ours, theirs in zip(states, student.hidden_states([source], 16_000)[0], strict=True):
        cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=-1)
        assert cosine.min() > 0.99
    assert not torch.equal(ours, theirs)

    frames = torch.eye(50)
    swapped = frames.clone()
    swapped[0] = frames[1]  # one frame of 50: the mean is 0.98
    assert toolkit.difference(swapped, frames) > toolkit.tolerance
    tilted = frames.clone()
    tilted[0, 1] = 0.6  # its cosine is 0.86, the mean 0.997
    assert toolkit.difference(tilted, frames) > toolkit.tolerance
    tilted[0, 1] = 0.4  # 0.93
    assert toolkit.difference(tilted, frames) < toolkit.tolerance


@pytest.mark.skipif(not STREAMS_IN_ONNX, reason="this torch cannot write a streaming student as ONNX")
@pytest.mark.slow
def test_int8_of_a_streaming_student_keeps_what_its_file_tells(student, tmp_path):
    exported = export(student, load_target("onnx")(int8=True), tmp_path / "int8.onnx")
    assert max(exported.alone, exported.batched) < 0.01
    assert json.loads(load_target("onnx").load(exported.path)[1])["chunk_frames"] == 4


def speech(folder, number: int = 12, rate: int = 16_000):
    """A manifest of noise of several lengths, loud as speech is."""
    entries = []
    for place in range(number):
        samples = 0.1 * noise(8_000 + 1_100 * place, seed=place)
        soundfile.write(folder / f"{place}.wav", samples.numpy(), rate)
        entries.append(ManifestEntry(f"{place}.wav", len(samples)))
    write_manifest(folder / "speech.tsv", folder.resolve(), entries)
    return folder / "speech.tsv"


@pytest.mark.parametrize(
    "kind",
    [
        "starhubert_s",
        pytest.param(
            "streaming",
            marks=[
                pytest.mark.slow,
                *(
                    []
                    if STREAMS_IN_ONNX
                    else [pytest.mark.skip(reason="this torch cannot write a streaming student as ONNX")]
                ),
            ],
        ),
    ],
)
def test_fixed_ranges_come_from_speech_and_are_judged_by_other_speech(tmp_path, capsys, kind, student):
    student = convert_cases.student(tmp_path, kind) if kind != "streaming" else student
    manifest = speech(tmp_path)
    target = load_target("onnx")(int8=True, calibration=str(manifest))
    exported = export(student, target, tmp_path / "fixed.onnx")
    assert exported.alone < 0.01
    used, held_out = target._speech.calibration, target.sources()
    assert (len(used), len(held_out)) == (8, 4)
    lengths = sorted(len(source) for source in [*used, *held_out])
    assert lengths == [8_000 + 1_100 * place for place in range(12)]
    model = onnx.load(exported.path)
    kinds = [node.op_type for node in model.graph.node]
    assert "DynamicQuantizeLinear" not in kinds
    assert "QuantizeLinear" in kinds
    [origin] = [json.loads(entry.value) for entry in model.metadata_props if entry.key == CALIBRATION]
    assert origin == {CORPUS: corpus_origin(manifest)}
    assert (STREAM in load_target("onnx").load(exported.path)[1]) == (kind == "streaming")


def test_calibration_that_cannot_be_is_one_line(tmp_path):
    student = convert_cases.student(tmp_path, "starhubert_s")
    command = ["export", student.origin, "--to", "onnx", "--out", str(tmp_path / "student.onnx")]

    def told(*more) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*command, *map(str, more)])
        assert len(str(ended.value).splitlines()) == 1
        assert not (tmp_path / "student.onnx").exists()
        return str(ended.value)

    assert "--calibration is of --int8" in told("--calibration", tmp_path / "none.tsv")
    assert "give one of them" in told("--int8", "--int4")
    assert "--calibration: " in told("--int8", "--calibration", tmp_path / "none.tsv")
    few = tmp_path / "few"
    few.mkdir()
    assert "lists 3 utterances" in told("--int8", "--calibration", speech(few, 3))
    other = tmp_path / "other"
    other.mkdir()
    assert "8000 Hz, must be 16000" in told("--int8", "--calibration", speech(other, rate=8_000))
    other = tmp_path / "cut"
    other.mkdir()
    manifest = speech(other)
    (other / "3.wav").write_bytes((other / "3.wav").read_bytes()[:9_000])
    assert "3.wav" in told("--int8", "--calibration", manifest)


def test_weights_that_do_not_stand_4_bits_are_refused(tmp_path):
    """Random ones, a scale of which 32 share."""
    student = convert_cases.student(tmp_path, "starhubert_s")
    with pytest.raises(StarError, match=r"int4.* differ by .*take --int8"):
        export(student, load_target("onnx")(int4=True), tmp_path / "student.onnx")
    assert not (tmp_path / "student.onnx").exists()
