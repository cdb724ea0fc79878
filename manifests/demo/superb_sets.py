"""Synthetic corpora of ``superb.py``, one function per data set: folders and label files as s3prl reads them."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from fairseq_star.manifest import SAMPLE_RATE
from manifests.demo.corpus import recorded, resampled
from manifests.demo.espeak import Utterance, speak
from manifests.demo.labels import FOLDED
from manifests.demo.noise import TRAIN as NOISES
from manifests.demo.sentences import make_sentence, transcript
from manifests.demo.speakers import Speaker

Generator = np.random.Generator
QUESST_RATE = 8000  # Hz, of the real corpus too


class Slot(NamedTuple):
    """Words of a slot, and its name."""

    name: str
    values: tuple[str, ...]


def _save(path: Path, samples: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, sample_rate, subtype="PCM_16")


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _said(speaker: Speaker, texts: list[str], **prosody: int) -> list[Utterance]:
    how = {"rate": speaker.rate, "pitch": speaker.pitch, "pitch_range": speaker.pitch_range, **prosody}
    return speak(speaker.voice, texts, **how)


def _clips(speaker: Speaker, texts: list[str], rng: Generator, **prosody: int) -> list[np.ndarray]:
    """Return int16 samples of each text, with a microphone's noise."""
    return [recorded(np.pad(resampled(one), 1600), rng) for one in _said(speaker, texts, **prosody)]


def _sentences(rng: Generator, count: int, words: int = 5) -> list[str]:
    return [make_sentence(rng, int(rng.integers(2, words))) for _ in range(count)]


def _split(speakers: list[Speaker], *counts: int) -> Iterator[list[Speaker]]:
    """Return the first ``counts[0]`` training speakers, the next ..., then those of the test."""
    train = [speaker for speaker in speakers if speaker.subset == "train"]
    for count in counts:
        yield train[:count]
        train = train[count:]
    yield [speaker for speaker in speakers if speaker.subset == "dev"]


def librispeech(folder: Path, speakers: list[Speaker], rng: Generator, place: Path) -> None:
    """Three parts with transcripts, a lexicon of eSpeak NG's phones, and the lists that s3prl's ASR and PR read."""
    words: set[str] = set()
    for part, members in zip(("train-clean-100", "dev-clean", "test-clean"), _split(speakers, 6, 2), strict=True):
        for speaker in members:
            texts = _sentences(rng, 8 if part.startswith("train") else 3)
            lines = []
            for number, (text, samples) in enumerate(zip(texts, _clips(speaker, texts, rng), strict=True)):
                name = f"{speaker.speaker}-1-{number:04d}"
                _save(folder / part / speaker.speaker / "1" / f"{name}.flac", samples)
                lines.append(f"{name} {transcript(text)}")
                words |= set(transcript(text).split())
            _write(folder / part / speaker.speaker / "1" / f"{speaker.speaker}-1.trans.txt", lines)
    ordered = sorted(words)
    spoken = speak("en-us", [word.lower() for word in ordered])
    phones = [[FOLDED.get(phone, phone) for _, phone in one.phones if phone != "sil"] for one in spoken]
    _write(folder / "lexicon.txt", [" ".join([word, *said]) for word, said in zip(ordered, phones, strict=True)])
    _write(folder / "phones.txt", sorted({phone for said in phones for phone in said}))
    _write(folder / "char.dict", [f"{character} 1" for character in "|ETAONIHSRDLUMWCFGYPBVK'XJQZ"])


def quesst14(folder: Path, speakers: list[Speaker], rng: Generator, place: Path) -> None:
    """Query words and sentences to search, at 8 kHz, and the true matches."""
    train, test = _split(speakers, 8)
    queries = ["window", "river", "doctor", "silver", "market", "yesterday"]
    documents = []
    for index, word in enumerate(queries * 2):
        text = f"the {queries[(index + 1) % 6]} was near the {word}" if index % 2 else f"I saw a {word} and a tree"
        documents.append((f"quesst14_{index + 1:05d}", text))
    said = [_clips(train[index % 8], [text], rng)[0] for index, (_, text) in enumerate(documents)]
    for (name, _), samples in zip(documents, said, strict=True):
        _save(folder / "Audio" / f"{name}.wav", samples[::2], QUESST_RATE)
    _write(folder / "scoring" / "language_key_utterances.lst",
           [f"quesst14Database/Audio/{name}.wav nnenglish" for name, _ in documents])  # fmt: skip
    for split, voices in (("dev", test[:2]), ("eval", test[2:])):
        names, truth = [], []
        for index, word in enumerate(queries):
            name = f"quesst14_{split}_{index + 1:04d}"
            _save(folder / f"{split}_queries" / f"{name}.wav", _clips(voices[index % 2], [word], rng)[0][::2],
                  QUESST_RATE)  # fmt: skip
            names.append(f"quesst14Database/{split}_queries/{name}.wav nnenglish")
            truth += [f"LEXEME {document} 1 0.0 1.0 {name} lex <NA> <NA>" for document, text in documents
                      if word in text.split()]  # fmt: skip
        _write(folder / "scoring" / f"language_key_{split}.lst", names)
        _write(folder / "scoring" / f"groundtruth_quesst14_{split}" / f"quesst14_{split}.rttm", truth)


