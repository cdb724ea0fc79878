"""The scripts that prepare manifests, run on good folders and bad ones."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fairseq_star.errors import StarError
from fairseq_star.manifest import read_manifest
from manifests import audio_folder, audio_list, librispeech, preparing
from tests.support import ROOT
from tests.support.terminal import Terminal


def write_audio(path: Path, num_samples: int = 800, rate: int = 16_000, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full((num_samples, channels), 0.1), rate, subtype="PCM_16")


def write_corpus(root: Path, folder: str, speakers: list[int], per_speaker: int = 2) -> None:
    for speaker in speakers:
        for index in range(per_speaker):
            write_audio(root / folder / str(speaker) / "7" / f"{speaker}-7-{index:04d}.flac", 800 + index)
        (root / folder / str(speaker) / "7" / f"{speaker}-7.trans.txt").write_text("no audio")


def paths_of(manifest: Path) -> list[str]:
    return [path for path, _ in read_manifest(manifest)[1]]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twenty good files in awkwardly named places."""
    root = tmp_path / "ünï côde and blanks"
    for index in range(18):
        write_audio(root / f"部屋 {index % 3}" / f"f {index:02d}.flac", 800 + index)
    write_audio(root / "deep" / "er" / "x.WAV")
    write_audio(root / "y.ogg.wav")
    write_audio(root / ".hidden" / "z.wav")
    (root / "notes.txt").write_text("no audio")
    return root


@pytest.fixture
def bad_folder(folder) -> Path:
    write_audio(folder / "stereo.flac", channels=2)
    write_audio(folder / "narrow.flac", rate=8_000)
    write_audio(folder / "none.wav", num_samples=0)
    (folder / "empty.flac").write_bytes(b"")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 30_000)
    soundfile.write(folder / "cut.flac", noise, 16_000)
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:-3000])
    return folder


def test_folder_is_found_whole_and_split_reproducibly(folder, tmp_path):
    arguments = [str(folder), "--valid-percent", "25"]
    assert audio_folder.main([*arguments, "--out", str(tmp_path / "a")]) == 0
    assert audio_folder.main([*arguments, "--out", str(tmp_path / "b")]) == 0
    assert audio_folder.main([*arguments, "--out", str(tmp_path / "c"), "--seed", "5"]) == 0
    root, train = read_manifest(tmp_path / "a" / "train.tsv")
    valid = read_manifest(tmp_path / "a" / "valid.tsv")[1]
    assert root == str(folder)
    assert len(valid) == 5
    assert len(train) == 15
    assert sorted({*train} | {*valid}) == sorted([*train, *valid])  # no file twice
    assert paths_of(tmp_path / "a" / "train.tsv") == sorted(paths_of(tmp_path / "a" / "train.tsv"))
    assert not any(".hidden" in path or path.endswith(".txt") for path, _ in [*train, *valid])
    for split in ("train.tsv", "valid.tsv"):
        assert (tmp_path / "a" / split).read_bytes() == (tmp_path / "b" / split).read_bytes()
    assert paths_of(tmp_path / "c" / "valid.tsv") != paths_of(tmp_path / "a" / "valid.tsv")


def test_a_file_added_moves_few_others(folder, tmp_path):
    arguments = [str(folder), "--valid-percent", "25", "--out", str(tmp_path / "m")]
    audio_folder.main(arguments)
    before = set(paths_of(tmp_path / "m" / "valid.tsv"))
    write_audio(folder / "added.flac")
    audio_folder.main(arguments)
    assert len(before - set(paths_of(tmp_path / "m" / "valid.tsv"))) <= 1


def test_folder_extensions_and_no_valid(folder, tmp_path):
    assert audio_folder.main([str(folder), "--out", str(tmp_path / "m"), "--ext", ".wav", "--valid-percent", "0"]) == 0
    assert paths_of(tmp_path / "m" / "train.tsv") == ["deep/er/x.WAV", "y.ogg.wav"]
    assert not (tmp_path / "m" / "valid.tsv").exists()


