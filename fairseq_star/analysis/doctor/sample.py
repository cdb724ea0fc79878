"""A few utterances of the training set, their levels and losses, and what teacher and student make of them."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fairseq_star.analysis.runs import Run
from fairseq_star.analysis.similarity import tgm_error
from fairseq_star.audio.file import open_audio
from fairseq_star.errors import StarError
from fairseq_star.plots.matrices import tgm

UTTERANCES = 32
FRAMES = 4000  # whose states are compared, 80 s
FULL = 0.999  # amplitude of full scale


@dataclass(frozen=True)
class Utterance:
    """An utterance of the training set: its loss by itself, and its level."""

    path: str
    loss: float
    decibels: float  # root mean square, of full scale
    peak: float
    clipped: float  # share of samples at full scale


def level(path: str) -> tuple[float, float, float]:
    """Measure a file: root mean square in dB of full scale, highest amplitude, share of samples at full scale."""
    with open_audio(path) as audio:
        samples = np.abs(audio.read(dtype="float32", always_2d=True))
    power = float(np.square(samples, dtype=np.float64).mean())
    return 10 * math.log10(max(power, 1e-20)), float(samples.max()), float((samples >= FULL).mean())


@dataclass
class Sample:
    """Utterances drawn from the training set, and what teacher and trained student make of them.

    Attributes:
        run: the run, its trained student in eval mode.
        teacher, student: L+1 states each, n frames x D; of the teacher the layers that the student's learn from.
        trained_loss: what training logged last; None where it logged nothing.
        errors: utterances x L, distance of the student's Gram matrix from the teacher's, relative to the latter.
    """

    run: Run
    trained_loss: float | None = None
    utterances: list[Utterance] = field(default_factory=list)
    teacher: list[Tensor] = field(default_factory=list)
    student: list[Tensor] = field(default_factory=list)
    errors: list[list[float]] = field(default_factory=list)


@torch.no_grad()
def draw_sample(run: Run, trained_loss: float | None) -> Sample:
    """Encode :data:`UTTERANCES` drawn at random, the same ones each time.

    Raises:
        StarError: none of them can be read.
    """
    run.task.cfg.skip_audio_check = True  # the run itself has looked at every file
    split = run.cfg.dataset.train_subset
    run.task.load_dataset(split)
    dataset = run.task.dataset(split)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, criterion = run.model.to(device).eval(), run.criterion.to(device).eval()
    layers = (0, *criterion.teacher_layers)
    sample, states, frames = Sample(run, trained_loss), ([], []), 0
    order = np.random.default_rng(0).permutation(len(dataset))[:UTTERANCES]
    for index in tqdm(order, desc="utterances through teacher and student", leave=False, disable=None):
        item = dataset[int(index)]
        if item["source"] is None:
            continue  # the run's log names it
        batch = dataset.collater([item])
        batch["net_input"] = {name: value.to(device) for name, value in batch["net_input"].items()}
        loss = float(criterion(model, batch)[0])
        sample.utterances.append(Utterance(item["path"], loss, *level(item["path"])))
        if frames >= FRAMES:
            continue
        source = item["source"][None].to(device)
        teacher = run.task.provider.encode({"net_input": {"source": source}, "num_samples": [source.size(1)]})
        student = model(source, frames=teacher.frames).hidden_states
        pair = (
            [teacher.hidden_states[layer][0].float().cpu() for layer in layers],
            [one[0].float().cpu() for one in student],
        )
        sample.errors.append([tgm_error(tgm(of), tgm(its)) for of, its in zip(*pair, strict=True)][1:])
        for collected, of_one in zip(states, pair, strict=True):
            collected.append(of_one)
        frames += len(pair[0][0])
    if not sample.errors:
        raise StarError(f"doctor: no utterance of {split}.tsv could be read; name the manifests' folder with --data")
    sample.teacher, sample.student = (
        [torch.cat(state) for state in zip(*collected, strict=True)] for collected in states
    )
    return sample
