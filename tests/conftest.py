"""Fixtures: a tiny teacher, a tiny corpus, and fairseq's own trainer run on them in a process of its own."""

import subprocess
from pathlib import Path

import hypothesis
import pytest
import torch
from fairseq.logging import metrics

from fairseq_star.runtime.torchaudio_import import import_torchaudio
from tests.support import tiny
from tests.support.runs import hydra_arguments, run

import_torchaudio()  # before any test imports it by itself
# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")


@pytest.fixture(autouse=True)
def no_meters_of_others():
    """fairseq keeps its named meters ("train", "valid") for the whole process: a test begins without another's."""
    metrics.reset()


@pytest.fixture(scope="session")
def teacher_path(tmp_path_factory) -> Path:
    return tiny.write_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pt")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def train(corpus, teacher_path, tmp_path):
    """Train a tiny student with ``fairseq-hydra-train``; returns the finished process."""

    def train(*overrides: str, save_dir: Path = tmp_path / "run", **files: Path) -> subprocess.CompletedProcess:
        data, teacher = files.get("data", corpus), files.get("teacher", teacher_path)
        return run(hydra_arguments(data, teacher, save_dir, *overrides))

    return train


@pytest.fixture
def without_onednn(monkeypatch):
    """On processors with AMX oneDNN's bfloat16 convolution is wrong, by 100 % (torch 2.11), for groups of an even
    number of channels below 16. These small models have such groups, no published one does."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


@pytest.fixture(scope="session")
def uneven(tmp_path_factory) -> Path:
    return tiny.write_corpus(tmp_path_factory.mktemp("uneven"), train=13, valid=3)
