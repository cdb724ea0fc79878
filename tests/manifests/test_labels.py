"""Label files for fine-tuning: aligned with the manifest, readable by fairseq, missing transcripts named."""

import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fairseq.data import Dictionary
from fairseq.data.data_utils import post_process

from fairseq_star.errors import StarError
from fairseq_star.manifest import ManifestEntry, read_manifest, write_manifest
from manifests import audio_folder, audio_list, labels

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
    assert "1 files have no transcript in the *.trans.txt next to them" in err
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
        ("text", "7-1-0000 THE|CAT\n", r"7-1-0000\.flac: its transcript 'THE\|CAT' contains '\|'"),
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


def audio(path: Path, rate: int = 16_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(rate, 0.1), rate)
    return path


def list_folder(folder: Path, *options: str) -> Path:
    """The manifest of a folder; converts what must be."""
    out = folder.parent / "m"
    resample = ["--resample", str(folder.parent / "16k")]
    assert audio_folder.main([str(folder), "--out", str(out), "--name", "train", *resample, *options]) == 0
    return out / "train.tsv"


def texts_of(manifest: Path, text: Path | None = None) -> dict[str, str]:
    """By the end of the path."""
    assert labels.main([str(manifest), *(["--text", str(text)] if text else [])]) == 0
    paths = [path for path, _ in read_manifest(manifest)[1]]
    return dict(zip(paths, lines_of(manifest.with_suffix(".wrd")), strict=True))


@pytest.mark.parametrize("rate", [16_000, 8_000])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    "name", ["{}", "{}.mp3", "{}.wav", "spk/{}.wav", "c/spk/{}", "./spk/{}.flac", "ROOT/spk/{}.wav"]
)
def test_transcripts_are_found_by_every_name_and_after_conversion(tmp_path, rate, form, name):
    utterances = {"Zoë_1": "one", "Zoë_2": "two", "rec.3": "three"}
    for utterance in utterances:
        audio(tmp_path / "c" / "spk" / f"{unicodedata.normalize('NFD', utterance)}.wav", rate)
    manifest = list_folder(tmp_path / "c")
    rows = [(name.format(u).replace("ROOT", str(tmp_path / "c")), text) for u, text in utterances.items()]
    table = tmp_path / "t.tsv"
    table.write_text(unicodedata.normalize(form, "path\tsentence\n" + "".join(f"{u}\t{t}\n" for u, t in rows)))
    assert list(texts_of(manifest, table).values()) == ["one", "two", "three"]


def test_trans_txt_is_found_beside_the_source_of_a_copy(tmp_path):
    folder = audio(tmp_path / "c" / "7" / "1" / "7-1-0.wav", 8_000).parent
    (folder / "7-1.trans.txt").write_text("7-1-0 THE CAT\n")
    (folder / "._7-1.trans.txt").write_bytes(b"\0\5\x16\7\xff")
    assert list(texts_of(list_folder(tmp_path / "c")).values()) == ["THE CAT"]


@pytest.mark.parametrize("rate", [16_000, 8_000])
def test_transcripts_of_an_archive(tmp_path, rate):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for speaker in "ab":
            archive.write(audio(tmp_path / "u.wav", rate), f"{speaker}/u.wav")
    (tmp_path / "text").write_text("a/u ONE\nb/u TWO\n")
    options = ["--out", str(tmp_path), "--name", "train", "--resample", str(tmp_path / "16k")]
    assert audio_list.main([str(tmp_path / "all.zip"), *options]) == 0
    assert list(texts_of(tmp_path / "train.tsv", tmp_path / "text").values()) == ["ONE", "TWO"]


@pytest.mark.parametrize("rate", [16_000, 8_000])
def test_a_transcript_of_two_utterances_is_nobodys(tmp_path, capsys, rate):
    for name in ("a/1.wav", "b/1.wav", "b/2.wav"):
        audio(tmp_path / "c" / name, rate)
    manifest = list_folder(tmp_path / "c")
    (tmp_path / "text").write_text("1 ONE\n2 TWO\n")
    assert labels.main([str(manifest), "--text", str(tmp_path / "text")]) == 1
    err = capsys.readouterr().err
    assert f"shares {tmp_path}/text:1: '1' with {tmp_path}/c/b/1.wav; write the folders there too" in err
    assert "2 files have no transcript" in err
    assert not manifest.with_suffix(".wrd").exists()
    (tmp_path / "text").write_text("1 ONE\n2 TWO\nb/1 THREE\n")
    assert list(texts_of(manifest, tmp_path / "text").values()) == ["ONE", "THREE", "TWO"]


def test_two_formats_of_one_name_keep_their_own(tmp_path, capsys):
    for name in ("a.wav", "a.flac"):
        audio(tmp_path / "c" / name)
    manifest = list_folder(tmp_path / "c")
    (tmp_path / "t.csv").write_text("path,text\na.wav,WAV\na.flac,FLAC\n")
    assert texts_of(manifest, tmp_path / "t.csv") == {"a.wav": "WAV", "a.flac": "FLAC"}
    (tmp_path / "t.csv").write_text("path,text\na.wav,WAV\n")
    assert labels.main([str(manifest), "--text", str(tmp_path / "t.csv")]) == 1
    assert f"a.flac shares {tmp_path}/t.csv:2: 'a.wav' with {tmp_path}/c/a.wav" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("path,text\na.ogg,OGG\na.mp3,MP3\n")
    assert labels.main([str(manifest), "--text", str(tmp_path / "t.csv")]) == 1
    assert "a.wav has two transcripts, of " in capsys.readouterr().err
