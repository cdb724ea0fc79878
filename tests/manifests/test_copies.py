"""Converted copies: each source keeps its own, and one stands for its source only as that is now."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fairseq_star.audio.threads import map_in_threads
from fairseq_star.audio.utterances import utterance_key
from fairseq_star.errors import StarError
from fairseq_star.manifest import read_manifest
from manifests import audio_folder, audio_list, copies, resampling


def write(path: Path, value: float, num_samples: int = 800, rate: int = 8_000) -> Path:
    """A constant: its value tells whose audio a copy holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(num_samples, value), rate)
    return path


def value_of(copy: str | Path) -> float:
    samples, rate = soundfile.read(copy)
    assert rate == 16_000
    return round(float(np.median(samples)), 2)


def convert(folder: Path, source: Path) -> Path:
    return Path(resampling.convert_into(folder, str(source), source.name).path)


def test_two_corpora_two_extensions_and_two_archives_keep_their_own(tmp_path):
    values = {}
    for number, name in enumerate(["train/1.wav", "valid/1.wav", "valid/1.flac", "valid/A/1.wav", "valid/a/1.wav"]):
        values[tmp_path / name] = (number + 1) / 20
        write(tmp_path / name, values[tmp_path / name])
    for corpus in ("train", "valid"):
        options = ["--name", corpus, "--out", str(tmp_path / "m"), "--resample", str(tmp_path / "16k")]
        assert audio_folder.main([str(tmp_path / corpus), *options]) == 0
    listed = [entry.path for name in ("train", "valid") for entry in read_manifest(tmp_path / "m" / f"{name}.tsv")[1]]
    assert len(set(listed)) == 5
    assert {Path(copies.recorded(path)["source"]): value_of(path) for path in listed} == values


def test_one_entry_of_two_archives_of_one_name(tmp_path):
    found = {}
    for value, folder in ((0.1, "one"), (0.2, "two")):
        write(tmp_path / "u.wav", value)
        (tmp_path / folder).mkdir()
        with zipfile.ZipFile(tmp_path / folder / "all.zip", "w") as archive:
            archive.write(tmp_path / "u.wav", "d/u.wav")
        options = ["--name", folder, "--out", str(tmp_path / "m"), "--resample", str(tmp_path / "16k")]
        for _ in range(2):
            assert audio_list.main([str(tmp_path / folder / "all.zip"), *options]) == 0
        found[folder] = read_manifest(tmp_path / "m" / f"{folder}.tsv")[1][0].path
        assert value_of(found[folder]) == value
        assert copies.recorded(found[folder])["source"] == str(tmp_path / folder / "all.zip" / "d" / "u.wav")
    assert found["one"] != found["two"]
    assert value_of(found["one"]) == 0.1


@pytest.mark.parametrize("how", ["older", "same time", "same time, moved"])
def test_a_source_that_was_replaced_is_converted_anew(tmp_path, how):
    source, other = write(tmp_path / "a.wav", 0.1), write(tmp_path / "b.wav", 0.2)
    copy = convert(tmp_path / "16k", source)
    status = source.stat()
    times = (1, 1) if how == "older" else (status.st_atime_ns, status.st_mtime_ns)
    os.utime(other, ns=times)
    shutil.move(other, source) if how.endswith("moved") else shutil.copy2(other, source)
    assert source.stat().st_size == status.st_size
    assert convert(tmp_path / "16k", source) == copy
    assert value_of(copy) == 0.2


def test_a_source_whose_times_alone_changed_is_not_converted_again(tmp_path):
    source = write(tmp_path / "a.wav", 0.1)
    copy = convert(tmp_path / "16k", source)
    before = copy.stat().st_ino
    os.utime(source, ns=(1, 1))
    source.chmod(0o600)
    convert(tmp_path / "16k", source)
    assert copy.stat().st_ino == before


def test_what_lies_under_a_copys_name_and_is_none_is_replaced(tmp_path):
    source = write(tmp_path / "a.wav", 0.1)
    copy = convert(tmp_path / "16k", source)
    other = write(tmp_path / "16.flac", 0.3, rate=16_000)
    for content in (other.read_bytes(), b"", copy.read_bytes()[:30]):
        copy.write_bytes(content)
        assert value_of(convert(tmp_path / "16k", source)) == 0.1


def test_many_at_once(tmp_path):
    sources = [write(tmp_path / str(folder) / "a.wav", folder / 20) for folder in range(1, 7)] * 4
    made = list(map_in_threads(lambda source: convert(tmp_path / "16k", source), sources, num_workers=12))
    assert len({copy for _, copy in made}) == 6
    for source, copy in made:
        assert value_of(copy) == int(source.parent.name) / 20
    assert len(list((tmp_path / "16k").iterdir())) == 6  # nothing partial


def test_a_source_that_changes_while_it_is_converted(tmp_path, monkeypatch):
    source = write(tmp_path / "a.wav", 0.1)
    written = resampling._write

    def write_and_change(*arguments) -> int:
        num_samples = written(*arguments)
        write(source, 0.2)
        return num_samples

    monkeypatch.setattr(resampling, "_write", write_and_change)
    with pytest.raises(StarError, match=r"a\.wav: was changed while it was converted"):
        convert(tmp_path / "16k", source)
    assert not list((tmp_path / "16k").iterdir())


@pytest.mark.parametrize("name", ["n" * 251 + ".wav", "名" * 83 + ".wav", "x.wav" * 50])
def test_the_longest_names_are_converted(tmp_path, name):
    one, other = write(tmp_path / "1" / name, 0.1), write(tmp_path / "2" / name, 0.2)
    assert [value_of(convert(tmp_path / "16k", source)) for source in (one, other)] == [0.1, 0.2]
    assert value_of(convert(tmp_path / "16k", one)) == 0.1


def test_a_path_that_grows_too_long_costs_that_file_alone(tmp_path):
    source = write(tmp_path / "a.wav", 0.1)
    with pytest.raises(StarError, match=r"a\.wav: cannot be copied to .* \(File name too long\); rename it"):
        resampling.convert_into(tmp_path / "16k", str(source), "/".join(["d" * 200] * 30) + "/a.wav")


def test_what_is_held_out_does_not_depend_on_conversion_or_its_folder(tmp_path):
    for rate in (16_000, 8_000):
        for number in range(12):
            write(tmp_path / str(rate) / "c" / f"{number}.wav", 0.1, rate=rate)
    held_out = []
    for rate, copies_in in ((16_000, "x"), (8_000, "x"), (8_000, "y")):
        options = ["--valid-percent", "30", "--out", str(tmp_path / "m"), "--resample", str(tmp_path / copies_in)]
        assert audio_folder.main([str(tmp_path / str(rate)), *options]) == 0
        held_out.append({utterance_key(entry.path)[-1] for entry in read_manifest(tmp_path / "m" / "valid.tsv")[1]})
    assert len(held_out[0]) == 4
    assert held_out[0] == held_out[1] == held_out[2]
