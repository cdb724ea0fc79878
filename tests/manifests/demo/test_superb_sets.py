"""The synthetic corpora of SUPERB's tasks: layouts that s3prl reads, labels that are true. The voice is a noise."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
import soundfile
import yaml

from fairseq_star.superb import corpora
from manifests.demo import superb, superb_sets
from manifests.demo.espeak import SYNTHESIS_RATE, Utterance
from manifests.demo.speakers import make_speakers


def noise(voice, texts, **_):
    """An utterance of a fifth of a second a word."""
    made = []
    for text in texts:
        samples = np.random.default_rng(len(text)).normal(0, 3000, SYNTHESIS_RATE // 5 * len(text.split()))
        made.append(Utterance(samples.astype("<i2").tobytes(), [(0, "sil"), (5, "a#"), (9, "t")], [(0, text)]))
    return made


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """All but Speech Commands, which tests/superb/test_launch.py has."""
    out = tmp_path_factory.mktemp("superb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(superb_sets, "speak", noise)
        speakers = make_speakers(np.random.default_rng(0), superb.TRAIN_SPEAKERS, superb.TEST_SPEAKERS)
        for name, make in superb_sets.MAKERS.items():
            make(out / name, speakers, np.random.default_rng(0), out / name)
    (out / "superb.yaml").write_text(yaml.safe_dump(superb.description(out)))
    return out


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_each_is_laid_out_as_its_data_set(sets):
    description = corpora.read_description(sets / "superb.yaml")
    for name in corpora.CORPORA:
        if name != "speech_commands":
            assert list(corpora.corpus_faults(name, description)) == []


def test_every_word_of_the_transcripts_is_in_the_lexicon(sets):
    root = sets / "LibriSpeech"
    known = {line.split()[0]: line.split()[1:] for line in lines(root / "lexicon.txt")}
    spoken = {word for path in root.rglob("*.trans.txt") for line in lines(path) for word in line.split()[1:]}
    assert spoken == set(known)
    assert {phone for said in known.values() for phone in said} == {"@", "t"} == set(lines(root / "phones.txt"))
    assert set("".join(spoken)) <= {line.split()[0] for line in lines(root / "char.dict")}
    heard = {path.stem for path in root.rglob("*.flac")}
    assert heard == {line.split()[0] for path in root.rglob("*.trans.txt") for line in lines(path)}


def test_trials_and_splits_of_voices(sets):
    root = sets / "VoxCeleb1"
    usage = [line.split() for line in lines(root / "veri_test_class.txt")]
    assert Counter(part for part, _ in usage) == {"1": 48, "2": 24, "3": 24}
    for file, part in (("dev_meta_data.txt", "dev"), ("voxceleb1_test_v2.txt", "test")):
        trials = [line.split() for line in lines(root / file)]
        assert all((one.split("/")[0] == two.split("/")[0]) == (label == "1") for label, one, two in trials)
        assert Counter(label for label, *_ in trials)["0"] == len(trials) // 2
        assert all((root / part / "wav" / path).is_file() for _, *pair in trials for path in pair)
    shortest = min(soundfile.info(path).frames for path in root.rglob("*.wav"))
    assert shortest > 32_000  # s3prl's verification leaves shorter ones out


def test_who_speaks_when_is_within_the_recording(sets):
    for part in ("train", "dev", "test"):
        folder = sets / "Libri2Mix" / part
        spoken = [line.split() for line in lines(folder / "segments")]
        lengths = {name: float(seconds) for name, seconds in map(str.split, lines(folder / "reco2dur"))}
        assert all(0 <= float(start) < float(end) <= lengths[name] for _, name, start, end in spoken)
        owners = dict(map(str.split, lines(folder / "utt2spk")))
        assert {name: len({owners[segment] for segment, of, *_ in spoken if of == name}) for name in lengths} == (
            dict.fromkeys(lengths, 2)
        )
        assert len(lines(folder / "rttm")) == len(spoken)


def test_intents_slots_emotions_and_queries_have_their_truth(sets):
    for part, count in (("train", 6), ("valid", 2), ("test", 4)):
        with (sets / "fluent_speech_commands_dataset" / "data" / f"{part}_data.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len({row["speakerId"] for row in rows}) == count
        assert {row["location"] for row in rows if "kitchen" in row["transcription"]} == {"kitchen"}
    for line in lines(sets / "SNIPS" / "all.iob.snips.txt"):
        words, labels = (half.split(" ") for half in line.split("\t"))
        assert len(words) - 1 == len(labels)  # the utterance's name is before them
        assert {word for word, label in zip(words[1:], labels, strict=True) if label == "city"} <= {
            "PARIS",
            "BOSTON",
            "TOKYO",
        }
    meta = sets / "IEMOCAP" / "meta_data"
    test, train = (json.loads((meta / "Session3" / f"{part}_meta_data.json").read_text()) for part in ("test", "train"))
    assert Counter(one["label"] for one in test["meta_data"]) == dict.fromkeys(("neu", "hap", "ang", "sad"), 4)
    assert len(train["meta_data"]) == 4 * len(test["meta_data"])
    scoring = sets / "quesst14Database" / "scoring"
    for split in ("dev", "eval"):
        queries = [line.split()[0].rpartition("/")[2][:-4] for line in lines(scoring / f"language_key_{split}.lst")]
        truth = lines(scoring / f"groundtruth_quesst14_{split}" / f"quesst14_{split}.rttm")
        assert {line.split()[5] for line in truth} == set(queries)


def test_noisy_speech_has_its_clean_twin(sets):
    root = sets / "noisy-vctk-16k"
    for part in ("trainset_28spk", "testset"):
        clean, noisy = (
            {path.name: path for path in (root / f"{kind}_{part}_wav_16k").iterdir()} for kind in ("clean", "noisy")
        )
        assert set(clean) == set(noisy)
        for name, path in clean.items():
            one, other = soundfile.read(path)[0], soundfile.read(noisy[name])[0]
            assert len(one) == len(other)
            assert np.mean((other - one) ** 2) > 1e-6
