"""What a run takes up that was made of another corpus is reported, with figures of its own audio."""

import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from fairseq_star.analysis.units.run import fit_units
from fairseq_star.fairseq_hooks.carried import report_carried
from fairseq_star.fairseq_hooks.epoch_position import ORIGIN
from fairseq_star.losses.units import CentroidUnits
from tests.support import tiny
from tests.support.steps import build

STREAMING = {"chunk_frames": [4, 0], "extractor_mode": "running_norm"}


def started(corpus, teacher_path, criterion=None, model=None, **options):
    """A trainer whose run has begun, and the iterator of its training set."""
    task, student, loss = build(corpus, teacher_path, criterion, model, **options)
    task.load_dataset("train")
    batches = task.get_batch_iterator(task.dataset("train"), max_sentences=4)
    trainer = SimpleNamespace(
        cfg=OmegaConf.create({"dataset": {"train_subset": "train"}}), task=task,
        get_criterion=lambda: loss, get_model=lambda: student,
    )  # fmt: skip
    return trainer, batches


def loud(corpus, folder, gain: float):
    """The corpus of the same names and lengths, louder by a factor."""
    for split in ("train", "valid"):
        files = folder / "audio" / split
        files.mkdir(parents=True)
        for path in (corpus / "audio" / split).glob("*.wav"):
            audio, rate = soundfile.read(path)
            soundfile.write(files / path.name, gain * audio, rate, subtype="FLOAT")
        tiny.write_tsv(folder / f"{split}.tsv", files)
    return folder


@pytest.fixture(scope="module")
def units(corpus, teacher_path, tmp_path_factory):
    pytest.importorskip("sklearn")
    path = tmp_path_factory.mktemp("units") / "units.npz"
    quality = fit_units(str(teacher_path), str(corpus), layer=2, clusters=5, out=str(path))
    return str(path), quality.relative_inertia


def test_centroids_of_another_corpus_are_measured_on_this_one(units, corpus, teacher_path, tmp_path, caplog):
    path, inertia = units
    criterion = {"units": [path], "unit_unmasked_weight": 1.0}
    report_carried(*with_state(None, *started(corpus, teacher_path, criterion)))
    assert "criterion.units" not in caplog.text
    other = tiny.write_corpus(tmp_path / "other", train=20)
    report_carried(*with_state(None, *started(other, teacher_path, criterion)))
    [said] = [line for line in caplog.messages if line.startswith("criterion.units")]
    assert f"{path} was fitted to a corpus of 12 utterances (now 20). On 8 utterances of this run" in said
    assert re.search(r"[1-5] of its 5 units occur, at \d+% of the states' variance", said)
    assert f"({inertia:.0%} on held-out utterances of its own corpus)" in said


def test_the_first_norms_statistics_of_another_corpus_are_compared(corpus, teacher_path, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    trainer, batches = started(corpus, teacher_path, model=STREAMING)
    state = {"train_iterator": {ORIGIN: batches.origin}}
    report_carried(trainer, state, batches)
    report_carried(trainer, None, batches)
    assert "first norm" not in caplog.text
    louder, its_batches = started(loud(corpus, tmp_path / "loud", 10.0), teacher_path, model=STREAMING)
    norm, carried = (one.get_model().feature_extractor.conv_layers[0][2] for one in (louder, trainer))
    norm.mean.copy_(carried.mean)
    norm.variance.copy_(carried.variance)
    before = norm.variance.clone()
    report_carried(louder, state, its_batches)
    [said] = [line for line in caplog.messages if line.startswith("first norm")]
    assert "statistics are of other audio under the same names and lengths" in said
    assert float(re.search(r"audio is ([+-][\d.]+) dB", said)[1]) == pytest.approx(20, abs=1.5)
    assert torch.equal(norm.variance, before), "measured alone, not changed"


def test_relative_inertia_is_the_share_of_variance_that_centroids_leave():
    generator = np.random.default_rng(0)
    centroids = torch.from_numpy(10 * generator.standard_normal((4, 6)).astype(np.float32))
    near = [centroids[:3] + 0.0, centroids[:2] + 0.0]
    assert CentroidUnits(1, centroids).relative_inertia(near) == (pytest.approx(0, abs=1e-6), 3)
    far = torch.from_numpy(generator.standard_normal((50, 6)).astype(np.float32))
    share, used = CentroidUnits(1, far.mean(0, keepdim=True).repeat(2, 1)).relative_inertia([far])
    assert (share, used) == (pytest.approx(1, abs=1e-5), 1)


def with_state(state, trainer, batches):
    return trainer, state, batches