def voxceleb1(folder: Path, speakers: list[Speaker], rng: Generator, place: Path) -> None:
    """Speakers ``id10001`` ...: four videos of each, of two utterances; lists for identification and verification."""
    usage, utterances = [], {}
    for index, speaker in enumerate(speakers):
        part, name = ("test" if speaker.subset == "dev" else "dev"), f"id{10001 + index}"
        clips = _clips(speaker, _sentences(rng, 8, words=8), rng)
        for number, samples in enumerate(clips):
            path = f"{name}/video{number // 2}/{number % 2 + 1:05d}.wav"
            _save(folder / part / "wav" / path, np.tile(samples, -(-40_000 // len(samples))))
            usage.append(f"{(1, 1, 2, 3)[number // 2]} {path}")
            utterances.setdefault(part, []).append((name, path))
    _write(folder / "veri_test_class.txt", usage)
    _write(folder / "dev_speaker_ids.txt", sorted({name for name, _ in utterances["dev"]}))
    for part, file in (("dev", "dev_meta_data.txt"), ("test", "voxceleb1_test_v2.txt")):
        pairs = list(itertools.combinations(utterances[part], 2))
        same = [pair for pair in pairs if pair[0][0] == pair[1][0]]
        other = [pair for pair in pairs if pair[0][0] != pair[1][0]]
        drawn = [other[index] for index in rng.permutation(len(other))[: len(same)]]
        _write(folder / file, [f"{int(a[0] == b[0])} {a[1]} {b[1]}" for a, b in [*same, *drawn]])


def libri2mix(folder: Path, speakers: list[Speaker], rng: Generator, place: Path) -> None:
    """Kaldi folders of two speakers who take turns and overlap, with RTTM."""
    for part, members, count in zip(("train", "dev", "test"), _split(speakers, 6, 2), (12, 3, 4), strict=True):
        files: dict[str, list[str]] = {name: [] for name in ("wav.scp", "segments", "utt2spk", "reco2dur", "rttm")}
        for number in range(count):
            one, two = (members[index] for index in rng.permutation(len(members))[:2])
            recording, seconds = f"{part}{number:03d}", 6.0
            mixture = np.zeros(int(seconds * SAMPLE_RATE))
            for speaker, begin in ((one, 0.2), (two, 2.0 + rng.uniform(0, 1)), (one, 4.2)):
                clip = _clips(speaker, _sentences(rng, 1, words=4), rng)[0] / 2**15
                first = int(begin * SAMPLE_RATE)
                clip = clip[: min(len(clip), int(1.8 * SAMPLE_RATE), len(mixture) - first)]
                mixture[first : first + len(clip)] += clip
                end = begin + len(clip) / SAMPLE_RATE
                segment = f"{recording}_{speaker.speaker}_{begin:.2f}"
                files["segments"].append(f"{segment} {recording} {begin:.2f} {end:.2f}")
                files["utt2spk"].append(f"{segment} {speaker.speaker}")
                files["rttm"].append(
                    f"SPEAKER {recording} 1 {begin:.2f} {end - begin:.2f} <NA> <NA> {speaker.speaker} <NA>"
                )
            _save(folder / part / "wav" / f"{recording}.wav", np.clip(mixture, -1, 1))
            files["wav.scp"].append(f"{recording} {place / part / 'wav' / recording}.wav")
            files["reco2dur"].append(f"{recording} {seconds}")
        owners: dict[str, list[str]] = {}
        for line in files["utt2spk"]:
            owners.setdefault(line.split()[1], []).append(line.split()[0])
        files["spk2utt"] = [" ".join([speaker, *segments]) for speaker, segments in owners.items()]
        for name, lines in files.items():
            _write(folder / part / name, lines)


def fluent(folder: Path, speakers: list[Speaker], rng: Generator, place: Path) -> None:
    """Commands to a house: action, object and place of each are its intent."""
    commands = [
        (f"{verb} the {thing} in the {room}", action, thing, room)
        for verb, action in (("switch on", "activate"), ("turn off", "deactivate"), ("turn up", "increase"))
        for thing in ("lights", "music")
        for room in ("kitchen", "bedroom")
    ]
    for part, members in zip(("train", "valid", "test"), _split(speakers, 6, 2), strict=True):
        lines = [",path,speakerId,transcription,action,object,location"]
        for speaker in members:
            clips = _clips(speaker, [command[0] for command in commands], rng)
            for number, (command, samples) in enumerate(zip(commands, clips, strict=True)):
                path = f"wavs/speakers/{speaker.speaker}/{number}.wav"
                _save(folder / path, samples)
                lines.append(",".join([str(len(lines) - 1), path, speaker.speaker, *command]))
        _write(folder / "data" / f"{part}_data.csv", lines)


def snips(folder: Path, speakers: list[Speaker], rng: Generator, place: Path) -> None:
    """Requests with slots; the voices have the names of the data set's speakers."""
    artist = Slot("artist", ("MOZART", "MADONNA", "SINATRA"))
    city = Slot("city", ("PARIS", "BOSTON", "TOKYO"))
    requests = [
        f"PLAY MUSIC BY {{{artist.name}}}", f"WEATHER IN {{{city.name}}}",
        f"SONGS OF {{{artist.name}}} IN {{{city.name}}}",
    ]  # fmt: skip
    parts = {
        "train": ["Ivy", "Joanna", "Joey", "Justin", "Kendra", "Matthew"], "valid": ["Amy", "Nicole"],
        "test": ["Brian", "Emma", "Raveena", "Russell"],
    }  # fmt: skip
    lines = []
    for (part, names), members in zip(parts.items(), _split(speakers, 6, 2), strict=True):
        for name, speaker in zip(names, members, strict=True):
            texts, labels = [], []
            for number in range(9 if part == "train" else 4):
                values = {slot.name: str(rng.choice(slot.values)) for slot in (artist, city)}
                words = requests[number % 3].split()
                labels.append(["O" if word[0] != "{" else word.strip("{}") for word in words])
                texts.append(" ".join(word.format(**values) for word in words))
            for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
                lines.append(f"{name}-snips-{part}-{number} BOS {text} EOS\tO {' '.join(label)} Request")
            for number, samples in enumerate(_clips(speaker, [text.lower() for text in texts], rng)):
                _save(folder / part / f"{name}-snips-{part}-{number}.wav", samples)
    _write(folder / "all.iob.snips.txt", lines)
    (folder / "slots.txt").write_text(f"O\n{artist.name}\n{city.name}", encoding="utf-8")
    _write(folder / "characters.txt", [" ", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"])


def iemocap(folder: Path, speakers: list[Speaker], rng: Generator, place: Path) -> None:
    """Five sections of two actors; an emotion is a setting of the voice: pitch, its range, speed."""
    manners = {
        "neu": {}, "hap": {"pitch": 75, "pitch_range": 95}, "ang": {"rate": 230, "pitch_range": 60},
        "sad": {"rate": 115, "pitch": 25, "pitch_range": 10},
    }  # fmt: skip
    known = {}
    for session in range(1, 6):
        found, lines = [], []
        for actor, speaker in zip("FM", speakers[2 * session - 2 : 2 * session], strict=True):
            dialogue = f"Ses{session:02d}{actor}_impro01"
            for emotion, manner in manners.items():
                for number, samples in enumerate(_clips(speaker, _sentences(rng, 2), rng, **manner)):
                    name = f"{dialogue}_{actor}{emotion}{number}"
                    path = f"Session{session}/sentences/wav/{dialogue}/{name}.wav"
                    _save(folder / path, samples)
                    lines.append(f"[0.0 - 1.0]\t{name}\t{emotion}\t[2.5, 2.5, 2.5]")
                    found.append({"path": path, "label": emotion, "speaker": f"Ses{session:02d}{actor}"})
            _write(folder / f"Session{session}" / "dialog" / "EmoEvaluation" / f"{dialogue}.txt", lines)
        known[session] = found
    labels = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
    for session, found in known.items():
        rest = [one for other, those in known.items() if other != session for one in those]
        for part, those in (("train", rest), ("test", found)):
            text = json.dumps({"labels": labels, "meta_data": those})
            _write(folder / "meta_data" / f"Session{session}" / f"{part}_meta_data.json", [text])


def voicebank(folder: Path, speakers: list[Speaker], rng: Generator, place: Path) -> None:
    """Clean and noisy speech, named by speakers; p226 and p287 are s3prl's dev speakers."""
    names = {"trainset_28spk": ["p225", "p227", "p228", "p229", "p226", "p287"], "testset": ["p232", "p257"]}
    kinds = list(NOISES.values())
    for (part, members), own in zip(names.items(), _split(speakers, 6, 2), strict=False):
        for member, speaker in zip(members, own, strict=False):
            for number, one in enumerate(_said(speaker, _sentences(rng, 3))):
                clean = np.pad(resampled(one), 3200)
                noise = kinds[number % len(kinds)](rng)[: len(clean)]
                clean = clean[: len(noise)]
                noisy = clean + noise * np.sqrt(np.mean(clean**2) / np.mean(noise**2) / 10 ** rng.uniform(0, 1.5))
                scale = 0.9 / max(1.0, float(np.abs(noisy).max()))
                name = f"{member}_{number + 1:03d}.wav"
                _save(folder / f"clean_{part}_wav_16k" / name, clean * scale)
                _save(folder / f"noisy_{part}_wav_16k" / name, noisy * scale)


MAKERS: dict[str, Callable[[Path, list[Speaker], Generator, Path], None]] = {
    "LibriSpeech": librispeech,
    "quesst14Database": quesst14,
    "VoxCeleb1": voxceleb1,
    "Libri2Mix": libri2mix,
    "fluent_speech_commands_dataset": fluent,
    "SNIPS": snips,
    "IEMOCAP": iemocap,
    "noisy-vctk-16k": voicebank,
}
