"""What is found in folders and archives, and what is left out and counted."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fairseq_star.audio.file import probe_audio
from fairseq_star.data.dataset import DistillationDataset
from fairseq_star.errors import StarError
from fairseq_star.manifest import read_manifest
from manifests import audio_folder, audio_list, librispeech
from manifests.finding import LeftOut, find_audio, readable_extensions


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found_in(root: Path, *extensions: str) -> tuple[list[str], str]:
    left_out = LeftOut()
    return list(find_audio(root, extensions or ("wav",), left_out)), str(left_out)


def test_linked_folders_and_files_are_followed(tmp_path):
    touch(tmp_path / "store", "spk1/a.wav", "spk1/deep/b.wav", "c.wav")
    corpus = touch(tmp_path / "corpus", "d.wav")
    (corpus / "spk1").symlink_to("../store/spk1")
    (corpus / "c.wav").symlink_to("../store/c.wav")
    assert found_in(corpus) == (["c.wav", "d.wav", "spk1/a.wav", "spk1/deep/b.wav"], "")


def test_links_in_a_circle_end_and_no_folder_is_listed_twice(tmp_path):
    corpus = touch(tmp_path / "corpus", "a/1.wav", "a/b/2.wav")
    (corpus / "a" / "b" / "back").symlink_to("../..")
    (corpus / "a" / "self").symlink_to(".")
    (corpus / "again").symlink_to("a/b")
    (corpus / "out").symlink_to("..")
    paths, told = found_in(corpus)
    assert paths == ["a/1.wav", "a/b/2.wav"]
    assert told == "left out: 4 links to folders (which are listed by another name already)"


def test_links_that_lead_nowhere_are_named(tmp_path, capsys):
    soundfile.write(touch(tmp_path / "in", "a.wav") / "a.wav", np.zeros(800), 16_000)
    (tmp_path / "in" / "spk1").symlink_to("../unmounted/spk1")
    (tmp_path / "in" / "me.wav").symlink_to("me.wav")
    (tmp_path / "in" / ".hidden").symlink_to("nowhere")
    assert audio_folder.main([str(tmp_path / "in"), "--out", str(tmp_path / "m"), "--name", "all"]) == 1
    err = capsys.readouterr().err
    assert f"{tmp_path}/in/spk1: is a link to ../unmounted/spk1, which does not exist" in err
    assert f"{tmp_path}/in/me.wav: is a link to me.wav, which does not exist" in err
    assert "2 bad files or lines left out" in err


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    names = ["a.wav", "b.m4a", "c.M4A", "d.wma", "e.flac", ".f.wav", ".git/g.wav", "._a.wav", "d/.DS_Store",
             "notes.txt", "__MACOSX/._a.wav", "d/h.wav", ".bashrc"]  # fmt: skip
    paths, told = found_in(touch(tmp_path, *names))
    assert paths == ["a.wav", "d/h.wav"]
    assert told == (
        "left out: 2 .m4a, 1 .wma (which soundfile cannot read; convert them, for example with ffmpeg); "
        "1 .flac (whose extension is not in --ext); 2 hidden (whose name begins with a dot); "
        "3 macOS leftovers (delete them: fairseq's own tasks may fail with them)"
    )
    with pytest.raises(StarError, match=r"has no file ending in \.ogg; .*left out: 2 \.m4a"):
        found_in(tmp_path, "ogg")


def test_every_format_soundfile_reads_is_found(tmp_path):
    soundfile.write(tmp_path / "a.sph", np.zeros(900), 16_000, format="NIST")
    soundfile.write(tmp_path / "b.snd", np.zeros(900), 16_000, format="AU")
    soundfile.write(tmp_path / "c.aifc", np.zeros(900), 16_000, format="AIFF")
    paths, told = found_in(tmp_path, *readable_extensions())
    assert paths == ["a.sph", "b.snd", "c.aifc"]
    assert not told
    assert {probe_audio(tmp_path / path) for path in paths} == {900}


def test_librispeech_follows_links_and_tells_what_it_left_out(tmp_path, capsys):
    corpus = tmp_path / "store" / "26" / "7"
    corpus.mkdir(parents=True)
    soundfile.write(corpus / "26-7-0000.flac", np.zeros(800), 16_000)
    touch(corpus, "26-7-0001.wav", "._26-7-0000.flac")
    (tmp_path / "train-clean-100").symlink_to("store")
    (tmp_path / "store" / "27").symlink_to("26")
    (tmp_path / "store" / "28").symlink_to("nowhere")
    assert librispeech.main([str(tmp_path), "--out", str(tmp_path / "m")]) == 1
    assert [path for path, _ in read_manifest(tmp_path / "m" / "train-100h.tsv")[1]] == [
        "train-clean-100/26/7/26-7-0000.flac"
    ]
    err = capsys.readouterr().err
    assert "store/28: is a link to nowhere" in err.replace("train-clean-100", "store")
    assert "left out: 1 .wav (whose extension is not in --ext); 1 links to folders" in err
    assert "1 macOS leftovers" in err


def resource_fork(path: Path) -> None:
    """What macOS writes beside a file, on a disk that has no resource forks: AppleDouble with an empty resource map."""
    fork = struct.pack(">4I", 256, 256, 0, 30) + bytes(240) + struct.pack(">4I", 256, 256, 0, 30) + bytes(6)
    fork += struct.pack(">3h", 28, 30, -1)
    head = b"\0\5\x16\7\0\2\0\0Mac OS X        " + struct.pack(">H6I", 2, 9, 50, 32, 2, 82, len(fork))
    path.with_name(f"._{path.name}").write_bytes(head + bytes(32) + fork)


@pytest.fixture
def forked(tmp_path) -> Path:
    """Audio of each kind with a resource fork beside it."""
    folder = tmp_path / "forked"
    folder.mkdir()
    for name in ("a.mp3", "b.wav", "c.flac", "d.ogg"):
        soundfile.write(folder / name, 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
        resource_fork(folder / name)
    return folder


def test_audio_beside_a_resource_fork_is_listed_and_trained_on(forked, capsys):
    manifest = forked.parent / "m" / "all.tsv"
    assert audio_folder.main([str(forked), "--out", str(manifest.parent), "--name", "all"]) == 0
    assert "4 macOS leftovers" in capsys.readouterr().err
    assert [path for path, _ in read_manifest(manifest)[1]] == ["a.mp3", "b.wav", "c.flac", "d.ogg"]
    dataset = DistillationDataset(
        str(manifest), sample_rate=16_000, normalize=False, max_sample_size=None, min_sample_size=1, random_crop=False,
        pad_to_multiple=1, seed=1,
    )  # fmt: skip
    for index in range(4):
        assert len(dataset[index]["source"]) == 16_000


def test_leftovers_in_lists_and_archives_are_skipped(forked, capsys):
    with zipfile.ZipFile(forked / "all.zip", "w") as archive:
        archive.write(forked / "b.wav", "./d/b.wav")
        for name in ("__MACOSX/d/._b.wav", "__MACOSX/b.wav", "d/._b.wav", "d/.DS_Store", "d/b.m4a"):
            archive.writestr(name, b"\0\5\x16\7" + bytes(300))
    (forked / "found.txt").write_text("./._b.wav\n./b.wav\n__MACOSX/x.wav\n")
    for name, leftovers in (("all.zip", 4), ("found.txt", 2)):
        assert audio_list.main([str(forked / name), "--out", str(forked / "m"), "--name", "all"]) == 0
        assert f"{leftovers} macOS leftovers" in capsys.readouterr().err
        assert len(read_manifest(forked / "m" / "all.tsv")[1]) == 1
