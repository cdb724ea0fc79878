"""Prepares real speech for ``benchmarks.ablation``: to train on it, and to tell its speakers; phones stay the demo's.

    python -m benchmarks.real_speech LIBRISPEECH [--out demo/real] [--corpus demo/corpus] [--held-out 50]
    python -m benchmarks.ablation --suite objectives --data demo/real --out demo/real-objectives --batch-size 2

LIBRISPEECH is laid out as the corpus is (``train-clean-100/SPEAKER/CHAPTER/*.flac``). The speakers of ``valid.tsv`` are
not trained on. Each of their recordings is cut into pieces of equal length, three to learn the speaker from, one to
stop at and one to be told: a speaker of one recording is known by voice, room and microphone together. Phones and
keywords, which real speech without an alignment has not, are those of the demo corpus.
"""

import argparse
import shutil
from pathlib import Path

import soundfile

from benchmarks.measure import ROOT
from fairseq_star.analysis.probe.labels import EXTENSION, TEST_SPLIT, TRAIN_SPLIT
from fairseq_star.errors import StarError
from fairseq_star.manifest import ManifestEntry, read_manifest, write_lines, write_manifest
from fairseq_star.runtime.names import KEYWORD, PHONE, SPEAKER
from manifests import librispeech
from manifests.preparing import run_script, speaker_of

PIECES = 5


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's text.

    Raises:
        StarError: the demo corpus is not there.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("librispeech", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "demo" / "real", help="default: demo/real")
    parser.add_argument("--corpus", type=Path, default=ROOT / "demo" / "corpus", help="default: demo/corpus")
    parser.add_argument("--held-out", type=int, default=50, metavar="N", help="speakers of valid.tsv (default 50)")
    options = parser.parse_args(arguments)
    if not (options.corpus / f"{TEST_SPLIT}.{EXTENSION[PHONE]}").is_file():
        raise StarError(f"{options.corpus}: no demo corpus; python manifests/demo/corpus.py {options.corpus} makes it")
    listed = ["--split", "100h", "--valid-speakers", str(options.held_out)]
    librispeech.main([str(options.librispeech), "--out", str(options.out), *listed])
    (options.out / "train-100h.tsv").replace(options.out / f"{TRAIN_SPLIT}.tsv")
    for task in (PHONE, KEYWORD):
        (options.out / task).mkdir(exist_ok=True)
        labelled = options.corpus / task if (options.corpus / task).is_dir() else options.corpus
        for split in (TRAIN_SPLIT, TEST_SPLIT):
            for extension in ("tsv", EXTENSION[task], EXTENSION[SPEAKER]):
                shutil.copy(labelled / f"{split}.{extension}", options.out / task)
    _cut(options.out / f"{TEST_SPLIT}.tsv", (options.out / SPEAKER).resolve())


def _cut(manifest: Path, out: Path) -> None:
    """Every recording in :data:`PIECES` pieces; half of the speakers in each of the two manifests of the probe."""
    root, entries = read_manifest(manifest)
    (out / "audio").mkdir(parents=True, exist_ok=True)
    found: dict[str, list[tuple[ManifestEntry, str]]] = {TRAIN_SPLIT: [], TEST_SPLIT: []}
    for number, entry in enumerate(entries):
        samples, rate = soundfile.read(Path(root) / entry.path, dtype="int16")
        size = len(samples) // PIECES
        for piece in range(PIECES):
            name = f"{Path(entry.path).stem}-{piece}.wav"
            soundfile.write(out / "audio" / name, samples[piece * size : (piece + 1) * size], rate)
            found[(TRAIN_SPLIT, TEST_SPLIT)[number % 2]].append((ManifestEntry(name, size), speaker_of(entry.path)))
    for split, pieces in found.items():
        write_manifest(out / f"{split}.tsv", out / "audio", (entry for entry, _ in pieces))
        write_lines(out / f"{split}.{EXTENSION[SPEAKER]}", (f"{speaker}\n" for _, speaker in pieces))


if __name__ == "__main__":
    run_script(main)
