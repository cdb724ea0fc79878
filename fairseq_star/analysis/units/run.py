"""``fairseq-star units``: from a teacher and manifests to a file of centroids, told what it is worth."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fairseq_star.analysis.probe.features import read_samples
from fairseq_star.analysis.probe.labels import EXTENSION, PHONE, Utterance
from fairseq_star.analysis.units import kmeans
from fairseq_star.analysis.units.quality import Quality, quality
from fairseq_star.analysis.units.sample import FrameSample, choose
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.files import new_output
from fairseq_star.formats import hub, load_teacher
from fairseq_star.losses.centroids import Centroids
from fairseq_star.manifest import read_manifest
from fairseq_star.teacher.provider import teacher_digest

HELD_OUT = 100_000  # frames of the other split that quality is measured on


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
) -> Quality:
    """Fit centroids to a teacher layer's states and write them to ``out``.

    The sample of frames lies beside ``out`` (``OUT.frames/``, 4 bytes a number) until the centroids are there: the same
    command goes on where it was broken off. Whole utterances are drawn at random until there are ``frames``.

    Args:
        checkpoint: the teacher, as ``task.teacher`` takes it.
        data: folder of the manifests.
        layer: 1-based; 0 is the first layer's input.
        clusters: K.
        split: manifest that the frames are of.
        test_split: manifest of other utterances, for the quality; phones beside it (``.phn``) are used where they are.
        device: ``cuda`` where there is one when None.

    Returns:
        What the centroids are worth.

    Raises:
        StarError: anything of this that cannot be.
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
        digest = teacher_digest(located.path)
        about = {
            "teacher": digest, "layer": layer, "split": split, "seed": seed, "frames": frames,
            "utterances": [[one.path, one.num_samples] for one in chosen],
        }  # fmt: skip
        sample = FrameSample(target.with_name(f"{target.name}.frames"), about, teacher.embed_dim)
        states_of = states_of_layer(teacher, layer)
        taken = sample.fill(chosen, states_of)
        vectors, history = kmeans.fit(taken, clusters, seed)
        of_test = [test[number] for number in choose(test, count, HELD_OUT, seed)]
        measured = measure(vectors, of_test, states_of)
        fitted = {
            "checkpoint": located.name, "split": split, "frames": len(taken), "utterances": len(chosen), "seed": seed,
            "inertia_of_passes": history, "quality": {"split": test_split, **measured.to_dict()},
        }  # fmt: skip
        Centroids(vectors, layer, digest, fitted).write(written)
        del taken
    sample.remove()
    return measured


def utterances_of(data: str, split: str, teacher: FrozenEncoder, *, phones: bool = False) -> list[Utterance]:
    """Those of ``{data}/{split}.tsv`` that are as long as a frame.

    Args:
        phones: give each the line of ``{data}/{split}.phn`` as its labels, where that file is there and has as many.

    Raises:
        StarError: there is none, or no manifest.
    """
    root, entries = read_manifest(Path(data) / f"{split}.tsv")
    lines = [()] * len(entries)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if phones:
            text = (Path(data) / f"{split}.{EXTENSION[PHONE]}").read_text(encoding="utf-8-sig")
            told = [tuple(line.split()) for line in text.splitlines()]
            lines = told if len(told) == len(entries) else lines
    shortest = teacher.geometry.receptive_field
    found = [
        Utterance(str(Path(root) / path), num_samples, labels, path)
        for (path, num_samples), labels in zip(entries, lines, strict=True)
        if num_samples >= shortest
    ]
    if not found:
        raise StarError(f"{Path(data) / split}.tsv: no utterance is as long as a frame, {shortest} samples")
    return found


def states_of_layer(teacher: FrozenEncoder, layer: int) -> Callable[[Utterance], Tensor]:
    """What gives the states (n x D) of an utterance after ``layer``."""
    return lambda utterance: teacher.encode_one(read_samples(utterance), last_layer=layer).hidden_states[layer][0]


def measure(vectors: np.ndarray, utterances: list[Utterance], states_of: Callable[[Utterance], Tensor]) -> Quality:
    """The quality of centroids on ``utterances``; with phones where each has a label for each of its frames."""
    frames = [states_of(one).float().cpu().numpy() for one in utterances]
    labelled = all(len(one.labels) == len(of_one) for one, of_one in zip(utterances, frames, strict=True))
    whole = np.concatenate(frames)
    numbers, distances = kmeans.assign(whole, vectors)
    phones = [label for one in utterances for label in one.labels] if labelled else None
    return quality(numbers, distances, float(whole.var(0, dtype=np.float64).sum()), len(vectors), phones)
