"""Manifests of what people have: lists, tables, wav.scp, zip archives; conversion to 16 kHz mono."""

import json
import os
import unicodedata
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from fairseq_star.audio.threads import map_in_threads
from fairseq_star.audio.utterances import original_name
from fairseq_star.data.dataset import DistillationDataset, check_manifest
from fairseq_star.errors import StarError
from fairseq_star.manifest import read_manifest
from manifests import audio_folder, audio_list, preparing, resampling
from manifests.finding import LeftOut, find_audio


@pytest.fixture
def audio(tmp_path) -> Path:
    """a/0.flac .. a/5.flac of 800 to 805 samples."""
    folder = tmp_path / "audio"
    (folder / "a").mkdir(parents=True)
    for index in range(6):
        soundfile.write(folder / "a" / f"{index}.flac", np.full(800 + index, 0.1), 16_000)
    return folder


def entries(path: Path) -> list[tuple[str, int]]:
    return read_manifest(path)[1]


def list_as(folder: Path, name: str, lines: list[str], *options: str) -> tuple[int, Path]:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = folder.parent / "m"
    return audio_list.main([str(folder / name), "--out", str(out), "--name", "all", *options]), out / "all.tsv"


ALL = [(f"a/{index}.flac", 800 + index) for index in range(6)]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("files.txt", [path for path, _ in ALL] + ["", ""]),
        ("s3prl.csv", [",file_path,length,label", *(f"{i},{path},{size}," for i, (path, size) in enumerate(ALL))]),
        ("repo.csv", ["\ufefffile_path,length", *(f"{path},{size}" for path, size in ALL)]),
        ("metadata.csv", ["file_name,text", *(f'{path},"a ""quoted"", text"' for path, _ in ALL)]),
        ("cv.tsv", ["client_id\tpath", *(f"me\t{path}" for path, _ in ALL)]),
        ("metadata.jsonl", [json.dumps({"file_name": path, "text": "x"}) for path, _ in ALL]),
        ("nemo.json", [json.dumps({"audio_filepath": path, "duration": 0.05}) for path, _ in ALL]),
        ("wav.scp", [f"utt{i} {path}" for i, (path, _) in enumerate(ALL)]),
    ],
)
def test_each_kind_of_list_gives_the_same_manifest(audio, name, lines):
    status, manifest = list_as(audio, name, lines)
    assert status == 0
    assert read_manifest(manifest) == (str(audio), ALL)
    assert [path.name for path in manifest.parent.iterdir()] == ["all.tsv"]


@pytest.mark.parametrize(
    ("name", "lines", "told"),
    [
        ("l.txt", ["a/0.flac", "a/9.flac"], ["l.txt:2: ", "a/9.flac: no such file"]),
        ("l.csv", ["file_path,length", "a/0.flac,800", "a/1.flac,12.5"], ["l.csv:3: ", "'12.5'", "number of samples"]),
        ("l.csv", ["file_path,length", "a/0.flac,800", "a/1.flac,0"], ["l.csv:3: ", "'0'"]),
        ("l.csv", ["file_path,length", "a/0.flac,800", "a/1.flac,799"], ["l.csv:3: ", "has 801 samples, not 799"]),
        ("l.csv", ["file_path,length", "a/0.flac", "a/1.flac,801"], ["l.csv:2: ", "has 1 fields"]),
        ("l.csv", ["file_path,length", ",800", "a/1.flac,801"], ["l.csv:2: ", "file_path is ''"]),
        ("l.csv", ["x,file_path", '"two\nlines",a/1.flac', "y,a/9.flac"], ["l.csv:4: ", "no such file"]),
        ("l.jsonl", ['{"file_name": "a/0.flac"}', "[1]"], ["l.jsonl:2: ", "no JSON object"]),
        ("l.jsonl", ['{"file_name": "a/0.flac"}', '{"file_name": 3}'], ["l.jsonl:2: ", "file_name is 3"]),
        ("wav.scp", ["u0 a/0.flac", "u1 sox a/1.flac -t wav - |"], ["wav.scp:2: ", "u1 is a command"]),
        ("wav.scp", ["u0 a/0.flac", "u1 raw.ark:1234"], ["wav.scp:2: ", "u1 is a place in a Kaldi archive"]),
        ("wav.scp", ["u0 a/0.flac", "u1"], ["wav.scp:2: ", "expected 'utterance path'"]),
        ("l.txt", ["a/0.flac", "a/1.flac", "a/0.flac"], ["a/0.flac: is listed more than once"]),
        ("l.txt", ["a/0.flac", "a/\t1.flac"], ["l.txt:2: ", "no manifest can list"]),
        ("l.txt", ["a/0.flac", "a/\0.flac"], ["l.txt:2: ", "no manifest can list"]),
    ],
)
def test_each_bad_line_is_named_and_the_rest_written(audio, capsys, name, lines, told):
    status, manifest = list_as(audio, name, lines)
    err = capsys.readouterr().err
    assert status == 1
    assert any(all(words in line for words in told) for line in err.splitlines()), err
    assert "1 bad files or lines left out" in err
    good = [entry for entry in ALL if any(entry[0] in line for line in lines) and entry[0] not in "".join(told)]
    assert 0 < len(entries(manifest)) <= 2
    assert set(entries(manifest)) <= {*good, ALL[0], ALL[1]}
    assert list_as(audio, name, lines, "--skip-bad")[0] == 0


