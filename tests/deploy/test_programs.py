"""Programs of torch.export: streaming students as ONNX and ``.pt2``, whole-utterance ones by today's exporter."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.cli import main
from fairseq_star.deploy.programs import STREAM, streams_of
from fairseq_star.deploy.targets import load_target
from fairseq_star.errors import StarError
from fairseq_star.formats import export, target
from fairseq_star.formats.target import student_states
from tests.support import ROOT, convert_cases

NAMES = ("onnx", "pt2")
FEW = settings(max_examples=15, deadline=None)
STREAMS_IN_ONNX = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 7)  # 2.6's exporter fails on them


@pytest.fixture(scope="module", params=[0, 20])
def student(request, tmp_path_factory):
    settings = {"encoder_layers": 2, "layer_norm_first": True, "right_context_frames": 2}
    folder = tmp_path_factory.mktemp("student")
    return convert_cases.streaming_student(folder, norm_context_frames=request.param, **settings)


@pytest.fixture(scope="module", params=NAMES)
def program(request, student, tmp_path_factory):
    """The exported file, and its name."""
    if request.param == "onnx" and not STREAMS_IN_ONNX:
        pytest.skip(f"torch {torch.__version__} cannot write a streaming student as ONNX")
    out = tmp_path_factory.mktemp(request.param) / "stream"
    exported = export(student, load_target(request.param)(), out)
    assert max(exported.alone, exported.batched) < 1e-5
    assert student.model.chunk_frames == 4  # as before it was compared in others
    return out, request.param


def noise(num_samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def difference(frames: torch.Tensor, student, audio: torch.Tensor, chunk: int) -> float:
    student.use_chunks(chunk)
    expected = torch.stack(student.hidden_states([audio], 16_000)[0])
    student.use_chunks(4)
    assert frames.shape == expected.shape
    return float((frames - expected).abs().max() / expected.abs().max().clamp(min=1))


def test_any_pieces_chunks_and_number_of_streams(program, student):
    path, name = program
    run, metadata = load_target(name).load(path)

    @FEW
    @given(
        chunk=st.integers(1, 20),
        lengths=st.lists(st.integers(400, 20_000), min_size=1, max_size=3),
        pieces=st.integers(1, 20_000),
    )
    def check(chunk, lengths, pieces):
        audios = [noise(length, seed) for seed, length in enumerate(lengths)]
        for audio in audios:
            audio[len(audio) // 4 : len(audio) // 2] = 0
        live, given_out = (
            streams_of(run, metadata[STREAM], chunk_frames=chunk, num_streams=len(lengths)),
            [[] for _ in lengths],
        )
        for start in range(0, max(lengths), max(pieces, 500)):
            fed = live.feed([audio[start : start + max(pieces, 500)] for audio in audios])
            for kept, frames in zip(given_out, fed, strict=True):
                kept.append(frames)
        for kept, frames, audio in zip(given_out, live.flush(), audios, strict=True):
            assert difference(torch.cat([*kept, frames], 1), student, audio, chunk) < 1e-5

    check()


def test_a_file_tells_its_stream(program):
    path, name = program
    _, metadata = load_target(name).load(path)
    live = streams_of(None, metadata[STREAM])
    assert (live.chunk_frames, live.sample_rate, live.look_ahead) == (4, 16_000, 125.0)
    assert live.shape.left_context_frames == 7
    for broken in ("{", '{"shape": {}, "sample_rate": 1, "chunk_frames": 1}', "[]"):
        with pytest.raises(StarError, match="not what this version writes; export the streaming student again"):
            streams_of(None, broken)


def test_the_loop_of_the_page_runs_an_onnx_file_without_this_project(student, tmp_path, monkeypatch, program):
    path, name = program
    if name != "onnx":
        pytest.skip("the page runs ONNX")
    shutil.copy(path, tmp_path / "stream.onnx")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "streaming.md").read_text(encoding="utf-8")
    [block] = [block for block in re.findall(r"```python\n(.+?)```", page, re.DOTALL) if "onnxruntime" in block]
    assert "fairseq_star import" not in block
    audio = noise(12_345)
    scope = {"audio": audio.numpy()}
    exec(block, scope)
    frames = torch.from_numpy(np.concatenate(scope["frames"]))
    expected = student.hidden_states([audio], 16_000)[0][-1]
    assert 4 * len(scope["frames"]) == len(frames) > 28
    assert (frames - expected[: len(frames)]).abs().max() < 2e-5


def test_what_torchs_exporter_cannot_write_is_told_in_one_line(student, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise torch.onnx.OnnxExporterError("Failed to decompose\nNext steps: ...")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(
        StarError, match=r"cannot write this student as ONNX \(Failed to decompose\); use a newer torch"
    ):
        export(student, load_target("onnx")(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_file_that_fails_the_comparison_is_not_left(program, student, tmp_path):
    path, name = program

    class Stale(load_target(name)):
        def write(self, student, out):
            shutil.copy(path, out)

    weight = student.model.encoder.layers[-1].fc2.bias
    weight[3] += 1e-2
    with pytest.raises(StarError, match="was not written"):
        export(student, Stale(), tmp_path / "out")
    weight[3] -= 1e-2
    assert not list(tmp_path.iterdir())
    assert student.model.chunk_frames == 4


def test_what_is_not_installed_and_what_no_other_target_can_hold(student, tmp_path, monkeypatch, capsys):
    for name in ("torchaudio", "torchscript", "fairseq"):
        with pytest.raises(SystemExit, match=r"can hold chunked attention or .*; take --to onnx or --to pt2"):
            main(["export", student.origin, "--to", name, "--out", str(tmp_path / "out")])
    found = target.importlib.util.find_spec
    monkeypatch.setattr(target.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(SystemExit, match=r"needs onnxscript to write .*; pip install 'fairseq-star\[onnx\]'"):
        main(["export", student.origin, "--to", "onnx", "--out", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["projection", "pre_norm"])
@pytest.mark.parametrize(("name", "options"), [("onnx", {"dynamo": True}), ("pt2", {})])
def test_whole_utterances_by_todays_exporter(kind, name, options, tmp_path):
    student = convert_cases.student(tmp_path, kind)
    toolkit = load_target(name)(**options)
    exported = export(student, toolkit, tmp_path / "exported")
    assert max(exported.alone, exported.batched) < 5e-5
    assert load_target(name).load(exported.path)[1].get(STREAM) is None
    sources = [30 * noise(length, seed) for seed, length in enumerate([720, 7_001, 25_113, 16_000])]
    for padded in (False, True):
        expected = student_states(student, sources, toolkit if padded else None)
        for ours, theirs in zip(toolkit.hidden_states(exported.path, sources, padded=padded), expected, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert (a - b).abs().max() < 1e-4


@pytest.mark.slow
def test_the_streaming_architecture_at_its_full_depth(tmp_path):
    path = convert_cases.write_checkpoint(tmp_path / "student.pt", convert_cases.STREAM)
    student = convert_cases.load_student(str(path))
    for name in NAMES:
        exported = export(student, load_target(name)(), tmp_path / name)
        assert max(exported.alone, exported.batched) < 5e-5, name
        assert json.loads(load_target(name).load(exported.path)[1][STREAM])["chunk_frames"] == 16
    assert STREAM in path.parent.joinpath("onnx").read_bytes().decode("latin1")
