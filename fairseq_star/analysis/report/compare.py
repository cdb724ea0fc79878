"""Similarity of teacher and student, layer by layer (CKA, distance of temporal Gram matrices), and relation maps.

Shapes: n frames, D_i widths, L_t and L_s layers of teacher and student, T frames of one utterance.
"""

import os
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fairseq_star.analysis.similarity import linear_cka, tgm_error
from fairseq_star.data.dataset import DistillationDataset
from fairseq_star.encoder.modules import Encoding
from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE, ManifestEntry, read_manifest
from fairseq_star.plots.matrices import MAX_SECONDS, LayerMaps, UtteranceMaps, tgm

if TYPE_CHECKING:
    from fairseq_star.analysis.runs import Run

MAX_FRAMES = 4000  # of CKA: 80 s of speech, well above the widths; with fewer frames than these CKA is too high
GOOD_SECONDS = 2.5  # some twenty phones, few enough to be legible in a picture


@dataclass
class Students:
    """The untrained and the trained student of a run, in eval mode."""

    before: nn.Module
    after: nn.Module

    @classmethod
    def of(cls, run: "Run", device: str) -> "Students":
        """Build both students of ``run`` on ``device``; the run's own model becomes the trained one."""
        before = run.task.build_model(run.cfg.model, from_checkpoint=True)  # the teacher is left as it is
        before.load_state_dict(run.model.state_dict())
        run.load_trained()
        return cls(before.to(device).eval(), run.model.to(device).eval())


@dataclass
class Similarity:
    """Similarity of student and teacher over some utterances; ``before`` is the untrained student's."""

    num_utterances: int
    num_frames: int
    teacher_layers: list[int]  # 1-based, the one that each student layer learns from
    cka_before: np.ndarray  # (L_t + 1) x (L_s + 1); row and column 0 are the inputs of the first layers
    cka: np.ndarray
    tgm_error_before: np.ndarray  # L_s, relative: see `tgm_error`
    tgm_error: np.ndarray

    def matched(self, cka: np.ndarray) -> np.ndarray:
        """Select L_s values: each student layer against the teacher layer it learns from."""
        return np.array([cka[layer, number] for number, layer in enumerate(self.teacher_layers, start=1)])


@torch.no_grad()
def encode_both(run: "Run", students: Students, source: Tensor) -> tuple[Encoding, Encoding, Encoding]:
    """Encode one utterance's samples (1-dimensional) with the teacher, the untrained and the trained student."""
    source = source[None].to(next(students.after.parameters()).device)
    teacher = run.task.provider.encode({"net_input": {"source": source}, "num_samples": [source.size(1)]})
    return teacher, students.before(source, frames=teacher.frames), students.after(source, frames=teacher.frames)


def compare(run: "Run", students: Students, dataset: DistillationDataset, max_frames: int = MAX_FRAMES) -> Similarity:
    """Compare over ``max_frames`` of ``dataset``, in utterances drawn at random with a fixed seed."""
    matched = list(run.criterion.teacher_layers)
    states: tuple[list, list, list] = ([], [], [])  # teacher, before, after; of each utterance its L + 1 states, T x D
    errors = []
    num_frames = 0
    order = np.random.default_rng(0).permutation(len(dataset))
    with tqdm(total=max_frames, desc="comparing teacher and student", unit="frame", disable=None) as progress:
        for index in order:
            encodings = encode_both(run, students, dataset[int(index)]["source"])
            for collected, encoding in zip(states, encodings, strict=True):
                collected.append([state[0].float().cpu() for state in encoding.hidden_states])
            teacher, *both = (collected[-1] for collected in states)
            grams = [tgm(teacher[layer]) for layer in matched]
            errors.append(
                [[tgm_error(gram, tgm(student[n])) for n, gram in enumerate(grams, start=1)] for student in both]
            )
            num_frames += len(teacher[0])
            progress.update(len(teacher[0]))
            if num_frames >= max_frames:
                break
    teacher, before, after = ([torch.cat(layer)[:max_frames] for layer in zip(*one, strict=True)] for one in states)
    error_before, error = np.mean(errors, axis=0)
    return Similarity(
        num_utterances=len(errors),
        num_frames=min(num_frames, max_frames),
        teacher_layers=matched,
        cka_before=linear_cka(teacher, before),
        cka=linear_cka(teacher, after),
        tgm_error_before=error_before,
        tgm_error=error,
    )


def utterance_maps(
    run: "Run", students: Students, dataset: DistillationDataset, split: str, name: str | None, layers: list[int]
) -> UtteranceMaps:
    """Encode one utterance of ``dataset`` (the manifest ``split`` of the run) and compute the matrices of ``layers``.

    Args:
        name: its file's name; an utterance of about :data:`GOOD_SECONDS` when None.

    Raises:
        StarError: no such utterance.
    """
    manifest = os.path.join(run.cfg.task.data, f"{split}.tsv")
    root, entries = read_manifest(manifest)
    line = _find(entries, name, manifest)
    # Utterances shorter than a frame are in the manifest, but not in the dataset.
    index = line - sum(skipped < line for skipped in dataset.skipped_indices)
    item = dataset[index]
    source = item["source"][: int(MAX_SECONDS * SAMPLE_RATE)]
    teacher, before, after = encode_both(run, students, source)
    mask_indices, masked = item.get("masked"), None
    if mask_indices is not None:
        mask_indices = mask_indices[: teacher.frames.frame_lengths[0]]
        with torch.no_grad():
            device = next(students.after.parameters()).device
            mask = torch.from_numpy(mask_indices)[None].to(device)
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
        mask_indices=mask_indices,
    )


def read_phones(manifest: str, line: int, num_frames: int) -> list[tuple[int, int, str]]:
    """Read an utterance's first ``num_frames`` labels from the ``.phn`` next to its manifest (a label a frame, as in
    fairseq), merging equal neighbours; nothing where there is no such file or it does not fit."""
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
    """Read a transcript from a ``.trans.txt`` next to the file, as LibriSpeech has it; empty where there is none."""
    for path in audio.parent.glob("*.trans.txt"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            utterance, _, text = line.partition(" ")
            if utterance == audio.stem:
                return text
    return ""


def _find(entries: list[ManifestEntry], name: str | None, manifest: str) -> int:
    """Return the index of the manifest's entry called ``name``, or of the one nearest to :data:`GOOD_SECONDS`."""
    if name is None:
        return int(np.argmin([abs(entry.num_samples / SAMPLE_RATE - GOOD_SECONDS) for entry in entries]))
    names = [Path(entry.path).stem for entry in entries]
    if Path(name).stem not in names:
        raise StarError(f"--utterance {name}: not in {manifest}; {names[0]} is there, for example")
    return names.index(Path(name).stem)
