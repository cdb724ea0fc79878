"""Label files for fine-tuning: aligned with the manifest, readable by fairseq, missing transcripts named."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fairseq.data import Dictionary
from fairseq.data.data_utils import post_process

from fairseq_star.errors import StarError
from fairseq_star.manifest import ManifestEntry, read_manifest, write_manifest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "manifests"))

import labels

TEXTS = {"7-1-0000": "THE CAT SAT", "7-1-0001": "THE DOG", "8-2-0000": "A CAT AND A DOG", "9-3-0000": "CATS SIT"}


@pytest.fixture
def data(tmp_path) -> Path:
    """Three utterances to train on and one to validate, laid out as LibriSpeech; the manifest's order is not sorted."""
    names = {}
    for utterance, text in TEXTS.items():
        speaker, chapter, _ = utterance.split("-")
        folder = tmp_path / "audio" / speaker / chapter
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{utterance}.flac", np.zeros(800), 16_000)
        with open(folder / f"{speaker}-{chapter}.trans.txt", "a", encoding="utf-8") as file:
            file.write(f"{utterance} {text}\n")
        names[utterance] = f"{speaker}/{chapter}/{utterance}.flac"
    order = ["8-2-0000", "7-1-0001", "7-1-0000"]
    write_manifest(tmp_path / "train.tsv", tmp_path / "audio", [ManifestEntry(names[name], 800) for name in order])
    write_manifest(tmp_path / "valid.tsv", tmp_path / "audio", [ManifestEntry(names["9-3-0000"], 800)])
    return tmp_path


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def make(data: Path, *options: str) -> int:
    return labels.main([str(data / "train.tsv"), str(data / "valid.tsv"), *options])


def test_letters_and_words_stand_line_by_line_beside_the_manifest(data, capsys):
    assert make(data) == 0
    assert (data / "train.wrd").read_text() == "A CAT AND A DOG\nTHE DOG\nTHE CAT SAT\n"
    assert (data / "train.ltr").read_text().splitlines()[1] == "T H E | D O G |"
    assert (data / "valid.ltr").read_text() == "C A T S | S I T |\n"
    assert (data / "dict.ltr.txt").read_text().splitlines()[:3] == ["| 10", "A 6", "T 5"]
    assert "valid.ltr: 'I' (1 times) is not in train.ltr: <unk>" in capsys.readouterr().err
    dictionary = Dictionary.load(str(data / "dict.ltr.txt"))
    for line, words in zip(lines_of(data / "train.ltr"), lines_of(data / "train.wrd"), strict=True):
        tokens = dictionary.encode_line(line, append_eos=False, add_if_not_exist=False)
        assert dictionary.unk() not in tokens
        assert post_process(dictionary.string(tokens), "letter") == words
    assert not (data / "train.spm").exists()


def test_subwords_and_their_dictionary(data):
    pytest.importorskip("sentencepiece", reason="sentencepiece is not installed (extra [finetune])")
    assert make(data, "--subwords", "14") == 0
    dictionary = Dictionary.load(str(data / "dict.spm.txt"))
    for line, words in zip(lines_of(data / "train.spm"), lines_of(data / "train.wrd"), strict=True):
        tokens = dictionary.encode_line(line, append_eos=False, add_if_not_exist=False)
        assert dictionary.unk() not in tokens
        assert post_process(dictionary.string(tokens), "sentencepiece") == words
    assert len(dictionary) - dictionary.nspecial == 13  # all pieces but sentencepiece's own <unk>
    first = {path.name: path.read_bytes() for path in data.glob("*.*m*")}
    assert {"spm.model", "train.spm", "valid.spm", "dict.spm.txt"} <= set(first)
    assert make(data, "--subwords", "14") == 0
    assert {path.name: path.read_bytes() for path in data.glob("*.*m*")} == first


@pytest.mark.parametrize(("size", "expected"), [("3", "choose at least 1"), ("5000", "choose at most ")])
def test_a_vocabulary_that_does_not_fit_is_told(data, size, expected):
    pytest.importorskip("sentencepiece", reason="sentencepiece is not installed (extra [finetune])")
    with pytest.raises(StarError, match=f"--subwords {size} does not fit these transcripts; {expected}"):
        make(data, "--subwords", size)
    assert not list(data.glob("*.ltr"))


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("text", [f"{key} {text}" for key, text in TEXTS.items()]),
        ("text", [f"{key}\t{text}" for key, text in TEXTS.items()]),
        ("all.csv", ["text,path", *(f"{text},{key}.flac" for key, text in TEXTS.items())]),
        ("all.tsv", ["path\tsentence", *(f"{k[0]}/{k[2]}/{k}.flac\t{text}" for k, text in TEXTS.items())]),
        ("metadata.jsonl", [f'{{"file_name": "{k}.flac", "transcription": "{text}"}}' for k, text in TEXTS.items()]),
    ],
)
def test_transcripts_from_elsewhere(data, name, lines):
    for path in data.rglob("*.trans.txt"):
        path.unlink()
    (data / name).write_text("\n".join(lines).lower().replace('"file_name"', '"file_name"') + "\n")
    assert make(data, "--text", str(data / name), "--upper", "--out", str(data / "out")) == 0
    assert (data / "out" / "train.wrd").read_text() == "A CAT AND A DOG\nTHE DOG\nTHE CAT SAT\n"
    assert (data / "out" / "train.tsv").read_text() == (data / "train.tsv").read_text()


def test_missing_transcripts_are_named_and_nothing_is_written(data, capsys):
    path = data / "audio" / "7" / "1" / "7-1.trans.txt"
    path.write_text("7-1-0000 THE CAT SAT\n7-1-0001 \n")
    assert make(data) == 1
    err = capsys.readouterr().err
    assert f"{data / 'train.tsv'}: 7/1/7-1-0001.flac has no transcript" in err
    assert "1 files have no transcript in the *.trans.txt beside them" in err
    assert not list(data.glob("*.ltr"))
    with pytest.raises(StarError, match="give another folder as --out"):
        make(data, "--skip-bad")
    assert make(data, "--skip-bad", "--out", str(data / "out")) == 0
    paths = [path for path, _ in read_manifest(data / "out" / "train.tsv")[1]]
    assert paths == ["8/2/8-2-0000.flac", "7/1/7-1-0000.flac"]
    assert (data / "out" / "train.wrd").read_text() == "A CAT AND A DOG\nTHE CAT SAT\n"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("text", "7-1-0000 THE|CAT\n", r"7-1-0000\.flac: its transcript 'THE\|CAT' holds '\|'"),
        ("text", "7-1-0000 ONE\n7-1-0000 TWO\n", r"text:2: '7-1-0000' has another transcript already"),
        ("t.csv", "path,words\nx,y\n", r"t\.csv:2: no column text or sentence"),
        ("t.csv", "path,text\nx\n", r"t\.csv:2: has 1 fields, the header has 2"),
        ("t.jsonl", "no\n", r"t\.jsonl:1: is no JSON object"),
    ],
)
def test_malformed_transcripts_are_told_by_line(data, name, text, expected):
    (data / name).write_text(text)
    with pytest.raises(StarError, match=expected):
        make(data, "--text", str(data / name))


def test_two_manifests_of_one_name(data):
    with pytest.raises(StarError, match="would write the same labels"):
        labels.main([str(data / "train.tsv"), str(data / "train.tsv")])