@pytest.mark.parametrize(
    ("name", "content", "options", "expected"),
    [
        (
            "l.csv",
            b"name,size\na/0.flac,5\n",
            [],
            r"l\.csv:2: no column file_path .* but 'name', 'size'; name .*--column",
        ),
        ("l.csv", b"", [], "all of 0 files or lines are bad"),
        ("l.txt", b"\xff\xfe\n", [], r"l\.txt: is not UTF-8"),
        ("l.txt", b"a/9.flac\n", [], "no audio to list: all of 1 "),
        ("l.zip", b"no archive", [], r"l\.zip: cannot be read as a zip archive"),
        ("l.txt", b"a/0.flac\n", ["--valid-percent", "100"], "--valid-percent 100"),
        ("l.txt", b"a/0.flac\n", ["--name", "x", "--valid-percent", "5"], "--name 'x'"),
        ("l.txt", b"a/0.flac\n", ["--trust-lengths", "--resample", "r"], "does not go with --resample"),
        ("l.txt", b"a/0.flac\n", ["--root", "nowhere"], "nowhere: is no folder"),
    ],
)
def test_what_cannot_be_read_at_all(audio, name, content, options, expected):
    (audio / name).write_bytes(content)
    with pytest.raises(StarError, match=expected):
        audio_list.main([str(audio / name), "--out", str(audio.parent / "m"), *options])
    assert not (audio.parent / "m").exists()


def test_lengths_are_trusted_only_when_asked(audio, capsys):
    lines = ["file_path,length", "a/0.flac,123", "nowhere.flac,456"]
    status, manifest = list_as(audio, "l.csv", lines, "--trust-lengths")
    assert status == 0
    assert entries(manifest) == [("a/0.flac", 123), ("nowhere.flac", 456)]
    with pytest.raises(StarError, match="all of 1"):
        list_as(audio, "l.txt", ["a/0.flac"], "--trust-lengths")
    assert "l.txt:1: a/0.flac: has no length, which --trust-lengths needs" in capsys.readouterr().err


def test_several_lists_below_one_root_and_absolute_paths(audio):
    other = audio.parent / "other"
    other.mkdir()
    soundfile.write(other / "b.wav", np.zeros(900), 16_000)
    (audio / "one.txt").write_text(f"a/0.flac\n{other / 'b.wav'}\n")
    out = audio.parent / "m"
    soundfile.write(other / "c.wav", np.zeros(901), 16_000)
    (other / "two.txt").write_text("c.wav\n")
    assert audio_list.main([str(audio / "one.txt"), str(other / "two.txt"), "--out", str(out), "--name", "x"]) == 0
    listed = [("audio/a/0.flac", 800), (str(other / "b.wav"), 900), ("other/c.wav", 901)]
    assert read_manifest(out / "x.tsv") == (str(audio.parent), listed)
    (other / "s3prl.csv").write_text("file_path,length\na/1.flac,801\n")
    assert audio_list.main([str(other / "s3prl.csv"), "--root", str(audio), "--out", str(out), "--name", "y"]) == 0
    assert read_manifest(out / "y.tsv") == (str(audio), [("a/1.flac", 801)])


def test_one_file_by_several_names_is_listed_once(audio, capsys):
    (audio / "l.txt").write_text(f"a/0.flac\n./a/0.flac\na/../a/0.flac\n{audio}/a/0.flac\na/1.flac\n")
    assert audio_list.main([str(audio / "l.txt"), "--out", str(audio.parent / "m"), "--name", "all"]) == 1
    assert entries(audio.parent / "m" / "all.tsv") == [("a/0.flac", 800), ("a/1.flac", 801)]
    assert capsys.readouterr().err.count("is listed more than once") == 3


