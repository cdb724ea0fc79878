"""One utterance for the pictures: its sound, its phones, its temporal Gram matrices in teacher and student."""

import os
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fairseq_star.analysis.report.compare import Students, encode_both
from fairseq_star.data.dataset import DistillationDataset
from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE, ManifestEntry, read_manifest
from fairseq_star.plots.matrices import MAX_SECONDS, LayerMaps, UtteranceMaps, tgm

if TYPE_CHECKING:
    from fairseq_star.analysis.runs import Run

GOOD_SECONDS = 2.5  # enough for some twenty phones, few enough that each can be read in a picture


def utterance_maps(
    run: "Run", students: Students, dataset: DistillationDataset, split: str, name: str | None, layers: list[int]
) -> UtteranceMaps:
    """Encode one utterance of ``dataset`` (the manifest ``split`` of the run) and take the matrices of ``layers``.

    Args:
        name: its file's name; one of a length that shows well when None.

    Raises:
        StarError: no such utterance.
    """
    manifest = os.path.join(run.cfg.task.data, f"{split}.tsv")
    root, entries = read_manifest(manifest)
    line = _find(entries, name, manifest)
    # Utterances that are too short for a frame are in the manifest, but not in the dataset.
    index = line - sum(skipped < line for skipped in dataset.skipped_indices)
    item = dataset[index]
    source = item["source"][: int(MAX_SECONDS * SAMPLE_RATE)]
    teacher, before, after = encode_both(run, students, source)
    hidden, masked = item.get("masked"), None
    if hidden is not None:
        hidden = hidden[: teacher.frames.frame_lengths[0]]
        with torch.no_grad():
            device = next(students.after.parameters()).device
            mask = torch.from_numpy(hidden)[None].to(device)
            masked = students.after(source[None].to(device), frames=teacher.frames, mask_indices=mask)

    def maps(student_layer: int) -> LayerMaps:
        teacher_layer = run.criterion.teacher_layers[student_layer - 1]
        chosen = ((teacher, teacher_layer), (after, student_layer), (before, student_layer))
        grams = (tgm(encoding.hidden_states[layer][0]).cpu().numpy() for encoding, layer in chosen)
        of_layer = LayerMaps(student_layer, teacher_layer, *grams)
        if masked is not None:
            of_layer.masked = tgm(masked.hidden_states[student_layer][0]).cpu().numpy()
        return of_layer

    return UtteranceMaps(
        name=Path(entries[line].path).stem,
        samples=(source / source.abs().max().clamp_min(1e-8)).numpy(),
        geometry=run.task.teacher.geometry,
        phones=read_phones(manifest, line, teacher.frames.frame_lengths[0]),
        transcript=read_transcript(Path(root) / entries[line].path),
        layers=[maps(number) for number in layers],
        mask_indices=hidden,
    )


def read_phones(manifest: str, line: int, num_frames: int) -> list[tuple[int, int, str]]:
    """The first ``num_frames`` labels of an utterance in the ``.phn`` beside its manifest (a label a frame, as probes
    and fairseq use it), equal neighbours as one; nothing where there is no such file or it doesn't fit."""
    try:
        lines = Path(manifest).with_suffix(".phn").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    labels = lines[line].split()[:num_frames] if line < len(lines) else []
    if len(labels) < num_frames:
        return []
    ends = np.cumsum([len(list(group)) for _, group in groupby(labels)])
    return [(int(start), int(end), labels[start]) for start, end in zip([0, *ends], ends, strict=False)]


def read_transcript(audio: Path) -> str:
    """What is said, where a ``.trans.txt`` as LibriSpeech's lies beside the file; else nothing."""
    for path in audio.parent.glob("*.trans.txt"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            utterance, _, text = line.partition(" ")
            if utterance == audio.stem:
                return text
    return ""


def _find(entries: list[ManifestEntry], name: str | None, manifest: str) -> int:
    """The manifest's entry called ``name``, or the one of the most fitting length."""
    if name is None:
        return int(np.argmin([abs(entry.num_samples / SAMPLE_RATE - GOOD_SECONDS) for entry in entries]))
    names = [Path(entry.path).stem for entry in entries]
    if Path(name).stem not in names:
        raise StarError(f"--utterance {name}: not in {manifest}; {names[0]} is there, for example")
    return names.index(Path(name).stem)
