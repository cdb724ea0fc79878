"""LibriSpeech through the pipeline that all sources share: resampling, copies, links, what is left out."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fairseq_star.audio.file import probe_audio
from fairseq_star.errors import StarError
from fairseq_star.manifest import read_manifest
from manifests import labels, librispeech, preparing
from tests.support.audio import write_audio


def utterance(root: Path, folder: str, speaker: int, number: int = 0, extension: str = "flac") -> Path:
    return root / folder / str(speaker) / "7" / f"{speaker}-7-{number:04d}.{extension}"


def paths_of(manifest: Path) -> list[str]:
    return [path for path, _ in read_manifest(manifest)[1]]


@pytest.fixture
def root(tmp_path) -> Path:
    """Four speakers of train-clean-100, one of train-clean-360 and of dev-clean; some files are not 16 kHz mono."""
    root = tmp_path / "LibriSpeech"
    for speaker in (9, 26, 103, 1034):
        write_audio(utterance(root, "train-clean-100", speaker))
    write_audio(utterance(root, "train-clean-100", 26, 1), 4410, rate=44_100)
    write_audio(utterance(root, "train-clean-100", 1034, 1), 1600, channels=2)
    write_audio(utterance(root, "train-clean-360", 14), 800, rate=8_000)
    write_audio(utterance(root, "dev-clean", 84), 4800, rate=48_000)
    return root


def test_what_is_not_16_khz_mono_is_named_or_converted(root, tmp_path, capsys):
    out, copies = tmp_path / "m", tmp_path / "copies"
    arguments = [str(root), "--out", str(out), "--split", "100h", "460h"]
    assert librispeech.main(arguments) == 1
    err = capsys.readouterr().err
    assert any("train-clean-100/26/7/26-7-0001.flac: " in line and "44100 Hz" in line for line in err.splitlines())
    assert "3 bad files or lines left out; correct them and run this again, or give --skip-bad" in err
    assert "train-clean-100: 4 utterances" in err

    assert librispeech.main([*arguments, "--resample", str(copies)]) == 0
    err = capsys.readouterr().err
    assert "converting: 7 files" in err
    assert "train-clean-100: 6 utterances" in err
    speakers = {split: [Path(path).name.split("-")[0] for path in paths_of(out / f"{split}.tsv")]
                for split in ("train-100h", "train-460h")}  # fmt: skip
    assert speakers["train-100h"] == ["9", "26", "26", "103", "1034", "1034"]  # by number, copies in their place
    assert speakers["train-460h"] == [*speakers["train-100h"], "14"]
    for path, num_samples in read_manifest(out / "train-460h.tsv")[1]:
        assert num_samples == 1600
        assert probe_audio(root / path) == 1600
    converted = [path for path in paths_of(out / "train-460h.tsv") if path.startswith("/")]
    assert [Path(path).relative_to(copies).parts[:2] for path in converted] == [
        ("train-clean-100", "26"), ("train-clean-100", "1034"), ("train-clean-360", "14")
    ]  # fmt: skip

    written = {path: path.stat().st_mtime_ns for path in copies.rglob("*.flac")}
    assert librispeech.main([*arguments, "--resample", str(copies)]) == 0
    assert {path: path.stat().st_mtime_ns for path in copies.rglob("*.flac")} == written  # not done again


def test_copies_of_held_out_speakers_are_held_out(root, tmp_path):
    out = tmp_path / "m"
    arguments = ["--valid-speakers", "1", "--resample", str(tmp_path / "copies")]
    assert librispeech.main([str(root), "--out", str(out), *arguments]) == 0
    valid = paths_of(out / "valid.tsv")
    assert [Path(path).name.split("-")[0] for path in valid] == ["1034", "1034"]
    for train in ("train-100h", "train-460h"):
        assert not set(valid) & set(paths_of(out / f"{train}.tsv"))
        assert not any("1034" in path for path in paths_of(out / f"{train}.tsv"))


def test_labels_of_copies_are_their_sources(root, tmp_path):
    for folder, speaker, names in [("train-clean-100", 26, ("0000", "0001")), ("dev-clean", 84, ("0000",))]:
        lines = [f"{speaker}-7-{name} WORD {speaker} {name}\n" for name in names]
        (root / folder / str(speaker) / "7" / f"{speaker}-7.trans.txt").write_text("".join(lines))
    for speaker in (9, 103, 1034):
        shutil.rmtree(root / "train-clean-100" / str(speaker))
    out = tmp_path / "m"
    assert librispeech.main([str(root), "--out", str(out), "--resample", str(tmp_path / "copies")]) == 0
    assert labels.main([str(out / "train-100h.tsv"), str(out / "valid.tsv")]) == 0
    assert (out / "train-100h.wrd").read_text() == "WORD 26 0000\nWORD 26 0001\n"
    assert (out / "valid.wrd").read_text() == "WORD 84 0000\n"


def test_other_extensions_are_asked_for(tmp_path):
    write_audio(utterance(tmp_path, "dev-clean", 84, extension="wav"))
    arguments = [str(tmp_path), "--out", str(tmp_path / "m")]
    with pytest.raises(StarError, match=r"dev-clean: has no file ending in \.flac; .* --ext \(left out: 1 \.wav"):
        librispeech.main(arguments)
    assert librispeech.main([*arguments, "--ext", "flac", "wav"]) == 0
    assert paths_of(tmp_path / "m" / "valid.tsv") == ["dev-clean/84/7/84-7-0000.wav"]


def test_copies_below_the_corpus_are_refused(root, tmp_path):
    with pytest.raises(StarError, match=r"--resample .*copies: is below .*LibriSpeech"):
        librispeech.main([str(root), "--out", str(tmp_path / "m"), "--resample", str(root / "copies")])
    assert not (tmp_path / "m").exists()
    assert not (root / "copies").exists()


def test_links_hidden_files_and_damage_are_told(tmp_path, capsys):
    root, out = tmp_path / "LibriSpeech", tmp_path / "m"
    write_audio(utterance(tmp_path / "elsewhere", "dev-clean", 84))
    root.mkdir()
    (root / "dev-clean").symlink_to(tmp_path / "elsewhere" / "dev-clean")
    folder = root / "dev-clean" / "84" / "7"
    write_audio(folder / "._84-7-0000.flac")
    write_audio(folder / "84-7-0002.ogg.wav")
    (folder / "84-7-0003.flac").symlink_to("nowhere.flac")
    (root / "dev-clean" / "85").symlink_to(root / "dev-clean" / "84")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 30_000)
    soundfile.write(folder / "84-7-0004.flac", noise, 16_000)
    (folder / "84-7-0004.flac").write_bytes((folder / "84-7-0004.flac").read_bytes()[:-3000])

    assert librispeech.main([str(root), "--out", str(out)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert paths_of(out / "valid.tsv") == ["dev-clean/84/7/84-7-0000.flac"]
    assert any(
        line.endswith("84-7-0003.flac: is a link to nowhere.flac, which does not exist; correct it") for line in lines
    )
    assert any("84-7-0004.flac" in line and "cut short" in line for line in lines)
    [counted] = [line for line in lines if line.startswith("left out: ")]
    for words in ("1 .wav", "1 links to folders", "1 macOS leftovers"):
        assert words in counted

    assert librispeech.main([str(root), "--out", str(out), "--headers-only", "--skip-bad"]) == 0
    assert len(paths_of(out / "valid.tsv")) == 2


def test_names_no_manifest_can_hold_cost_that_file_alone(tmp_path, capsys):
    write_audio(utterance(tmp_path, "dev-clean", 84))
    write_audio(tmp_path / "dev-clean" / "84" / "7" / "a\tb.flac")
    assert librispeech.main([str(tmp_path), "--out", str(tmp_path / "m"), "--skip-bad"]) == 0
    assert "no manifest can list the path 'dev-clean/84/7/a\\tb.flac'" in capsys.readouterr().err
    assert paths_of(tmp_path / "m" / "valid.tsv") == ["dev-clean/84/7/84-7-0000.flac"]


def test_a_split_of_bad_files_alone_is_told(root, tmp_path):
    with pytest.raises(StarError, match=r"valid\.tsv: no audio to list"):
        librispeech.main([str(root), "--out", str(tmp_path / "m"), "--skip-bad", "--split", "100h", "dev"])
    with pytest.raises(StarError, match="no audio to list: all of 1 files or lines are bad"):
        librispeech.main([str(root), "--out", str(tmp_path / "m"), "--skip-bad", "--split", "dev"])


def test_progress_says_how_many_there_are(root, tmp_path, monkeypatch):
    totals = []

    def show(items, what, total=None):
        totals.append((what, total))
        return (item for item in items)

    monkeypatch.setattr(preparing, "show_progress", show)
    librispeech.main([str(root), "--out", str(tmp_path / "m"), "--skip-bad", "--split", "100h"])
    assert totals == [("reading audio headers", 6)]
