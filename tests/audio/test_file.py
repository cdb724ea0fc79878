"""The checks of the audio that a manifest names."""

import struct
import zipfile

import numpy as np
import pytest
import soundfile
from fairseq.data.audio.raw_audio_dataset import FileAudioDataset

from fairseq_star.audio import threads
from fairseq_star.audio.file import check_audio, open_audio, probe_audio
from fairseq_star.audio.threads import show_progress
from fairseq_star.errors import StarError
from fairseq_star.manifest import ManifestEntry, write_manifest
from tests.support.audio import write_audio


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
    with pytest.raises(StarError, match=r"cut\.flac: is cut short or damaged: not all of the 40000 samples"):
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


def test_many_files_keep_their_order(tmp_path):
    paths = [write_audio(tmp_path / f"{index}.wav", 100 + index) for index in range(20)]
    probed = threads.map_in_threads(probe_audio, [*reversed(paths), tmp_path / "absent.wav"])
    results = [result for _, result in probed]
    assert results[:-1] == [100 + index for index in reversed(range(20))]
    assert isinstance(results[-1], StarError)


def test_progress_goes_to_stderr(capsys):
    assert list(threads.show_progress(["a.wav"], "reading audio headers")) == ["a.wav"]
    captured = capsys.readouterr()
    assert captured.err == "reading audio headers: 1 files\n"  # a log file gets whole lines alone
    assert captured.out == ""


def test_a_log_file_hears_of_progress_now_and_then(monkeypatch, capsys):
    times = iter(range(0, 1000, 25))
    monkeypatch.setattr(threads.time, "monotonic", lambda: next(times))
    assert list(show_progress(range(7), "counting")) == list(range(7))
    lines = ["counting: 3 files so far", "counting: 6 files so far", "counting: 7 files"]
    assert capsys.readouterr().err.splitlines() == lines


def test_what_macos_leaves_beside_a_file_is_not_read(tmp_path):
    """``._NAME``, a resource fork: libsndfile reads it, and fails, when it is handed the file's name."""
    soundfile.write(tmp_path / "a.mp3", np.random.default_rng(0).uniform(-0.1, 0.1, 32_000), 16_000)
    places = struct.pack(">4I", 256, 256, 0, 30)
    fork = places + bytes(240) + places + bytes(6) + struct.pack(">3h", 28, 30, -1)
    head = b"\0\5\x16\7\0\2\0\0Mac OS X        " + struct.pack(">H6I", 2, 9, 50, 32, 2, 82, len(fork))
    (tmp_path / "._a.mp3").write_bytes(head + bytes(32) + fork)
    with pytest.raises(soundfile.SoundFileError):
        soundfile.read(tmp_path / "a.mp3")
    assert probe_audio(tmp_path / "a.mp3") == 32_000
    with open_audio(tmp_path / "a.mp3") as audio:
        assert len(audio.read()) == 32_000