def test_bad_files_are_named_and_fail_the_run(bad_folder, tmp_path, capsys):
    arguments = [str(bad_folder), "--out", str(tmp_path / "m"), "--valid-percent", "10"]
    assert audio_folder.main(arguments) == 1
    told = capsys.readouterr().err
    bad = {"stereo": "2 channels", "narrow": "8000 Hz", "none": "no samples", "empty": "is empty", "cut": "cut short"}
    lines = told.splitlines()
    for name, words in bad.items():
        assert any(f"{name}." in line and words in line for line in lines), (name, told)
    assert "5 bad files or lines left out" in told
    listed = paths_of(tmp_path / "m" / "train.tsv") + paths_of(tmp_path / "m" / "valid.tsv")
    assert len(listed) == 20
    assert not any(Path(path).stem in bad for path in listed)

    assert audio_folder.main([*arguments, "--skip-bad"]) == 0
    assert "5 bad files or lines left out" in capsys.readouterr().err


def test_headers_only_misses_what_it_says(bad_folder, tmp_path):
    arguments = [str(bad_folder), "--out", str(tmp_path / "m"), "--skip-bad", "--headers-only", "--valid-percent", "0"]
    assert audio_folder.main(arguments) == 0
    assert "cut.flac" in paths_of(tmp_path / "m" / "train.tsv")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere"], "is no folder"),
        (["."], "has no file ending in"),
        ([".", "--valid-percent", "100"], "--valid-percent 100"),
        ([".", "--valid-percent", "-1"], "--valid-percent -1"),
        ([".", "--resample", "copies"], "--resample copies: is below"),
    ],
)
def test_folder_refuses_wrong_options(tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StarError, match=expected):
        audio_folder.main([*arguments, "--out", "out"])
    assert not (tmp_path / "out").exists()


def test_all_files_bad(tmp_path):
    write_audio(tmp_path / "in" / "a.wav", channels=2)
    with pytest.raises(StarError, match="no audio to list"):
        audio_folder.main([str(tmp_path / "in"), "--out", str(tmp_path / "m"), "--skip-bad"])


def test_an_old_valid_beside_a_new_train_is_told(tmp_path, capsys):
    write_audio(tmp_path / "old" / "a.wav")
    for number in range(3):
        write_audio(tmp_path / "new" / f"{number}.wav")
    out = str(tmp_path / "m")
    assert audio_folder.main([str(tmp_path / "old"), "--out", out, "--name", "valid"]) == 0
    assert "valid.tsv" not in capsys.readouterr().err
    told = f"{out}/valid.tsv: is an earlier run's, 1 files below {tmp_path}/old"
    for options in (["--name", "train"], ["--valid-percent", "0"]):
        assert audio_folder.main([str(tmp_path / "new"), "--out", out, *options]) == 0
        assert [line for line in capsys.readouterr().err.splitlines() if "valid.tsv" in line] == [
            f"{told}; remove it if it is not wanted"
        ]
    assert audio_folder.main([str(tmp_path / "new"), "--out", out, "--valid-percent", "34"]) == 0
    assert "valid.tsv" not in capsys.readouterr().err
    write_corpus(tmp_path, "train-clean-100", [26])
    assert librispeech.main([str(tmp_path), "--out", out, "--split", "100h"]) == 0
    assert f"{out}/valid.tsv: is an earlier run's, 1 files below {tmp_path}/new" in capsys.readouterr().err


def test_files_in_both_splits_are_told(tmp_path, capsys):
    for number in range(3):
        write_audio(tmp_path / "in" / "a" / f"{number}.wav")
    out = str(tmp_path / "m")
    assert audio_folder.main([str(tmp_path / "in"), "--out", out, "--name", "train"]) == 0
    assert audio_folder.main([str(tmp_path / "in" / "a"), "--out", out, "--name", "valid"]) == 0
    told = f"{out}/train.tsv: 3 files are also in {out}/valid.tsv, the first is {tmp_path}/in/a/0.wav"
    assert told in capsys.readouterr().err
    (tmp_path / "m" / "valid.tsv").write_text("no manifest\n")
    assert audio_folder.main([str(tmp_path / "in"), "--out", out, "--name", "train"]) == 0
    assert "valid.tsv: has a root line but no entries" in capsys.readouterr().err


