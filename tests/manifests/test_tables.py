"""Tables: no row is lost or joined to another one in silence, whatever quotation marks are in it."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairseq_star.errors import StarError
from fairseq_star.manifest import read_manifest
from manifests import audio_list
from manifests.sources import Found, read_rows, read_table

TEXT = st.one_of(
    st.text(st.sampled_from("\"' ,;ab|\\"), max_size=12), st.text(st.characters(codec="utf-8"), max_size=12)
)
LINE = TEXT.map(lambda text: re.sub(r"[\t\r\n\0\v\f\x1c-\x1e\x85\u2028\u2029]", "", text))


def write(folder: Path, name: str, lines: list[str]) -> Path:
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    return folder / name


@given(st.lists(LINE, min_size=1, max_size=8))
def test_tab_separated_tables_keep_every_row(tmp_path_factory, texts):
    lines = ["client_id\tpath\tsentence", *(f"c\t{index}.mp3\t{text}" for index, text in enumerate(texts))]
    rows = [row for _, row in read_rows(write(tmp_path_factory.mktemp("t"), "validated.tsv", lines))]
    assert [row["sentence"] for row in rows] == texts


@given(st.lists(TEXT.map(lambda text: text.replace("\0", "")), min_size=1, max_size=8))
def test_quoted_tables_keep_every_row(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("t") / "metadata.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["file_name", "text"], *([f"{i}.wav", text] for i, text in enumerate(texts))])
    assert [row["text"] for _, row in read_rows(path)] == texts


@given(st.lists(LINE.map(lambda text: text.replace(",", "")), min_size=1, max_size=8))
def test_tables_that_should_have_been_quoted_lose_no_row_in_silence(tmp_path_factory, texts):
    lines = ["file_name,text", *(f"{index}.wav,{text}" for index, text in enumerate(texts))]
    found, told = set(), set()
    for item in read_table(write(tmp_path_factory.mktemp("t"), "metadata.csv", lines)):
        if isinstance(item, Found):
            found.add(int(item.path.removesuffix(".wav")))
        else:
            last = int(re.search(r"\.csv:(\d+): ", str(item))[1])
            first = re.search(r"from line (\d+) to here", str(item))
            told.update(range(int(first[1]) if first else last, last + 1))
    assert found | {line - 2 for line in told} >= set(range(len(texts)))


def test_rows_that_a_quotation_mark_joins_are_named(tmp_path):
    lines = ["path,text", "0.wav,a", '1.wav,"Come here', "2.wav,b", '3.wav,and left."', '4.wav,"c"d', "5.wav,e"]
    found = list(read_table(write(tmp_path, "t.csv", lines)))
    assert [item.path for item in found if isinstance(item, Found)] == ["0.wav", "5.wav"]
    problems = [str(item) for item in found if isinstance(item, StarError)]
    assert "t.csv:5: the row from line 3 to here looks like several rows that a quotation mark joins" in problems[0]
    assert "t.csv:6: the row is no CSV" in problems[1]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", ["old.tsv", "old.txt"])
def test_a_manifest_is_taken_for_a_list(tmp_path, name, mark):
    (tmp_path / "audio").mkdir()
    for index in range(3):
        soundfile.write(tmp_path / "audio" / f"{index}.wav", np.zeros(800 + index), 16_000)
    lines = [f"{mark}{tmp_path / 'audio'}", "0.wav\t800", "1.wav\t801", "2.wav\t999"]
    path = write(tmp_path, name, lines)
    assert audio_list.main([str(path), "--out", str(tmp_path / "m"), "--name", "new"]) == 1
    assert read_manifest(tmp_path / "m" / "new.tsv") == (str(tmp_path / "audio"), [("0.wav", 800), ("1.wav", 801)])
    assert audio_list.main([str(path), "--out", str(tmp_path / "m"), "--name", "new", "--trust-lengths"]) == 0
    (tmp_path / "audio").rename(tmp_path / "moved")
    options = ["--out", str(tmp_path / "m"), "--name", "new", "--skip-bad", "--root", str(tmp_path / "moved")]
    assert audio_list.main([str(path), *options]) == 0
    assert read_manifest(tmp_path / "m" / "new.tsv")[0] == str(tmp_path / "moved")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """0.wav to 2.wav, 3 s each."""
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(3):
        soundfile.write(folder / f"{number}.wav", np.full(48_000, 0.1), 16_000)
    return folder


def listed(path: Path, capsys, *options: str) -> tuple[int, list[str], str]:
    """Status, what is listed, and what is printed."""
    out = path.parent / f"out-{path.name}"
    status = audio_list.main([str(path), "--root", str(path.parent), "--out", str(out), "--name", "all", *options])
    return status, [entry.path for entry in read_manifest(out / "all.tsv")[1]], capsys.readouterr().err


PARTS = st.sampled_from(
    [("offset", "duration"), ("start", "end"), ("start_time", "end_time"), ("", "duration"), ("start", "")]
)


@given(names=PARTS, start=st.floats(0, 2.5), length=st.floats(0.2, 3.5), trusted=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
def test_rows_that_name_a_part_of_a_file_are_left_out_and_counted(names, start, length, trusted, recordings, capsys):
    """The first row does, if start and length say so; the other two name whole files."""
    start_name, end_name = names
    start = start if start_name else 0.0
    rows = [(start, start + length), (0.0, 3.0), (0.0, 3.0)]
    lines = []
    for number, (begin, end) in enumerate(rows):
        stop = end - begin if end_name == "duration" else end
        times = {start_name: begin, end_name: stop}
        length_of_all = {"num_samples": 48_000} if trusted else {}
        lines.append(json.dumps({"audio_filepath": f"{number}.wav", **length_of_all, **times}))
    path = write(recordings, "all.jsonl", lines)
    is_part = start > 0.1 or (bool(end_name) and start + length < 2.9)
    status, paths, told = listed(path, capsys, *["--trust-lengths"] * trusted)
    assert (status, paths) == (int(is_part), [f"{number}.wav" for number in range(is_part, 3)])
    if is_part:
        assert "all.jsonl:1: 0.wav: only " in told
        assert "s of its 3 s are meant, and a manifest lists whole files" in told
        assert "1 bad files or lines left out" in told


@pytest.mark.parametrize("value", ["soon", "nan", "inf"])
def test_times_that_are_no_numbers_are_named(value, recordings, capsys):
    path = write(recordings, "odd.csv", ["path,start,end", f"0.wav,{value},3", "1.wav,,", "2.wav,0,3.0"])
    status, paths, told = listed(path, capsys)
    assert (status, paths) == (1, ["1.wav", "2.wav"])
    assert "numbers of seconds; correct that line" in told


def test_huggingfaces_audio_is_a_path_in_a_dict_but_not_as_text(recordings, capsys):
    rows = [json.dumps({"audio": {"path": f"{number}.wav", "bytes": None}}) for number in range(3)]
    assert listed(write(recordings, "hf.jsonl", rows), capsys)[:2] == (0, ["0.wav", "1.wav", "2.wav"])
    as_text = str({"bytes": None, "path": "0.wav"})
    status, paths, told = listed(write(recordings, "pandas.csv", ["audio,text", f'"{as_text}",x', "1.wav,x"]), capsys)
    assert (status, paths) == (1, ["1.wav"])
    assert "audio is a dict as text" in told


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("train.parquet", b"PAR1\x00PAR1", "is a Parquet table; write its audio to files"),
        ("cuts.jsonl.gz", b"\x1f\x8b", "is compressed; unpack it first, for example with `gunzip -k`"),
        ("shard.tar", b"", "is a tar archive"),
        ("array.json", b'[\n {"audio_filepath": "0.wav"}\n]', "is one JSON array; write an object a line"),
        ("cuts.jsonl", b'{"id": "c", "start": 3.0, "duration": 2.0, "recording": {"id": "r"}}', "is a cut of lhotse"),
    ],
)
def test_files_that_are_no_lists_end_in_one_line_with_the_right_advice(name, content, told, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StarError, match=told):
        audio_list.main([str(tmp_path / name), "--out", str(tmp_path / "m")])
