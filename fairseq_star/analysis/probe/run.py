"""A whole probe: features of each model, heads for each task and seed, one result."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from omegaconf import OmegaConf

from fairseq_star.analysis.probe.features import (
    EncoderFeatures,
    Extractor,
    FeatureStore,
    SpectralFeatures,
    Transform,
    map_on_cores,
)
from fairseq_star.analysis.probe.head import Trained, train_head
from fairseq_star.analysis.probe.labels import TASKS, TaskData, read_task
from fairseq_star.analysis.probe.result import Bootstrap, Comparison, ProbeResult, ProbeRow, interval
from fairseq_star.analysis.runs import locate
from fairseq_star.analysis.untrained import untrained
from fairseq_star.checkpoint import read_checkpoint
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.formats import hub, load_encoder

FBANK, MFCC, FBANK_RAW = "FBANK", "MFCC", "FBANK, not normalized"
RANDOM, STUDENT, TEACHER = "random init", "student", "teacher"


def run_probe(
    student: str,
    *,
    teacher: str | None = None,
    data: str | os.PathLike | None = None,
    tasks: Sequence[str] = TASKS,
    seeds: Sequence[int] = (0, 1, 2),
    max_utterances: int | None = None,
    device: str | None = None,
    chunk_frames: int | None = None,
) -> ProbeResult:
    """Probe a frozen student's features, compared with FBANK, MFCC, a random-init student and the teacher.

    Args:
        student: checkpoint of a distillation run (or anything else that ``task.teacher`` takes).
        teacher, data: their places, if not those in the run's own config.
        tasks: some of :data:`TASKS`.
        seeds: of the heads; intervals include their spread.
        max_utterances: take at most this many training and test utterances of each task (chosen by hash).
        device: ``cpu`` or ``cuda`` for the features; CUDA where there is one when None.
        chunk_frames: chunk size of a streaming student, 0 for whole utterances; the model's current one when None.

    Raises:
        StarError: labels that do not fit their manifest, an empty split, a checkpoint that cannot be loaded, chunks for
            a student without chunked attention.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not seeds:
        raise StarError("--seeds: none given; give one or more, such as --seeds 0 1 2")
    if max_utterances is not None and max_utterances < 1:
        raise StarError(f"--max-utterances={max_utterances} must be 1 or more")
    teacher, data = _from_run(student, teacher, data)
    located = hub.locate(student, "probe")
    teacher = teacher and hub.locate(teacher, "--teacher").name  # an error here costs no hours on the student
    encoder = _in_chunks(load_encoder(located.path, option="probe"), chunk_frames)
    task_data = [read_task(data, task, encoder.geometry, max_utterances) for task in tasks]

    def extractors():  # one at a time: only one model and its features are in memory
        yield FBANK, SpectralFeatures(FBANK, encoder.geometry)
        yield MFCC, SpectralFeatures(MFCC, encoder.geometry)
        yield FBANK_RAW, SpectralFeatures(FBANK, encoder.geometry, normalize=False)
        random = untrained(encoder.config, normalize=encoder.normalize)
        yield RANDOM, EncoderFeatures(_in_chunks(random, chunk_frames), device)
        yield STUDENT, EncoderFeatures(encoder, device)
        if teacher is not None:
            yield TEACHER, EncoderFeatures(load_encoder(teacher, option="--teacher"), device)

    heads = {name: probe_features(extractor, task_data, seeds, name) for name, extractor in extractors()}
    result = summarize(heads, task_data, seeds)
    result.settings = {"student": os.fspath(located.name), "teacher": teacher, "data": os.fspath(data)}
    if encoder.config.chunk_frames:
        result.settings["chunk_frames"] = encoder.model.chunk_frames
    return result


def _in_chunks(encoder: FrozenEncoder, chunk_frames: int | None) -> FrozenEncoder:
    if chunk_frames is not None:
        encoder.use_chunks(chunk_frames)
    return encoder


def probe_features(
    extract: Extractor,
    task_data: Sequence[TaskData],
    seeds: Sequence[int],
    name: str = "features",
    transform: Transform | None = None,
) -> dict[str, list[Trained]]:
    """Train heads on one kind of features, for each task one a seed; ``transform`` as in :class:`FeatureStore`."""
    store = FeatureStore(extract, task_data, f"features: {name}", transform)

    def heads():
        for task in task_data:
            parts = [store.inputs(task, part) for part in (task.train, task.dev, task.test)]
            yield from ((task, parts, seed) for seed in seeds)

    def train(head) -> tuple[str, Trained]:
        task, parts, seed = head
        return task.task, train_head(*parts, len(task.classes), seed)

    try:
        trained: dict[str, list[Trained]] = {task.task: [] for task in task_data}
        for task, head in map_on_cores(train, heads()):
            trained[task].append(head)
        return trained
    finally:
        store.close()


def summarize(
    heads: dict[str, dict[str, list[Trained]]],
    task_data: Sequence[TaskData],
    seeds: Sequence[int],
    student: str = STUDENT,
) -> ProbeResult:
    """Compute accuracies, comparisons and intervals.

    Args:
        heads: by features, then task; one for each seed.
        student: the features that are compared with all others.
    """
    result = ProbeResult([], [], {}, {}, {}, {}, list(seeds), student=student)
    for data in task_data:
        task = data.task
        clusters = [one.cluster for one in data.test for _ in one.labels]
        bootstrap = Bootstrap(clusters, len(seeds))
        correct = {name: np.stack([head.correct.numpy() for head in of[task]]) for name, of in heads.items()}
        draws = {name: bootstrap.draws(of_one) for name, of_one in correct.items()}
        mean = {name: float(of_one.mean()) for name, of_one in correct.items()}
        result.num_classes[task], result.num_test[task] = len(data.classes), len(clusters)
        result.num_clusters[task] = bootstrap.num_clusters
        for name, of in heads.items():
            weights = torch.stack([head.layer_weights for head in of[task]])
            result.rows.append(
                ProbeRow(
                    task=task,
                    features=name,
                    accuracy=mean[name],
                    low=interval(draws[name])[0],
                    high=interval(draws[name])[1],
                    seed_accuracies=correct[name].mean(1).tolist(),
                    layer_weights=weights.mean(0).tolist(),
                    layer_weights_deviation=weights.std(0, correction=0).tolist(),
                )
            )
        for other in heads:
            if other != student:
                difference = interval(draws[student] - draws[other])
                result.comparisons.append(Comparison(task, other, mean[student] - mean[other], *difference))
        if {RANDOM, TEACHER} <= heads.keys():
            margins = draws[TEACHER] - draws[RANDOM]
            if margins.min() > 0:  # else there is no clear margin
                kept = (mean[student] - mean[RANDOM]) / (mean[TEACHER] - mean[RANDOM])
                result.margin_kept[task] = (kept, *interval((draws[student] - draws[RANDOM]) / margins))
    return result


def _from_run(
    student: str, teacher: str | None, data: str | os.PathLike | None
) -> tuple[str | None, str | os.PathLike]:
    """Fill in ``teacher`` and ``data`` from the config of the run that wrote ``student``."""
    if (teacher is None or data is None) and os.path.isfile(student):
        cfg = OmegaConf.create(read_checkpoint(student, "probe").get("cfg") or {})
        if OmegaConf.select(cfg, "task._name") == "star_distillation":
            data = data or locate(student, cfg, "data", "probe")
            teacher = teacher or locate(student, cfg, "teacher", "probe")
    if not data:
        raise StarError("--data: name the folder of the labelled manifests; the checkpoint names none")
    return teacher, data
