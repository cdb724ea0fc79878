"""Label files of a demo corpus for ``fairseq-star probe``, from the corpus's labels.

``{train,valid}.phn`` (a phone per frame) and ``.speaker`` next to the manifests; ``keyword/`` has clips of ten words
cut from the corpus, with their own manifests, ``.keyword`` and ``.speaker``: one word per clip, as in keyword spotting.
"""

import os
import shutil
from pathlib import Path

from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.manifest import SAMPLE_RATE, ManifestEntry, read_manifest, write_lines, write_manifest
from manifests.demo.labels import frame_labels, read_segments
from manifests.preparing import speaker_of

SPLITS = ("train", "valid")
FRAMES = FrameGeometry(receptive_field=400, downsample_rate=320)  # of HuBERT's convolutions
# Frequent in the corpus and not so short that they are swallowed.
KEYWORDS = ("although", "another", "because", "could", "every", "miles", "never", "there", "touch", "while")
MARGIN = 0.05  # s of what surrounds a word, on either side


def write_probe_labels(corpus: Path) -> None:
    """Write the missing label files; ``corpus`` was made by corpus.py.

    Raises:
        StarError: the corpus lacks its manifests or labels.
    """
    if (corpus / "keyword").is_dir():  # written last
        return
    phones = read_segments(corpus / "labels" / "phones.txt")
    for split in SPLITS:
        _, entries = read_manifest(corpus / f"{split}.tsv")
        frames = [
            frame_labels(phones[Path(entry.path).stem], FRAMES.num_frames(entry.num_samples)) for entry in entries
        ]
        _write_lines(corpus / f"{split}.phn", [" ".join(of_one) for of_one in frames])
        _write_lines(corpus / f"{split}.speaker", [speaker_of(entry.path) for entry in entries])
    unfinished = corpus / "keyword.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for split in SPLITS:
        _write_keywords(corpus, split, unfinished)
    os.rename(unfinished, corpus / "keyword")


def _write_keywords(corpus: Path, split: str, out: Path) -> None:
    import soundfile

    root, entries = read_manifest(corpus / f"{split}.tsv")
    words = read_segments(corpus / "labels" / "words.txt")
    margin = int(MARGIN * SAMPLE_RATE)
    clips, labels, speakers = [], [], []
    for entry in entries:
        name = Path(entry.path).stem
        found = [word for word in words[name] if word.label.lower() in KEYWORDS]
        samples = soundfile.read(Path(root) / entry.path, dtype="int16")[0] if found else None
        for word in found:
            clip = samples[max(0, word.start - margin) : word.end + margin]
            path = f"{split}/{speaker_of(entry.path)}/{name}-{word.start}.flac"
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(out / path, clip, SAMPLE_RATE, subtype="PCM_16")
            clips.append(ManifestEntry(path, len(clip)))
            labels.append(word.label.lower())
            speakers.append(speaker_of(entry.path))
    if clips:  # a corpus of a minute or less may have none
        write_manifest(out / f"{split}.tsv", (corpus / "keyword").resolve(), clips)
        _write_lines(out / f"{split}.keyword", labels)
        _write_lines(out / f"{split}.speaker", speakers)


def _write_lines(path: Path, lines: list[str]) -> None:
    write_lines(path, (line + "\n" for line in lines))
