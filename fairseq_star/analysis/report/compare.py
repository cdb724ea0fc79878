"""How alike teacher and student are, layer by layer: linear CKA, and how far their temporal Gram matrices lie apart.

Shapes: n frames, D_i widths, L_t and L_s layers of teacher and student, T frames of one utterance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fairseq_star.data.dataset import DistillationDataset
from fairseq_star.encoder.modules import Encoding
from fairseq_star.plots.matrices import tgm

if TYPE_CHECKING:
    from fairseq_star.analysis.runs import Run

MAX_FRAMES = 4000
"""Frames that CKA is taken over: 80 s of speech. Well above the widths, below which CKA is too high."""


@dataclass
class Students:
    """The untrained and the trained student of a run, in eval mode."""

    before: nn.Module
    after: nn.Module

    @classmethod
    def of(cls, run: "Run", device: str) -> "Students":
        """Both students of ``run``, on ``device``; the run's own model becomes the trained one."""
        before = run.task.build_model(run.cfg.model, from_checkpoint=True)  # the teacher stays as it is
        before.load_state_dict(run.model.state_dict())
        run.load_trained()
        return cls(before.to(device).eval(), run.model.to(device).eval())


@dataclass
class Similarity:
    """Student against teacher, as a mean over some utterances; ``before`` is of the untrained student."""

    num_utterances: int
    num_frames: int
    teacher_layers: list[int]  # 1-based, the one that each student layer learned from
    cka_before: np.ndarray  # (L_t + 1) x (L_s + 1); row and column 0 are the inputs of the first layers
    cka: np.ndarray
    tgm_error_before: np.ndarray  # L_s, relative: see `tgm_error`
    tgm_error: np.ndarray

    def matched(self, cka: np.ndarray) -> np.ndarray:
        """L_s values: each student layer against the teacher layer it learned from."""
        return np.array([cka[layer, number] for number, layer in enumerate(self.teacher_layers, start=1)])


def linear_cka(first: Sequence[Tensor], second: Sequence[Tensor]) -> np.ndarray:
    """Linear centred kernel alignment of every pair of representations (Kornblith et al., ICML 2019, section 3).

        CKA(X, Y) = ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F),   columns of X and Y centred

    1 where the two differ by a rotation and a scale alone, near 0 where they are unrelated and n is far above D.

    Args:
        first, second: n x D_i each, the same n frames throughout.

    Returns:
        len(first) x len(second), in 0 .. 1; 0 for a representation that is constant.
    """

    def unit(states: Tensor) -> Tensor:
        centred = states.double() - states.double().mean(0)
        norm = torch.linalg.matrix_norm(centred.T @ centred).sqrt()
        return centred / norm if norm > 0 else centred

    columns = [unit(states) for states in second]
    rows = (unit(states) for states in first)
    return np.array([[float(torch.linalg.matrix_norm(column.T @ row) ** 2) for column in columns] for row in rows])


def tgm_error(teacher: Tensor, student: Tensor) -> float:
    """||G_t - G_s||_F / ||G_t||_F of two temporal Gram matrices: 0 where they agree, about 1 for a student that says
    nothing. The root of the layer-wise loss, but free of the teacher's scale, so that layers can be compared."""
    return float(torch.linalg.matrix_norm(teacher - student) / torch.linalg.matrix_norm(teacher))


@torch.no_grad()
def encode_both(run: "Run", students: Students, source: Tensor) -> tuple[Encoding, Encoding, Encoding]:
    """Teacher, untrained and trained student over one utterance's samples (1-dimensional), without padding."""
    source = source[None].to(next(students.after.parameters()).device)
    teacher = run.task.provider.encode({"net_input": {"source": source}, "num_samples": [source.size(1)]})
    return teacher, students.before(source, frames=teacher.frames), students.after(source, frames=teacher.frames)


def compare(run: "Run", students: Students, dataset: DistillationDataset, max_frames: int = MAX_FRAMES) -> Similarity:
    """Compare over utterances of ``dataset``, picked at random but always the same, up to ``max_frames``."""
    matched = list(run.criterion.teacher_layers)
    states: tuple[list, list, list] = ([], [], [])  # teacher, before, after; of each utterance its L + 1 states, T x D
    errors = []
    num_frames = 0
    order = np.random.default_rng(0).permutation(len(dataset))
    with tqdm(total=max_frames, desc="comparing teacher and student", unit="frame", disable=None) as progress:
        for index in order:
            encodings = encode_both(run, students, dataset[int(index)]["source"])
            for kept, encoding in zip(states, encodings, strict=True):
                kept.append([state[0].float().cpu() for state in encoding.hidden_states])
            teacher, *both = (kept[-1] for kept in states)
            grams = [tgm(teacher[layer]) for layer in matched]
            errors.append(
                [[tgm_error(gram, tgm(student[n])) for n, gram in enumerate(grams, start=1)] for student in both]
            )
            num_frames += len(teacher[0])
            progress.update(len(teacher[0]))
            if num_frames >= max_frames:
                break
    teacher, before, after = ([torch.cat(layer)[:max_frames] for layer in zip(*kept, strict=True)] for kept in states)
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
