"""What identifies a corpus: its names, lengths and some audio, wherever it lies."""

import json
import shutil
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq_star.data.origin import CORPUS, PROBES, corpus_origin, differences
from fairseq_star.errors import StarError
from tests.support import tiny


def test_a_corpus_may_move_and_its_record_survives_json(corpus, tmp_path):
    before = corpus_origin(corpus / "train.tsv")
    shutil.copytree(corpus / "audio", tmp_path / "audio")
    moved = tiny.write_tsv(tmp_path / "train.tsv", tmp_path / "audio" / "train")
    moved.write_bytes(b"\xef\xbb\xbf" + moved.read_bytes().replace(b"\n", b"\r\n"))
    assert corpus_origin(moved) == before
    assert differences(json.loads(json.dumps({CORPUS: before})), {CORPUS: corpus_origin(moved)}) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[:-1], "a corpus of 40 utterances (now 39)"),
        (lambda lines: [lines[0], *lines[:0:-1]], "another corpus of 40 utterances"),
        (lambda lines: [*lines[:-1], "other.wav\t8000"], "another corpus of 40 utterances"),
    ],
)
def test_other_lines_are_another_corpus(change, said, tmp_path):
    manifest = tiny.write_corpus(tmp_path, train=40) / "train.tsv"
    before = corpus_origin(manifest)
    manifest.write_text("\n".join(change(manifest.read_text().splitlines())) + "\n")
    assert differences({CORPUS: before}, {CORPUS: corpus_origin(manifest)}) == [said]


def test_what_cannot_be_read_says_nothing_and_other_audio_does(tmp_path):
    manifest = tiny.write_corpus(tmp_path, train=12) / "train.tsv"
    before = corpus_origin(manifest)
    path = tmp_path / "audio" / "train" / "utt003.wav"
    content = path.read_bytes()
    path.unlink()
    assert differences({CORPUS: before}, {CORPUS: corpus_origin(manifest)}) == []
    path.write_bytes(content[: len(content) // 2] + b"\x01\x02\x03\x04" + content[len(content) // 2 + 4 :])
    said = "other audio under the same names and lengths"
    assert differences({CORPUS: before}, {CORPUS: corpus_origin(manifest)}) == [said]


def test_an_archives_entries_are_looked_into(tmp_path):
    def manifest(fill: bytes):
        with zipfile.ZipFile(tmp_path / "audio.zip", "w") as archive:
            archive.writestr("a.wav", fill * 1000)
            offset = 30 + len("a.wav")
        (tmp_path / "train.tsv").write_text(f"{tmp_path}\naudio.zip:{offset}:1000\t500\n")
        return corpus_origin(tmp_path / "train.tsv")

    first, second = manifest(b"a"), manifest(b"b")
    assert all(first["audio"])
    assert first["audio"] != second["audio"]


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3)),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3)),
)
def test_settings_differ_by_name(had, now):
    found = differences(had, now)
    assert [line.partition("=")[0] for line in found] == [name for name in now if had.get(name) != now[name]]


@pytest.mark.parametrize("had", [None, [], {"teacher": "a"}, {CORPUS: None}, {CORPUS: {"utterances": 3}}])
def test_a_record_that_is_missing_is_a_difference(had, corpus):
    assert differences(had, {CORPUS: corpus_origin(corpus / "train.tsv")})


def test_few_files_are_read_and_a_missing_manifest_is_one_line(tmp_path):
    manifest = tiny.write_corpus(tmp_path, train=40) / "train.tsv"
    assert len(corpus_origin(manifest)["audio"]) == PROBES
    with pytest.raises(StarError, match=r"missing\.tsv: cannot read the manifest"):
        corpus_origin(tmp_path / "missing.tsv")
