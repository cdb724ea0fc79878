"""Labelled manifests: ``{split}.tsv`` and, line by line with it, ``{split}.phn``, ``.keyword`` and ``.speaker``.

``.phn`` holds a label for each frame of the utterance, separated by blanks (fairseq's frame labels); the others hold
one label a line. Phones and keywords are learned from ``train`` and tested on ``valid``; speakers are learned and
tested on different utterances of both.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fairseq_star.audio.utterances import original_name, place_of
from fairseq_star.data.labels import read_label_lines
from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.errors import StarError
from fairseq_star.manifest import read_manifest
from fairseq_star.runtime.names import KEYWORD, PHONE, PROBE_TASKS, SPEAKER

TASKS = PROBE_TASKS
EXTENSION = {PHONE: "phn", KEYWORD: "keyword", SPEAKER: "speaker"}
TRAIN_SPLIT, TEST_SPLIT = "train", "valid"
DEV_SHARE = 0.1  # of the training speakers (utterances where none are known), to stop the head's training
SPEAKER_SHARES = (0.6, 0.2)  # of a speaker's utterances: training, dev; the rest is the test part


@dataclass(frozen=True)
class Utterance:
    """An audio file with its labels: one for each frame (phone) or a single one."""

    path: str
    num_samples: int
    labels: tuple[str, ...]
    cluster: str  # its speaker, or itself where speakers are unknown; intervals resample clusters
    condition: str = ""  # names a transform of its samples, such as noise, if any

    @property
    def key(self) -> tuple[str, str]:
        """Identity of the audio whatever the labels: utterances of one key have the same features."""
        return self.path, self.condition


@dataclass(frozen=True)
class TaskData:
    """Training, dev and test part of a task."""

    task: str
    classes: list[str]  # of the training part, sorted
    train: list[Utterance]
    dev: list[Utterance]
    test: list[Utterance]

    @property
    def utterances(self) -> list[Utterance]:
        return [*self.train, *self.dev, *self.test]

    def class_numbers(self, utterance: Utterance) -> list[int]:
        """Return a number for each label; -1 for one that training lacks, which is never correct."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        return [numbers.get(label, -1) for label in utterance.labels]


def read_task(data: str | os.PathLike, task: str, geometry: FrameGeometry, limit: int | None = None) -> TaskData:
    """Read a task from ``data/task/`` where that folder exists, else from ``data/``, and divide it into parts.

    Args:
        geometry: the models' frames, which phone labels must agree with.
        limit: take about this many utterances of each manifest, chosen by a hash of their paths; in the speaker task
            of both together, all utterances of a speaker or none.

    Raises:
        StarError: a file is missing, labels do not fit their manifest or the frames, or a part would be empty.
    """
    folder = Path(data) / task if (Path(data) / task).is_dir() else Path(data)
    splits = [_read_split(folder, split, task, geometry) for split in (TRAIN_SPLIT, TEST_SPLIT)]
    if both := {place_of(one.path) for one in splits[0]} & {place_of(one.path) for one in splits[1]}:
        raise StarError(
            f"{folder}: {min(both)} is in both {TRAIN_SPLIT}.tsv and {TEST_SPLIT}.tsv; take it out of one of the two"
        )
    if task == SPEAKER:
        train, dev, test = _within_speakers(splits[0] + splits[1], limit, folder)
    else:
        known, test = (_ranked(split)[:limit] for split in splits)
        clusters = sorted({one.cluster for one in known}, key=_hash)
        for_dev = set(clusters[: max(1, round(DEV_SHARE * len(clusters)))])
        train = [one for one in known if one.cluster not in for_dev]
        dev = [one for one in known if one.cluster in for_dev]
    for name, part in (("training", train), ("dev", dev), ("test", test)):
        if not part:
            raise StarError(f"{folder}: the {name} part of the {task} probe has no utterance; label more of them")
    classes = sorted({label for one in train for label in one.labels})
    shared = {label for one in test for label in one.labels} & set(classes)
    if len(classes) < 2 or not shared:
        some = ", ".join(classes[:3]) + (" ..." if len(classes) > 3 else "")
        fault = f"have none in common with those of the {TEST_SPLIT} manifest"
        raise StarError(
            f"{folder}: the {task} labels of the training part ({some}) "
            f"{'are all the same' if len(classes) < 2 else fault}; correct {TRAIN_SPLIT}.{EXTENSION[task]}"
        )
    return TaskData(task, classes, train, dev, test)


def _read_split(folder: Path, split: str, task: str, geometry: FrameGeometry) -> list[Utterance]:
    root, entries = read_manifest(folder / f"{split}.tsv")
    lines = _read_lines(folder / f"{split}.{EXTENSION[task]}", len(entries), task)
    speakers_path = folder / f"{split}.{EXTENSION[SPEAKER]}"
    speakers = _read_lines(speakers_path, len(entries), SPEAKER) if speakers_path.is_file() else None
    utterances = []
    for number, (entry, line) in enumerate(zip(entries, lines, strict=True)):
        where = f"{folder / split}.{EXTENSION[task]}:{number + 1}"
        labels = tuple(line.split()) if task == PHONE else (line,)
        num_frames = geometry.num_frames(entry.num_samples)
        if num_frames < 1:
            raise StarError(
                f"{folder / split}.tsv:{number + 2}: {entry.path} has {entry.num_samples} samples, less than one frame "
                f"({geometry.receptive_field}); take it out of manifest and labels"
            )
        if task == PHONE and len(labels) != num_frames:
            raise StarError(
                f"{where}: {len(labels)} labels, but {entry.path} has {num_frames} frames "
                f"({geometry.downsample_rate} samples from one to the next); write one label a frame"
            )
        cluster = speakers[number] if speakers else entry.path
        utterances.append(Utterance(os.path.join(root, entry.path), entry.num_samples, labels, cluster))
    return utterances


def _read_lines(path: Path, expected: int, task: str) -> list[str]:
    return read_label_lines(path, expected, task, otherwise=", or leave the task out with --tasks")


def _within_speakers(utterances: Sequence[Utterance], limit: int | None, folder: Path) -> tuple[list[Utterance], ...]:
    """Divide each speaker's utterances into training, dev and test part; leave out speakers of fewer than three."""
    by_speaker: dict[str, list[Utterance]] = defaultdict(list)
    for one in utterances:
        by_speaker[one.labels[0]].append(one)
    parts: tuple[list[Utterance], ...] = ([], [], [])
    for speaker in sorted(by_speaker, key=_hash):
        ranked = _ranked(by_speaker[speaker])
        if len(ranked) < 3 or (limit is not None and sum(map(len, parts)) >= limit):
            continue
        num_dev = max(1, round(SPEAKER_SHARES[1] * len(ranked)))
        num_train = min(max(1, round(SPEAKER_SHARES[0] * len(ranked))), len(ranked) - num_dev - 1)
        parts[0].extend(ranked[:num_train])
        parts[1].extend(ranked[num_train : num_train + num_dev])
        parts[2].extend(ranked[num_train + num_dev :])
    if not parts[0]:
        raise StarError(
            f"{folder}: no speaker has three utterances, for the training, dev and test part; label more of them"
        )
    return parts


def _ranked(utterances: list[Utterance]) -> list[Utterance]:
    return sorted(utterances, key=lambda one: _hash(one.path))


def _hash(name: str) -> bytes:
    # The path's last parts alone: a corpus is divided the same way in any folder, converted or not.
    return hashlib.sha256("/".join(Path(original_name(name)).parts[-3:]).encode()).digest()
