"""Tables: no row is lost or joined to another one in silence, whatever quotation marks are in it."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
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
