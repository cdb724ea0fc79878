"""Losses of a student on a manifest, before and after training."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from fairseq import utils
from tqdm import tqdm

from fairseq_star.analysis.runs import Run, load_run
from fairseq_star.losses.terms import MEANINGS


@dataclass
class Evaluation:
    """Mean losses over the utterances of a manifest, of the student before and after training."""

    checkpoint: str
    num_updates: int
    teacher_parameters: int
    student_parameters: int
    num_utterances: int
    before: dict[str, float]
    after: dict[str, float]

    def __str__(self) -> str:
        lines = [
            f"teacher     {self.teacher_parameters:>12,} parameters",
            f"student     {self.student_parameters:>12,} parameters "
            f"({self.student_parameters / self.teacher_parameters:.1%} of the teacher's)",
            f"checkpoint  {self.checkpoint} ({self.num_updates:,} updates)",
            "",
            f"mean over {self.num_utterances} utterances   before training    after",
        ]
        for term, after in self.after.items():
            before = self.before[term]
            lines.append(f"{term:<26}{before:>18.4f}{after:>12.4f}   ({after / before:.1%})" if before else term)
        return "\n".join(lines)


def evaluate(
    checkpoint: str,
    *,
    split: str = "valid",
    chunk_frames: int | None = None,
    **places: str | Sequence[str] | None,
) -> Evaluation:
    """Measure a student checkpoint with the criterion of its training.

    The student before training is rebuilt from the run's own seed and config, as fairseq built it.

    Args:
        checkpoint: written by a ``star_distillation`` run.
        split: manifest to use.
        chunk_frames: chunk size of a streaming student, 0 for whole utterances; the model's current one when None.
        places: of the run's files, as :class:`fairseq_star.analysis.runs.Places` has them.

    Raises:
        StarError: the checkpoint cannot be read or is not one of a distillation run, or chunks for a student without
            chunked attention.
    """
    run = load_run(checkpoint, option="evaluate", **places)
    if chunk_frames is not None:
        run.model.use_chunks(chunk_frames)
    run.task.load_dataset(split)
    before = _mean_losses(run, split, "before")
    run.load_trained()
    after = _mean_losses(run, split, "after")
    return Evaluation(
        checkpoint=run.checkpoint,
        num_updates=run.num_updates,
        teacher_parameters=run.task.teacher.num_parameters,
        student_parameters=sum(parameter.numel() for parameter in run.model.parameters()),
        num_utterances=len(run.task.dataset(split)),
        before=before,
        after=after,
    )


def _mean_losses(run: Run, split: str, description: str) -> dict[str, float]:
    task, model, cfg = run.task, run.model, run.cfg
    batches = task.get_batch_iterator(
        task.dataset(split),
        max_tokens=cfg.dataset.max_tokens_valid,
        max_sentences=cfg.dataset.batch_size_valid,
        seed=cfg.common.seed,
    ).next_epoch_itr(shuffle=False, set_dataset_epoch=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    totals, utterances = {}, 0
    for batch in tqdm(batches, desc=f"{split}, {description} training", leave=False, disable=None):
        batch = utils.move_to_cuda(batch) if device.type == "cuda" else batch
        _, sample_size, logged = task.valid_step(batch, model, run.criterion)
        utterances += sample_size
        for term in [term for term in MEANINGS if term in logged]:
            totals[term] = totals.get(term, 0.0) + float(logged[term])
    return {term: total / utterances for term, total in totals.items()}
