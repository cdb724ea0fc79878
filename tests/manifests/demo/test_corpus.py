"""The demo corpus: reproducible to the byte, laid out as promised, its labels where the sounds are."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fairseq_star.audio.file import check_audio
from fairseq_star.errors import StarError
from fairseq_star.manifest import read_manifest

pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed (extra [demo])")


from manifests.demo import corpus as demo_corpus
from manifests.demo.espeak import EspeakError, speak
from manifests.demo.labels import (
    Segment,
    frame_labels,
    phone_segments,
    read_segments,
    read_utterances,
    word_segments,
)
from manifests.demo.sentences import make_sentence, transcript
from manifests.demo.speakers import DEV_VARIANTS, TRAIN_VARIANTS, make_speakers

ROOT = Path(__file__).resolve().parents[3]

SETTINGS = ["--minutes", "0.8", "--train-speakers", "2", "--dev-speakers", "2"]
VOWELS = {"a", "aI", "aU", "eI", "oU", "O:", "i:", "0", "E", "3:", "A:", "OI"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("corpus with blanks") / "ü"
    demo_corpus.main([str(out), *SETTINGS])
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the manifests, which name the folder itself."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tsv")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_same_seed_same_bytes(corpus, tmp_path):
    demo_corpus.main([str(tmp_path / "again"), *SETTINGS])
    first, again = contents(corpus), contents(tmp_path / "again")
    assert first.keys() == again.keys()
    assert [name for name in first if first[name] != again[name]] == []
    entries = {name: read_manifest(corpus / name)[1] for name in ("train.tsv", "valid.tsv")}
    assert entries == {name: read_manifest(tmp_path / "again" / name)[1] for name in entries}


def test_other_seed_other_corpus(corpus, tmp_path):
    demo_corpus.main([str(tmp_path / "other"), *SETTINGS, "--seed", "1"])
    first, other = contents(corpus), contents(tmp_path / "other")
    assert not {first[name] for name in first if name.endswith(".flac")} & set(other.values())


def test_layout(corpus):
    for split, subset, first in (("train", "train", 1001), ("valid", "dev", 2001)):
        root, entries = read_manifest(corpus / f"{split}.tsv")
        assert root == str(corpus.resolve())
        assert not list(check_audio(root, entries, progress=False))
        for entry in entries:
            folder, speaker, chapter, name = entry.path.split("/")
            assert folder == subset
            assert int(speaker) in (first, first + 1)
            assert name.startswith(f"{speaker}-{chapter}-")
            assert 1.5 * 16_000 <= entry.num_samples <= 13 * 16_000
    entries = read_manifest(corpus / "train.tsv")[1] + read_manifest(corpus / "valid.tsv")[1]
    assert 0.8 * 60 <= sum(entry.num_samples for entry in entries) / 16_000 < 0.8 * 60 + 4 * 13
    speakers = (corpus / "SPEAKERS.TXT").read_text(encoding="utf-8").splitlines()
    assert speakers[1].split(" | ")[:2] == ["1001", "F"]
    assert len(speakers) == 5


def test_every_utterance_has_text_and_labels(corpus):
    phones, words = (read_segments(corpus / "labels" / f"{kind}.txt") for kind in ("phones", "words"))
    listed = read_utterances(corpus / "labels" / "utterances.txt")
    lengths = {utterance: info.num_samples for utterance, info in listed.items()}
    entries = [*read_manifest(corpus / "train.tsv")[1], *read_manifest(corpus / "valid.tsv")[1]]
    assert lengths == {Path(entry.path).stem: entry.num_samples for entry in entries}
    for entry in entries:
        info = listed[Path(entry.path).stem]
        assert [info.subset, info.speaker] == entry.path.split("/")[:2]
    texts = {}
    for path in corpus.rglob("*.trans.txt"):
        texts.update(line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines())
    assert texts.keys() == lengths.keys() == phones.keys() == words.keys()
    for utterance, num_samples in lengths.items():
        segments = phones[utterance]
        assert segments[0].start == 0
        assert segments[-1].end == num_samples
        for before, after in itertools.pairwise(segments):
            assert before.start < before.end == after.start
        for before, after in itertools.pairwise(words[utterance]):
            assert 0 <= before.start < before.end <= after.start
        assert words[utterance][-1].end <= num_samples
        spoken = [word for _, _, word in words[utterance]]
        # eSpeak NG marks pairs such as "of the" once, so words are a subsequence of the text's.
        remaining = iter(texts[utterance].split())
        assert all(word in remaining for word in spoken)
        assert len(spoken) >= 0.7 * len(texts[utterance].split())


def test_phones_lie_where_the_sound_is(corpus):
    """Vowels are at least 6 dB louder than the pauses of their utterance, in all but a few noisy ones; shifted labels
    would not be."""
    root, entries = read_manifest(corpus / "train.tsv")
    phones = read_segments(corpus / "labels" / "phones.txt")
    louder = []
    for entry in entries:
        samples, _ = soundfile.read(Path(root) / entry.path)
        power = {"vowel": [], "sil": []}
        for start, end, phone in phones[Path(entry.path).stem]:
            kind = "vowel" if phone in VOWELS else phone
            if kind in power:
                power[kind].append(np.mean(samples[start:end] ** 2))
        louder.append(10 * np.log10(np.mean(power["vowel"]) / np.mean(power["sil"])))
    assert np.median(louder) > 10
    assert np.mean(np.array(louder) > 6) > 0.9


def test_audio_is_neither_silent_nor_clipped(corpus):
    for path in [*corpus.glob("train/*/*/*.flac"), *corpus.glob("dev/*/*/*.flac")]:
        samples, _ = soundfile.read(path)
        assert -33 < 20 * np.log10(np.sqrt(np.mean(samples**2))) < -17
        assert np.mean(np.abs(samples) > 0.999) < 1e-3


def test_a_finished_corpus_is_left_alone_and_a_broken_one_made_again(tmp_path, capsys):
    out, settings = tmp_path / "c", ["--minutes", "0.1", "--train-speakers", "1", "--dev-speakers", "1"]
    demo_corpus.main([str(out), *settings])
    before = contents(out)
    demo_corpus.main([str(out), *settings])
    assert "already there" in capsys.readouterr().out
    with pytest.raises(StarError, match="of other settings"):
        demo_corpus.main([str(out), *settings, "--seed", "3"])

    marker = json.loads((out / "corpus.json").read_text())
    (out / "corpus.json").write_text(json.dumps({**marker, "complete": False}))
    next(out.glob("train/*/*/*.flac")).write_bytes(b"half")
    for folder in ("train", "keyword"):
        (out / folder / "stale.flac").write_bytes(b"stale")
    demo_corpus.main([str(out), *settings])
    assert contents(out) == before


def test_other_peoples_folders_are_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StarError, match="is no demo corpus"):
        demo_corpus.main([str(tmp_path), *SETTINGS])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "arguments", [["--minutes", "0"], ["--minutes", "nan"], ["--seed", "-1"], ["--dev-speakers", "0"],
                  ["--train-speakers", "100000"]],
)  # fmt: skip
def test_wrong_options_make_nothing(tmp_path, arguments):
    with pytest.raises(StarError, match=arguments[0]):
        demo_corpus.main([str(tmp_path / "c"), *arguments])
    assert not (tmp_path / "c").exists()


def test_without_the_loader_one_line_says_so(tmp_path):
    (tmp_path / "espeakng_loader.py").write_text("raise ImportError('not here')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, ROOT / "manifests" / "demo" / "espeak.py"], input='{"voice": "en", "texts": ["a"]}',
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip() == "espeakng-loader is missing; install it with `pip install espeakng-loader`"


def test_a_loader_without_library_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "espeakng_loader.py").write_text("def get_library_path(): return '/nowhere.so'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(StarError, match="does not load") as caught:
        demo_corpus.main([str(tmp_path / "c"), *SETTINGS])
    assert "\n" not in str(caught.value)


def test_speech_depends_neither_on_the_clock_nor_on_what_was_spoken_before():
    alone = speak("en-us+f3", ["Hello."])  # a breathy voice: its noise comes from a generator seeded by the second
    speak("en+m4", ["Something else."])
    time.sleep(1.1)
    assert speak("en-us+f3", ["Hello."]) == alone
    with pytest.raises(EspeakError, match="no voice 'xx-nowhere'"):
        speak("xx-nowhere", ["Hello."])


def test_phones_of_a_known_word():
    (utterance,) = speak("en-gb-x-rp", ["Ship."])
    assert [phone for _, phone in utterance.phones if phone != "sil"] == ["S", "I", "p"]
    assert [word for _, word in utterance.words] == ["Ship"]


@pytest.mark.parametrize("line", ["u 0 5 a", "u\t0\t5", "u\t0\tx\ta"])
def test_wrong_label_files_are_told_by_line(tmp_path, line):
    (tmp_path / "phones.txt").write_text(f"# comment\n{line}\n")
    with pytest.raises(StarError, match=r"phones\.txt:2: expected 'utterance<TAB>start"):
        read_segments(tmp_path / "phones.txt")
    with pytest.raises(StarError, match=r"nowhere\.txt: cannot be read"):
        read_utterances(tmp_path / "nowhere.txt")


def test_segments_from_marks():
    marks = [(10, "S"), (20, "I2"), (20, "p"), (30, "sil"), (35, "sil"), (90, "t")]
    phones = phone_segments(marks, 80)
    assert phones == [(0, 10, "sil"), (10, 20, "S"), (20, 30, "p"), (30, 80, "sil")]
    assert word_segments([(10, "a"), (15, "b")], phones) == [(10, 15, "A"), (15, 30, "B")]


def test_frame_labels_take_the_middle():
    segments = [Segment(0, 200, "a"), Segment(200, 521, "b"), Segment(521, 1000, "c")]
    assert frame_labels(segments, 3) == ["b", "b", "c"]  # middles at 200, 520, 840


def test_speakers_are_distinct_and_dev_voices_unheard():
    speakers = make_speakers(np.random.default_rng(0), 150, 40)
    assert len({speaker.voice for speaker in speakers}) == len({speaker.speaker for speaker in speakers}) == 190
    variants = {subset: {s.voice.split("+")[1] for s in speakers if s.subset == subset} for subset in ("train", "dev")}
    assert not variants["train"] & variants["dev"]
    train, dev = (set(itertools.chain(*variants.values())) for variants in (TRAIN_VARIANTS, DEV_VARIANTS))
    assert not train & dev


def test_sentences():
    rng = np.random.default_rng(0)
    sentences = [make_sentence(rng, 12) for _ in range(300)]
    assert len(set(sentences)) == 300
    for sentence in sentences:
        assert sentence[0].isupper()
        assert sentence[-1] in ".?"
        assert "  " not in sentence
        assert 12 <= len(transcript(sentence).split()) < 32
        assert set(transcript(sentence)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ' ")
