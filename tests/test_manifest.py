"""The manifest format and the checks of the audio it names."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fairseq.data.audio.hubert_dataset import load_audio
from fairseq.data.audio.raw_audio_dataset import FileAudioDataset
from hypothesis import given
from hypothesis import strategies as st

from fairseq_star import manifest
from fairseq_star.data import DistillationDataset
from fairseq_star.errors import StarError
from fairseq_star.manifest import (
    ManifestEntry,
    check_audio,
    probe_all,
    probe_audio,
    read_manifest,
    show_progress,
    write_manifest,
)


def write_audio(path: Path, num_samples: int = 1600, rate: int = 16_000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(num_samples).uniform(-0.5, 0.5, (num_samples, channels))
    soundfile.write(path, noise, rate, subtype="PCM_16")
    return path


CHARACTERS = st.characters(codec="utf-8", exclude_characters="\t\n\r\0")
NAMES = st.text(CHARACTERS, min_size=1).filter(lambda text: text == text.strip())


@given(st.lists(st.tuples(NAMES, st.integers(1, 2**40)), min_size=1, max_size=8), NAMES)
def test_round_trip(tmp_path_factory, entries, root):
    path = tmp_path_factory.mktemp("manifest") / "train.tsv"
    entries = [ManifestEntry(*entry) for entry in entries]
    write_manifest(path, root, entries)
    assert read_manifest(path) == (root, entries)


def test_fairseq_reads_what_is_written(tmp_path):
    names = ["a b/ünï çode.flac", "日本/x.flac", "plain.flac"]
    entries = [ManifestEntry(name, 1600 + index) for index, name in enumerate(names)]
    for name, num_samples in entries:
        write_audio(tmp_path / name, num_samples)
    write_manifest(tmp_path / "train.tsv", tmp_path, entries)

    dataset = FileAudioDataset(tmp_path / "train.tsv", sample_rate=16_000)
    assert [len(dataset[index]["source"]) for index in range(3)] == [1600, 1601, 1602]
    root, found, _, total, sizes = load_audio(tmp_path / "train.tsv", None, None)
    assert (root, found, total, sizes) == (str(tmp_path), names, 3, [1600, 1601, 1602])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/root\na.flac\t5\nb.flac 7\n", r"train\.tsv:3: expected 'path<TAB>num_samples', found 'b\.flac 7'"),
        ("/root\na.flac\t5\t6\n", r"train\.tsv:2: expected"),
        ("/root\na.flac\t5.0\n", r"train\.tsv:2: expected"),
        ("/root\na.flac\t-5\n", r"train\.tsv:2: expected"),
        ("/root\na.flac\t1_000\n", r"train\.tsv:2: expected"),
        ("/root\n\t5\n", r"train\.tsv:2: expected"),
        ("/root\na.flac\t5\n\n", r"train\.tsv:3: expected"),
        ("/root\na.flac\t0\n", r"train\.tsv:2: num_samples of 'a\.flac' is 0"),
        ("/root\n", r"train\.tsv: .* no entries"),
        ("", r"train\.tsv:1: expected the root folder"),
        ("\na.flac\t5\n", r"train\.tsv:1: expected the root folder"),
        ("a.flac\t5\nb.flac\t6\n", r"train\.tsv:1: expected the root folder"),
    ],
)
def test_wrong_manifests_are_told_by_line(tmp_path, text, expected):
    (tmp_path / "train.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(StarError, match=expected) as caught:
        read_manifest(tmp_path / "train.tsv")
    assert "\n" not in str(caught.value)


def test_missing_folder_and_binary_files(tmp_path):
    with pytest.raises(StarError, match=r"nowhere\.tsv: cannot read"):
        read_manifest(tmp_path / "nowhere.tsv")
    with pytest.raises(StarError, match="cannot read"):
        read_manifest(tmp_path)
    (tmp_path / "x.tsv").write_bytes(b"/root\n\xff\xfe\t5\n")
    with pytest.raises(StarError, match="not UTF-8"):
        read_manifest(tmp_path / "x.tsv")


def test_windows_line_ends_are_read(tmp_path):
    (tmp_path / "x.tsv").write_bytes(b"/root\r\na.flac\t5\r\n")
    assert read_manifest(tmp_path / "x.tsv") == ("/root", [("a.flac", 5)])


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_a_byte_order_mark_is_no_part_of_the_root(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("manifest") / "train.tsv"
    write_manifest(path, "/root", [ManifestEntry(name, 5) for name in names])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_manifest(path) == ("/root", [(name, 5) for name in names])


def test_training_reads_a_manifest_with_a_byte_order_mark(tmp_path):
    write_audio(tmp_path / "a.wav")
    (tmp_path / "train.tsv").write_text(f"\ufeff{tmp_path}\na.wav\t1600\n", encoding="utf-8")
    dataset = DistillationDataset(
        str(tmp_path / "train.tsv"), sample_rate=16_000, normalize=False, max_sample_size=None, min_sample_size=1,
        random_crop=False, pad_to_multiple=1, seed=1,
    )  # fmt: skip
    assert len(dataset[0]["source"]) == 1600


@pytest.mark.parametrize("name", ["a\tb", "a\nb", " a", "a ", "", "\udcff"])
def test_unwritable_names_leave_the_old_manifest_whole(tmp_path, name):
    path = tmp_path / "train.tsv"
    write_manifest(path, "/root", [ManifestEntry("old", 1)])
    with pytest.raises(StarError, match=r"train\.tsv: "):
        write_manifest(path, "/root", [ManifestEntry("new", 1), ManifestEntry(name, 1)])
    assert read_manifest(path)[1] == [("old", 1)]
    assert [file.name for file in tmp_path.iterdir()] == ["train.tsv"]


def test_write_refuses_no_entries_and_no_samples(tmp_path):
    for entries in ([], [ManifestEntry("a", 0)]):
        with pytest.raises(StarError):
            write_manifest(tmp_path / "train.tsv", "/root", entries)
    assert list(tmp_path.iterdir()) == []


def test_write_makes_a_readable_file(tmp_path):
    write_manifest(tmp_path / "deep" / "train.tsv", "/root", [ManifestEntry("a", 1)])
    assert (tmp_path / "deep" / "train.tsv").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("extension", ["flac", "wav", "ogg"])
def test_probe_tells_the_length(tmp_path, extension):
    path = tmp_path / f"a.{extension}"
    soundfile.write(path, np.zeros(1601), 16_000)
    assert probe_audio(path) == 1601


def test_probe_names_each_fault(tmp_path):
    cases = {
        "stereo.flac": ({"channels": 2}, "2 channels"),
        "narrow.flac": ({"rate": 8_000}, "8000 Hz, must be 16000"),
        "none.wav": ({"num_samples": 0}, "no samples"),
    }
    for name, (options, expected) in cases.items():
        with pytest.raises(StarError, match=rf"{name}: .*{expected}"):
            probe_audio(write_audio(tmp_path / name, **options))
    (tmp_path / "empty.flac").write_bytes(b"")
    (tmp_path / "text.wav").write_text("no audio")
    for name, expected in (("empty.flac", "is empty"), ("text.wav", "cannot be read")):
        with pytest.raises(StarError, match=rf"{name}: {expected}"):
            probe_audio(tmp_path / name)
    with pytest.raises(StarError, match="no such file"):
        probe_audio(tmp_path / "absent.flac")
    assert probe_audio(tmp_path / "narrow.flac", sample_rate=8_000) == 1600


def test_probe_finds_a_file_cut_short(tmp_path):
    path = write_audio(tmp_path / "cut.flac", 40_000)
    path.write_bytes(path.read_bytes()[:-2000])
    assert probe_audio(path, read_end=False) == 40_000
    with pytest.raises(StarError, match=r"cut\.flac: .*cut short"):
        probe_audio(path)


def test_archive_entries_are_read_as_fairseq_does(tmp_path):
    audio = write_audio(tmp_path / "a.flac", 1700).read_bytes()
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("a.flac", audio)
    offset = (tmp_path / "all.zip").read_bytes().index(audio)
    entries = [ManifestEntry(f"all.zip:{offset}:{len(audio)}", 1700)]
    assert list(check_audio(tmp_path, entries, progress=False)) == []
    write_manifest(tmp_path / "train.tsv", tmp_path, entries)
    assert len(FileAudioDataset(tmp_path / "train.tsv", sample_rate=16_000)[0]["source"]) == 1700

    wrong = [f"all.zip:{offset}:999999", f"no.zip:{offset}:9", f"all.zip:{offset + 3}:99", "a:b.mp3"]
    problems = list(check_audio(tmp_path, [ManifestEntry(path, 1700) for path in wrong], progress=False))
    words = ["ends before", "cannot read the archive", "cannot be read", "colon"]
    for problem, word in zip(problems, words, strict=True):
        assert word in problem


def test_check_audio_lists_every_problem_in_order(tmp_path):
    for index in range(40):
        write_audio(tmp_path / f"{index:02d}.flac", 400 + index)
    entries = [ManifestEntry(f"{index:02d}.flac", 400 + index) for index in range(40)]
    assert list(check_audio(tmp_path, entries, progress=False)) == []

    write_audio(tmp_path / "31.flac", channels=2)
    (tmp_path / "05.flac").unlink()
    entries[17] = ManifestEntry("17.flac", 399)
    problems = list(check_audio(tmp_path, entries, progress=False))
    assert len(problems) == 3
    assert "05.flac: no such file" in problems[0]
    assert "17.flac: holds 417 samples but the manifest says 399" in problems[1]
    assert "31.flac: has 2 channels" in problems[2]
    assert list(check_audio(tmp_path, entries[0::4], progress=False)) == []  # a rank's share


def test_probe_all_keeps_the_order(tmp_path):
    paths = [write_audio(tmp_path / f"{index}.wav", 100 + index) for index in range(20)]
    results = probe_all([*reversed(paths), tmp_path / "absent.wav"], progress=False)
    assert results[:-1] == [100 + index for index in reversed(range(20))]
    assert isinstance(results[-1], StarError)


def test_progress_goes_to_stderr(tmp_path, capsys):
    probe_all([write_audio(tmp_path / "a.wav")])
    captured = capsys.readouterr()
    assert captured.err == "reading audio headers: 1 files\n"  # a log file gets whole lines alone
    assert captured.out == ""


def test_a_log_file_hears_of_progress_now_and_then(monkeypatch, capsys):
    times = iter(range(0, 1000, 25))
    monkeypatch.setattr(manifest.time, "monotonic", lambda: next(times))
    assert list(show_progress(range(7), "counting")) == list(range(7))
    lines = ["counting: 3 files so far", "counting: 6 files so far", "counting: 7 files"]
    assert capsys.readouterr().err.splitlines() == lines
