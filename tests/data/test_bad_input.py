"""Whatever a user gets wrong ends in one clear line before training starts, and nothing of it is run."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from fairseq_star.checkpoint import read_checkpoint
from fairseq_star.errors import StarError
from fairseq_star.formats import load_teacher
from tests.support import tiny
from tests.support.steps import build


class Hostile:
    """Unpickled without protection, it runs a command."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def truncated(path: Path, teacher_path: Path) -> Path:
    path.write_bytes(teacher_path.read_bytes()[:5000])
    return path


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


BAD_TEACHERS = {
    "missing": (lambda folder, good: folder / "no.pt", "is not there"),
    "folder": (lambda folder, good: folder, "is a folder"),
    "empty": (lambda folder, good: written(folder / "t.pt", b""), "is an empty file"),
    "truncated": (lambda folder, good: truncated(folder / "t.pt", good), "truncated or damaged"),
    "web page": (lambda folder, good: written(folder / "t.pt", b"<html>404</html>"), "no torch checkpoint"),
    "half a pickle": (lambda folder, good: written(folder / "t.pt", b"\x80\x02}q\x00(X\x05"), "truncated or damaged"),
    "a tensor": (lambda folder, good: saved(folder / "t.pt", torch.zeros(3)), "holds a Tensor"),
    "no speech model": (lambda folder, good: saved(folder / "t.pt", {"state_dict": {}}), "no fairseq speech"),
    "a translation model": (
        lambda folder, good: saved(folder / "t.pt", {"cfg": {"model": {"_name": "transformer"}}, "model": {}}),
        "holds a 'transformer' model",
    ),
    "lost weights": (
        lambda folder, good: saved(folder / "t.pt", {**tiny.hubert_state(), "model": {}}),
        "is missing and",
    ),
    "other sizes": (
        lambda folder, good: saved(
            folder / "t.pt", {**tiny.hubert_state(), "model": tiny.hubert_state(encoder_embed_dim=32)["model"]}
        ),
        "instead of",
    ),
}


@pytest.mark.parametrize("case", BAD_TEACHERS)
def test_bad_teachers_are_told_apart(case, tmp_path, teacher_path):
    make, message = BAD_TEACHERS[case]
    path = make(tmp_path, teacher_path)
    with pytest.raises(StarError, match=message) as error:
        load_teacher(str(path))
    assert str(error.value).startswith(f"task.teacher: {path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("protocol", ["zip", "pickle"])
def test_a_pickle_that_would_run_code_does_not_run(tmp_path, protocol):
    marker, path = tmp_path / "ran", tmp_path / "hostile.pt"
    if protocol == "zip":
        torch.save({"model": {}, "cfg": Hostile(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Hostile(marker)}))
    with pytest.raises(StarError, match=r"posix\.system|truncated or damaged") as error:
        read_checkpoint(str(path), "task.teacher")
    assert not marker.exists()
    assert "\n" not in str(error.value)


def test_a_config_that_would_run_code_does_not_run(tmp_path):
    marker = tmp_path / "ran"
    state = tiny.hubert_state()
    state["cfg"]["model"]["conv_feature_layers"] = f"[(512,10,5)] + list(open({str(marker)!r}, 'w'))"
    with pytest.raises(StarError, match="conv_feature_layers"):
        load_teacher(str(saved(tmp_path / "t.pt", state)))
    assert not marker.exists()


def corpus_with(tmp_path: Path, line: str) -> Path:
    """The tiny corpus with one line appended to its training manifest."""
    root = tiny.write_corpus(tmp_path / "corpus", train=3, valid=1)
    manifest = root / "train.tsv"
    manifest.write_text(manifest.read_text() + line)
    return root


def stereo(folder: Path) -> str:
    tiny.write_audio(folder / "bad", [0.5], channels=2)
    return f"{folder}/bad/utt000.wav\t8000\n"


def eight_khz(folder: Path) -> str:
    tiny.write_audio(folder / "bad", [0.5], sample_rate=8000)
    return f"{folder}/bad/utt000.wav\t4000\n"


BAD_LINES = {
    "wrong line": (lambda folder: "utt000.wav 4800\n", r"train\.tsv:5"),
    "missing file": (lambda folder: "nowhere.wav\t4800\n", r"nowhere\.wav"),
    "wrong length": (lambda folder: "utt000.wav\t4801\n", r"utt000\.wav.*4801"),
    "stereo": (stereo, r"bad/utt000\.wav.*2 channels"),
    "8 kHz": (eight_khz, r"bad/utt000\.wav.*8000 Hz"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_manifests_name_the_line_or_the_file(case, tmp_path, teacher_path):
    make, message = BAD_LINES[case]
    data = corpus_with(tmp_path, make(tmp_path))
    task, _, _ = build(data, teacher_path)
    task.load_dataset("valid")
    with pytest.raises(SystemExit, match=message) as error:
        task.load_dataset("train")
    assert "\n" not in str(error.value)


def test_manifests_without_anything_usable(tmp_path, teacher_path):
    data = tiny.write_corpus(tmp_path / "corpus", train=2, valid=1)
    (data / "empty.tsv").write_text(f"{data}\n")
    task, _, _ = build(data, teacher_path, min_sample_size=1_000_000)
    for split, message in [("empty", "no entries"), ("none", r"none\.tsv"), ("train", "task.min_sample_size")]:
        with pytest.raises(SystemExit, match=message):
            task.load_dataset(split)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": {"normalize": True}}, "task.normalize=True contradicts the teacher"),
        ({"task": {"sample_rate": 8000}}, "task.sample_rate=8000 contradicts the teacher"),
        ({"model": {"encoder_layers": 2}}, "teacher has 3 layers and the student 2"),
        ({"model": {"conv_feature_layers": "[(8,10,5)] + [(8,3,2)]*4 + [(D,2,2)]"}}, "50 Hz .* against 100 Hz"),
        ({"model": {"conv_feature_layers": "[(D,20,5)] + [(D,3,2)]*4 + [(D,2,2)]*2"}}, "400 samples .* 410 samples"),
        ({"model": {"conv_feature_layers": "[(D,x,5)]"}}, "conv_feature_layers"),
    ],
)
def test_contradictions_are_refused(options, message, corpus, teacher_path):
    with pytest.raises(SystemExit, match=message):
        build(corpus, teacher_path, model=options.get("model"), **options.get("task", {}))


def test_normalize_is_taken_from_the_teacher(corpus, tmp_path):
    teacher = tiny.write_teacher(tmp_path / "t.pt", task={"normalize": True})
    task, _, _ = build(corpus, teacher)
    task.load_dataset("train")
    source = task.dataset("train")[0]["source"]
    assert source.mean().abs() < 1e-5
    assert source.std() == pytest.approx(1, abs=1e-3)
    assert task.state_dict()["normalize"] is True


@pytest.mark.parametrize("what", ["teacher", "data", "manifest"])
def test_on_the_command_line_it_is_the_last_line_and_the_status(what, train, tmp_path):
    files = {
        "teacher": {"teacher": tmp_path / "no.pt"},
        "data": {"data": tmp_path / "no"},
        "manifest": {"data": corpus_with(tmp_path, stereo(tmp_path))},
    }[what]
    finished = train(**files)
    assert finished.returncode != 0
    assert "Traceback" not in finished.stderr
    last_line = finished.stderr.strip().splitlines()[-1]
    assert last_line.startswith("fairseq-star: ")
    assert str(tmp_path) in last_line
    assert "Start iterating" not in finished.stdout