@pytest.mark.parametrize(("on_disk", "in_list"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_list_in_the_other_unicode_form_finds_its_files(audio, on_disk, in_list):
    name = "Zoë/ñandú é.wav"
    path = audio / unicodedata.normalize(on_disk, name)
    path.parent.mkdir()
    soundfile.write(path, np.zeros(900), 16_000)
    status, manifest = list_as(audio, "l.txt", [unicodedata.normalize(in_list, name)])
    assert status == 0
    assert entries(manifest) == [(unicodedata.normalize(on_disk, name), 900)]


def test_a_list_is_split_as_a_folder_is(audio):
    (audio / "all.txt").write_text("".join(f"{path}\n" for path, _ in ALL))
    options = ["--valid-percent", "34", "--seed", "3"]
    assert audio_list.main([str(audio / "all.txt"), "--out", str(audio.parent / "l"), *options]) == 0
    assert audio_folder.main([str(audio), "--out", str(audio.parent / "f"), *options]) == 0
    for split, size in (("train", 4), ("valid", 2)):
        assert entries(audio.parent / "l" / f"{split}.tsv") == entries(audio.parent / "f" / f"{split}.tsv")
        assert len(entries(audio.parent / "l" / f"{split}.tsv")) == size


def make_dataset(manifest: Path) -> DistillationDataset:
    check_manifest(str(manifest), sample_rate=16_000)
    return DistillationDataset(
        str(manifest), sample_rate=16_000, normalize=False, max_sample_size=None, min_sample_size=1,
        random_crop=False, pad_to_multiple=1, seed=1,
    )  # fmt: skip


def test_audio_in_a_zip_is_trained_on_where_it_lies(audio, capsys):
    archive = audio.parent / "all.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path, _ in ALL:
            file.write(audio / path, path, zipfile.ZIP_DEFLATED if path == "a/3.flac" else zipfile.ZIP_STORED)
        file.writestr("notes.txt", "no audio")
    assert audio_list.main([str(archive), "--out", str(audio.parent / "m"), "--name", "train"]) == 1
    assert "all.zip: a/3.flac is compressed, and fairseq reads stored entries alone" in capsys.readouterr().err
    dataset = make_dataset(audio.parent / "m" / "train.tsv")
    assert [len(dataset[index]["source"]) for index in range(5)] == [800, 801, 802, 804, 805]
    batch = dataset.collater([dataset[0], dataset[4]])
    assert batch["net_input"]["source"].shape == (2, 805)


def test_an_archive_whose_local_headers_are_longer(audio):
    """zip writes fields into the local header that its directory lacks; an offset from the directory alone is wrong."""
    archive = audio.parent / "extra.zip"
    name = zipfile.ZipInfo("x.flac")
    with zipfile.ZipFile(archive, "w") as file, file.open(name, "w", force_zip64=True) as entry:
        entry.write((audio / "a" / "1.flac").read_bytes())
    assert audio_list.main([str(archive), "--out", str(audio.parent / "m"), "--name", "all"]) == 0
    assert entries(audio.parent / "m" / "all.tsv")[0][1] == 801


def test_mp3_in_an_archive_is_refused_by_name(audio, capsys):
    soundfile.write(audio / "x.mp3", np.zeros(16_000), 16_000)
    with zipfile.ZipFile(audio / "x.zip", "w") as file:
        file.write(audio / "x.mp3", "x.mp3")
        file.write(audio / "a" / "0.flac", "0.flac")
    assert audio_list.main([str(audio / "x.zip"), "--out", str(audio.parent / "m"), "--name", "all"]) == 1
    assert "fairseq reads WAV, FLAC and Ogg alone from an archive" in capsys.readouterr().err


@pytest.fixture
def mixed(tmp_path) -> Path:
    """16 kHz mono, 44.1 kHz stereo, 8 kHz mono, and one cut short."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "mixed"
    (folder / "d").mkdir(parents=True)
    soundfile.write(folder / "d" / "fine.wav", rng.uniform(-0.5, 0.5, 1600), 16_000)
    soundfile.write(folder / "d" / "cd.flac", rng.uniform(-0.5, 0.5, (44_100, 2)), 44_100)
    soundfile.write(folder / "phone.wav", rng.uniform(-0.5, 0.5, 4001), 8_000)
    soundfile.write(folder / "cut.flac", rng.uniform(-0.5, 0.5, 48_000), 48_000)
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:-9000])
    return folder


def test_resample_converts_what_must_be_and_resumes(mixed, tmp_path, capsys):
    copies = tmp_path / "copies"
    arguments = [str(mixed), "--out", str(tmp_path / "m"), "--name", "all", "--resample", str(copies)]
    assert audio_folder.main(arguments) == 1
    assert "cut.flac: cannot be read as audio or is cut short" in capsys.readouterr().err
    # Nothing partial, nothing of the file cut short.
    made = sorted(path for path in copies.rglob("*") if path.is_file())
    assert [original_name(str(path)) for path in made] == [str(copies / "d" / "cd.flac"), str(copies / "phone.wav")]
    listed = [(str(made[0]), 16_000), ("d/fine.wav", 1600), (str(made[1]), 8002)]
    assert entries(tmp_path / "m" / "all.tsv") == listed
    assert (soundfile.info(made[0]).samplerate, soundfile.info(made[0]).channels) == (16_000, 1)

    samples, rate = soundfile.read(mixed / "d" / "cd.flac", dtype="float32")
    expected = torchaudio.functional.resample(torch.from_numpy(samples.mean(axis=1)), rate, 16_000)
    assert np.abs(soundfile.read(made[0])[0] - expected.numpy()).max() < 2 / 2**15

    os.utime(made[1], ns=(1, os.stat(mixed / "phone.wav").st_mtime_ns + 10**9))
    before = [path.stat().st_ino for path in made]
    made[0].write_bytes(made[0].read_bytes()[:20])  # no longer a copy of ours
    assert audio_folder.main([*arguments, "--skip-bad"]) == 0
    assert made[1].stat().st_ino == before[1]  # not done again
    assert soundfile.info(made[0]).frames == 16_000  # done anew
    soundfile.write(mixed / "phone.wav", np.zeros(8_000), 8_000)
    os.utime(mixed / "phone.wav", ns=(1, made[1].stat().st_mtime_ns + 10**9))
    assert audio_folder.main([*arguments, "--skip-bad"]) == 0
    assert dict(entries(tmp_path / "m" / "all.tsv"))[str(made[1])] == 16_000  # the source has changed


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("num_samples", [1, 100, 30_531])
def test_blocks_equal_the_resampling_of_the_whole(tmp_path, monkeypatch, rate, num_samples):
    monkeypatch.setattr(resampling, "SECONDS", 0.3)
    noise = np.random.default_rng(rate).uniform(-0.5, 0.5, (num_samples, 2)).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", noise, rate, subtype="FLOAT")
    with soundfile.SoundFile(tmp_path / "x.wav") as file:
        blocks = list(resampling.resampled(file, "x.wav", num_samples))
    whole = torchaudio.functional.resample(torch.from_numpy(noise.mean(axis=1)), rate, 16_000)
    assert num_samples < 30_000 or len(blocks) > 1
    torch.testing.assert_close(torch.from_numpy(np.concatenate(blocks)), whole, rtol=0, atol=1e-6)


def test_a_rate_without_a_step_is_refused_before_it_fills_the_memory(tmp_path):
    soundfile.write(tmp_path / "odd.wav", np.zeros(100), 44_101)
    with pytest.raises(StarError, match="44101 Hz has no step with 16000 Hz"):
        resampling.convert_into(tmp_path / "c", str(tmp_path / "odd.wav"), "odd.wav")
    assert not list((tmp_path / "c").iterdir())


def test_a_copy_stays_below_its_folder(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(8_000), 8_000)
    for name in ("../../x.wav", "/abs/x.wav", "//abs/x.wav", "../x.wav/.."):
        copy = Path(resampling.convert_into(tmp_path / "c", str(tmp_path / "x.wav"), name).path)
        assert copy.is_relative_to(tmp_path / "c")
        assert original_name(copy.name) == "x.wav"


def test_a_folder_is_walked_in_the_order_of_whole_paths(tmp_path):
    for name in ("a/z.wav", "a.wav", "a-b/c.wav", "a/b/c.wav", "B.wav", "ä.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = list(find_audio(tmp_path, ["wav"], LeftOut()))
    assert found == sorted(found)
    assert len(found) == 6


def test_only_a_few_items_are_held_at_a_time():
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = map_in_threads(lambda item: item * 2, endless(), num_workers=2)
    assert list(islice(results, 1000)) == [(item, 2 * item) for item in range(1, 1001)]
    results.close()
    assert taken <= 1000 + 2 * 16


def test_the_held_out_share_is_exact_and_repeated_paths_count_once(tmp_path):
    with preparing.Spool(tmp_path, seed=0) as spool:
        for index in range(1000):
            name = f"{index % 900}.flac"
            spool.add(preparing.ManifestEntry(name, 5), listed=name, place=f"/root/{name}")
        assert len(list(spool.forget_repeated())) == 100
        held_out = spool.choose(10)
        assert held_out.sum() == 90
        assert not held_out[900:].any()
        assert len(list(spool.entries(spool.kept & ~held_out))) == 810