def test_messages_stand_on_lines_of_their_own(bad_folder, tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    names = ["stereo.flac", "narrow.flac", "none.wav", "empty.flac", "cut.flac"]
    (bad_folder / "wav.scp").write_text("".join(f"{name} {name}\n" for name in ["y.ogg.wav", *names]))
    (bad_folder / "segments").touch()
    audio_list.main([str(bad_folder / "wav.scp"), "--out", str(tmp_path / "m"), "--name", "all"])
    shown = terminal.shown()
    assert f"{bad_folder}/wav.scp: lists whole recordings; the segments file next to it is not applied" in shown
    for number, name in enumerate(names, start=2):
        assert sum(line.startswith(f"{bad_folder}/wav.scp:{number}: {bad_folder}/{name}: ") for line in shown) == 1

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(preparing.Spool, "add", full)
    with pytest.raises(SystemExit):
        preparing.run_script(lambda: audio_folder.main([str(bad_folder), "--out", str(tmp_path / "m")]))
    assert terminal.shown()[-2:] == ["No space left on device", ""]


def test_librispeech_writes_every_split_there(tmp_path):
    root = tmp_path / "LibriSpeech"
    write_corpus(root, "train-clean-100", [103, 26, 1034])
    write_corpus(root, "dev-clean", [84])
    out = tmp_path / "m"
    assert librispeech.main([str(root), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["train-100h.tsv", "valid.tsv"]
    assert read_manifest(out / "train-100h.tsv")[0] == str(root)
    speakers = [path.split("/")[1] for path in paths_of(out / "train-100h.tsv")]
    assert speakers == ["26", "26", "103", "103", "1034", "1034"]  # by number, not by letter
    assert [entry.num_samples for entry in read_manifest(out / "valid.tsv")[1]] == [800, 801]

    write_corpus(root, "train-clean-360", [14])
    write_corpus(root, "train-other-500", [20])
    write_corpus(root, "dev-other", [116])
    assert librispeech.main([str(root), "--out", str(out)]) == 0
    assert len(paths_of(out / "train-960h.tsv")) == 10
    assert len(paths_of(out / "train-100h.tsv")) == 6
    assert {path.split("/")[0] for path in paths_of(out / "valid.tsv")} == {"dev-clean", "dev-other"}


def test_librispeech_holds_out_speakers_from_every_split(tmp_path):
    root = tmp_path / "LibriSpeech"
    write_corpus(root, "train-clean-100", [9, 26, 103, 1034])
    write_corpus(root, "train-clean-360", [2000])
    write_corpus(root, "train-other-500", [3000])
    out = tmp_path / "m"
    assert librispeech.main([str(root), "--out", str(out), "--valid-speakers", "2"]) == 0
    valid = paths_of(out / "valid.tsv")
    assert {path.split("/")[1] for path in valid} == {"103", "1034"}
    assert len(paths_of(out / "train-100h.tsv")) == 4
    assert len(paths_of(out / "train-960h.tsv")) == 8
    assert not set(valid) & set(paths_of(out / "train-960h.tsv"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--split", "960h"], r"lacks train-clean-360, train-other-500"),
        (["--split", "dev"], r"lacks dev-clean and dev-other"),
        (["--valid-speakers", "3"], r"--valid-speakers 3: must be below 3"),
        (["--valid-speakers", "1", "--split", "dev", "100h"], r"does not go with --split dev"),
        (["--valid-speakers", "-1"], r"must not be negative"),
    ],
)
def test_librispeech_refuses_wrong_options(tmp_path, arguments, expected):
    write_corpus(tmp_path, "train-clean-100", [26, 103, 1034], per_speaker=1)
    with pytest.raises(StarError, match=expected):
        librispeech.main([str(tmp_path), "--out", str(tmp_path / "m"), *arguments])
    assert not (tmp_path / "m").exists()


def test_librispeech_lists_every_split_and_single_folders(tmp_path):
    root, out = tmp_path / "LibriSpeech", tmp_path / "m"
    for speaker, folder in enumerate(librispeech.PUBLISHED, start=100):
        write_corpus(root, folder, [speaker], per_speaker=1)
    assert librispeech.main([str(root), "--out", str(out)]) == 0
    written = {"train-100h": 1, "train-460h": 2, "train-960h": 3, "valid": 2, "test-clean": 1, "test-other": 1}
    assert {path.stem: len(paths_of(path)) for path in out.iterdir()} == written
    assert librispeech.main([str(root), "--out", str(out / "more"), "--split", "dev-other", "test-clean"]) == 0
    assert sorted(path.stem for path in (out / "more").iterdir()) == ["dev-other", "test-clean"]
    assert paths_of(out / "more" / "dev-other.tsv") == ["dev-other/104/7/104-7-0000.flac"]


def test_librispeech_compares_with_what_is_published(tmp_path, monkeypatch, capsys):
    root = tmp_path / "LibriSpeech"
    write_corpus(root, "dev-clean", [84])
    write_corpus(root, "test-clean", [61])
    monkeypatch.setattr(librispeech, "PUBLISHED", {"dev-clean": (2, 0.1), "test-clean": (2, 0.4)})
    arguments = [str(root), "--out", str(tmp_path / "m")]
    assert librispeech.main(arguments) == 0
    err = capsys.readouterr().err
    assert "dev-clean: 2 utterances, 0.00 h, as published" in err
    assert "test-clean: 2 utterances, 0.00 h; published are 2 and 0.4 h: unless an excerpt" in err
    assert librispeech.main([*arguments, "--complete"]) == 1
    assert librispeech.main([*arguments, "--complete", "--split", "dev"]) == 0
    (root / "dev-clean" / "84" / "7" / "84-7-0001.flac").unlink()
    assert librispeech.main([*arguments, "--complete", "--split", "dev"]) == 1


def test_librispeech_totals_are_the_published_ones():
    assert sum(count for count, _ in librispeech.PUBLISHED.values()) == 292_367
    assert sum(librispeech.PUBLISHED[folder][0] for folder in librispeech.TRAIN_FOLDERS["960h"]) == 281_241


def test_librispeech_refuses_other_layouts(tmp_path):
    with pytest.raises(StarError, match="has none of train-clean-100"):
        librispeech.main([str(tmp_path), "--out", str(tmp_path / "m")])
    write_audio(tmp_path / "train-clean-100" / "a.flac")
    with pytest.raises(StarError, match=r"a\.flac: is not in <split>/<speaker>/<chapter>"):
        librispeech.main([str(tmp_path), "--out", str(tmp_path / "m")])


def test_script_runs_from_anywhere_and_tells_errors_in_a_line(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = ROOT / "manifests" / "audio_folder.py"
    done = subprocess.run(
        [sys.executable, script, "nowhere", "--out", "m"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "nowhere: is no folder; name the folder that holds the audio"
    assert "Traceback" not in done.stderr


REAL_SPEECH = Path(os.environ.get("STAR_REAL_SPEECH", ROOT.parent / "shared" / "data" / "LibriSpeech"))


@pytest.mark.skipif(not REAL_SPEECH.is_dir(), reason="no LibriSpeech excerpt; name its folder in STAR_REAL_SPEECH")
def test_real_speech(tmp_path):
    assert librispeech.main([str(REAL_SPEECH), "--out", str(tmp_path), "--valid-speakers", "25", "--headers-only"]) == 0
    assert len(paths_of(tmp_path / "valid.tsv")) == 25
    train = read_manifest(tmp_path / "train-100h.tsv")[1]
    assert len(train) == 226
