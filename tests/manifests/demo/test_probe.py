"""The demo corpus's labels as the probe reads them."""

from pathlib import Path

import numpy as np
import soundfile

from fairseq_star.analysis.probe.labels import read_task
from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.manifest import ManifestEntry, read_manifest, write_manifest
from manifests.demo.labels import Segment, write_segments
from manifests.demo.probe import MARGIN, write_probe_labels

GEOMETRY = FrameGeometry(receptive_field=400, downsample_rate=320)
WORDS = ["THE", "BECAUSE", "NEVER", "CAT"]
LENGTH, WORD = 16_000, 4000  # samples


def write_corpus(root: Path) -> None:
    """Two speakers to learn from and one to be tested on, two utterances each, four words of a quarter of a second."""
    phones, words = {}, {}
    for split, subset, speakers in (("train", "train", ["1001", "1002"]), ("valid", "dev", ["2001"])):
        entries = []
        for speaker in speakers:
            for number in range(2):
                name = f"{speaker}-1-000{number}"
                path = root / subset / speaker / "1" / f"{name}.flac"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, np.arange(LENGTH, dtype=np.int16), 16_000)
                entries.append(ManifestEntry(str(path.relative_to(root)), LENGTH))
                order = WORDS[number:] + WORDS[:number]
                words[name] = [Segment(n * WORD, (n + 1) * WORD, word) for n, word in enumerate(order)]
                phones[name] = [Segment(0, 8000, "a"), Segment(8000, LENGTH, "sil")]
        write_manifest(root / f"{split}.tsv", root, entries)
    (root / "labels").mkdir()
    write_segments(root / "labels" / "phones.txt", "phone", phones)
    write_segments(root / "labels" / "words.txt", "word", words)


def test_the_probe_reads_what_is_written(tmp_path):
    write_corpus(tmp_path)
    write_probe_labels(tmp_path)
    phones = read_task(tmp_path, "phone", GEOMETRY)
    (first, *_) = phones.test
    # Frame t has its middle at sample 320 t + 200: 24 lies at 7880, 25 at 8200.
    assert first.labels == ("a",) * 25 + ("sil",) * 24
    assert {one.cluster for one in phones.test} == {"2001"}

    keywords = read_task(tmp_path, "keyword", GEOMETRY)
    assert keywords.classes == ["because", "never"]
    assert len(keywords.utterances) == 12
    root, entries = read_manifest(tmp_path / "keyword" / "valid.tsv")
    labels = (tmp_path / "keyword" / "valid.keyword").read_text().split()
    margin = int(MARGIN * 16_000)
    for entry, label in zip(entries, labels, strict=True):
        samples, _ = soundfile.read(Path(root) / entry.path, dtype="int16")
        start = int(Path(entry.path).stem.split("-")[-1])
        number = int(Path(entry.path).stem.split("-")[2])
        assert (WORDS[number:] + WORDS[:number])[start // WORD].lower() == label
        first = max(0, start - margin)
        assert samples.tolist() == list(range(first, min(start + WORD + margin, LENGTH)))


def test_what_is_there_is_left_alone_and_what_broke_off_is_made_anew(tmp_path):
    write_corpus(tmp_path)
    (tmp_path / "keyword.part").mkdir()
    write_probe_labels(tmp_path)
    assert not (tmp_path / "keyword.part").exists()
    (tmp_path / "train.phn").write_text("mine\n")
    write_probe_labels(tmp_path)
    assert (tmp_path / "train.phn").read_text() == "mine\n"
