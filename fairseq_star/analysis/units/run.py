"""Units of a teacher: a file of k-means centroids of one layer's states, with its quality; ``fairseq-star units``.

Shapes: F frames, D width of the layer's states, K clusters.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fairseq_star.analysis.probe.features import read_samples
from fairseq_star.analysis.probe.labels import EXTENSION, PHONE, Utterance
from fairseq_star.analysis.units import kmeans
from fairseq_star.data.origin import CORPUS, corpus_origin, differences
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.formats import hub, load_teacher
from fairseq_star.losses.centroids import Centroids
from fairseq_star.manifest import read_manifest
from fairseq_star.runtime.files import new_output, replacing
from fairseq_star.teacher.provider import teacher_digest

logger = logging.getLogger(__name__)

HELD_OUT = 100_000  # frames of the other split that quality is measured on
SAVE_EVERY = 50  # utterances


def fit_units(
    checkpoint: str,
    data: str,
    *,
    layer: int,
    clusters: int,
    out: str,
    split: str = "train",
    test_split: str = "valid",
    frames: int = 1_000_000,
    seed: int = 0,
    device: str | None = None,
    force: bool = False,
) -> kmeans.Quality:
    """Fit centroids to a teacher layer's states, write them to ``out`` and return their quality.

    The sample of frames lies next to ``out`` (``OUT.frames/``, 4 bytes a number) until the centroids are written: after
    an interruption the same command resumes. Whole utterances are drawn at random until there are ``frames``.

    Args:
        checkpoint: the teacher, as ``task.teacher`` takes it.
        data: folder of the manifests.
        layer: 1-based; 0 is the first layer's input.
        clusters: K.
        split: manifest of the frames to fit to.
        test_split: manifest of other utterances, for the quality; with their phones where it has a ``.phn``.
        device: ``cuda`` where there is one when None.

    Raises:
        StarError: an invalid option, or a teacher or manifest that cannot be read.
    """
    if clusters < 2 or frames < 1:
        raise StarError(f"--clusters {clusters} must be 2 or more, --frames {frames} 1 or more")
    located = hub.locate(checkpoint, "units")
    teacher = load_teacher(located.path, option="units").to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if not 0 <= layer <= teacher.num_layers:
        raise StarError(f"--layer {layer}: the teacher has layers 0 (the first one's input) to {teacher.num_layers}")
    utterances, test = utterances_of(data, split, teacher), utterances_of(data, test_split, teacher, phones=True)
    target = Path(out)
    with new_output(target, what="file of centroids", force=force) as written:
        count = teacher.geometry.num_frames
        chosen = [utterances[number] for number in choose(utterances, count, frames, seed)]
        of_test = [test[number] for number in choose(test, count, HELD_OUT, seed)]
        for one in of_test:  # they come last, and a bad one would cost all the work before
            read_samples(one)
        digest = teacher_digest(located.path)
        origin = {CORPUS: corpus_origin(Path(data) / f"{split}.tsv"), "teacher": digest}
        about = {**origin, "layer": layer, "split": split, "seed": seed, "frames": frames}
        sample = FrameSample(target.with_name(f"{target.name}.frames"), about, teacher.embed_dim)
        states_of = states_of_layer(teacher, layer)
        taken = sample.fill(chosen, states_of)
        vectors, history = kmeans.fit(taken, clusters, seed)
        measured = measure(vectors, of_test, states_of)
        fitted = {
            **origin, "checkpoint": located.name, "split": split, "frames": len(taken), "utterances": len(chosen),
            "seed": seed, "inertia_of_passes": history, "quality": {"split": test_split, **measured.to_dict()},
        }  # fmt: skip
        Centroids(vectors, layer, digest, fitted).write(written)
        del taken
    sample.remove()
    return measured


def utterances_of(data: str, split: str, teacher: FrozenEncoder, *, phones: bool = False) -> list[Utterance]:
    """Read the utterances of ``{data}/{split}.tsv`` that are at least one frame long.

    Args:
        phones: label each with its line of ``{data}/{split}.phn``, where that file exists; labels that do not fit are
            left out, counted and logged with the first such line.

    Raises:
        StarError: there is none, or no manifest.
    """
    root, entries = read_manifest(Path(data) / f"{split}.tsv")
    lines = [()] * len(entries)
    if phones and (path := Path(data) / f"{split}.{EXTENSION[PHONE]}").exists():
        lines = _read_phones(path, [teacher.geometry.num_frames(entry.num_samples) for entry in entries])
    shortest = teacher.geometry.receptive_field
    utterances = [
        Utterance(str(Path(root) / path), num_samples, labels, path)
        for (path, num_samples), labels in zip(entries, lines, strict=True)
        if num_samples >= shortest
    ]
    if not utterances:
        raise StarError(f"{Path(data) / split}.tsv: no utterance is as long as a frame, {shortest} samples")
    return utterances


def _read_phones(path: Path, num_frames: Sequence[int]) -> list[tuple[str, ...]]:
    """Return each utterance's phones, none of those whose line has not one for each frame."""
    none = [()] * len(num_frames)
    try:
        labels = [tuple(line.split()) for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        logger.warning(f"{path}: cannot be read as text ({error}); quality is measured without phones")
        return none
    if len(labels) != len(num_frames):
        logger.warning(
            f"{path}: {len(labels)} lines, but the manifest next to it has {len(num_frames)} utterances; quality is "
            "measured without phones: write one line for each"
        )
        return none
    wrong = [place for place, line in enumerate(labels) if num_frames[place] > 0 and len(line) != num_frames[place]]
    if wrong:
        first = wrong[0]
        logger.warning(
            f"{path}:{first + 1}: {len(labels[first])} labels for {num_frames[first]} frames; so it is in {len(wrong)} "
            f"of {len(labels)} lines, which are left out of the agreement with phones: write one label a frame"
        )
    return [() if place in set(wrong) else line for place, line in enumerate(labels)]


def states_of_layer(teacher: FrozenEncoder, layer: int) -> Callable[[Utterance], Tensor]:
    """Return a function of an utterance that computes its states (n x D) after ``layer``."""
    return lambda utterance: teacher.encode_one(read_samples(utterance), last_layer=layer).hidden_states[layer][0]


def measure(
    vectors: np.ndarray, utterances: list[Utterance], states_of: Callable[[Utterance], Tensor]
) -> kmeans.Quality:
    """Measure centroids on ``utterances``, against the phones of those that have labels, one for each frame."""
    frames = [states_of(one).float().cpu().numpy() for one in utterances]
    whole = np.concatenate(frames)
    numbers, distances = kmeans.assign(whole, vectors)
    unknown = [(None,) * len(of_one) for of_one in frames]
    phones = [label for one, none in zip(utterances, unknown, strict=True) for label in one.labels or none]
    return kmeans.quality(numbers, distances, float(whole.var(0, dtype=np.float64).sum()), len(vectors), phones)


def choose(utterances: Sequence[Utterance], frames_of: Callable[[int], int], wanted: int, seed: int) -> list[int]:
    """Return indices of utterances, in an order set by the seed alone, of ``wanted`` frames in all, or all."""
    order = np.random.default_rng(seed).permutation(len(utterances))
    reached = np.cumsum([frames_of(utterances[number].num_samples) for number in order])
    return order[: int(np.searchsorted(reached, wanted)) + 1].tolist()


class FrameSample:
    """A sample of frames that grows on disk, with a note of its progress, so that an interruption loses little.

    Args:
        folder: of both files; made where it is missing.
        about: everything that the frames depend on; a sample of anything else is replaced.
        width: D.
    """

    def __init__(self, folder: Path, about: dict, width: int):
        self.folder, self.about, self.width = folder, about, width
        self.path, self.note = folder / "frames.f32", folder / "progress.json"

    def fill(self, utterances: Sequence[Utterance], states_of: Callable[[Utterance], Tensor]) -> np.ndarray:
        """Return the frames of all ``utterances`` (F x D, float32, mapped from the file), computing only those missing.

        Raises:
            StarError: the folder cannot be written to, or an audio file not be read.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            done, num_bytes = self._progress()
            with open(self.path, "r+b" if self.path.exists() else "w+b") as file:
                file.truncate(num_bytes)  # drop what was written after the last note
                file.seek(num_bytes)
                bar = tqdm(utterances[done:], "taking frames", len(utterances), unit="utt", initial=done, disable=None)
                for number, utterance in enumerate(bar, start=done + 1):
                    file.write(states_of(utterance).float().cpu().contiguous().numpy().tobytes())
                    if number % SAVE_EVERY == 0 or number == len(utterances):
                        file.flush()
                        os.fsync(file.fileno())
                        note = {"about": self.about, "utterances": number, "bytes": file.tell()}
                        with replacing(self.note) as temporary:
                            temporary.write_text(json.dumps(note))
        except OSError as error:
            raise StarError(
                f"--out: {self.folder} cannot be written to ({error.strerror}); make room, or lower --frames"
            ) from error
        return np.memmap(self.path, np.float32, mode="r").reshape(-1, self.width)

    def _progress(self) -> tuple[int, int]:
        """Return the numbers of utterances and bytes that are done, 0 where the files belong to another sample."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            if not differences(note["about"], self.about) and self.path.stat().st_size >= note["bytes"]:
                return note["utterances"], note["bytes"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return 0, 0

    def remove(self) -> None:
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)
        self.folder.rmdir()
