"""Faults planted in tiny runs of fairseq's own trainer, and healthy runs beside them."""

import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from fairseq_star.analysis.doctor.doctor import diagnose
from tests.support import runs, tiny
from tests.support.runs import TRAIN, hydra_arguments

LENGTH = [
    "optimization.max_update=60", "lr_scheduler.warmup_updates=6", "optimization.lr=[0.01]",
    "dataset.validate_interval_updates=20", "checkpoint.save_interval_updates=30",
]  # fmt: skip
# A fifth of a second for each utterance, as from a disk that is far too slow.
SLOW_DISK = """
import time
from fairseq.data import FileAudioDataset
read = FileAudioDataset.__getitem__
FileAudioDataset.__getitem__ = lambda self, index: (time.sleep(0.2), read(self, index))[1]
"""
MASKED = ["task.mask_prob=0.5", "task.mask_length=3"]
HEALTHY = {
    "masked, units": [
        *MASKED, "criterion.units=[head]", "criterion.unit_weight=50", "criterion.unit_unmasked_weight=5",
        "criterion.unit_dim=8",
    ],
    "frames": [
        "criterion.layerwise_weight=0", "criterion.intra_layer_weight=0", "criterion.frame_mse_weight=1",
        "criterion.frame_cosine_weight=0.5",
    ],
    "sliced": ["model.init=sliced", "model.target_params=15000", "optimization.lr=[0.003]"],
    "wide": ["model.encoder_embed_dim=32", "model.encoder_ffn_embed_dim=64"],
    "masked": MASKED,
    "attention maps": ["criterion.avg_attn_weight=100", "criterion.last_attn_weight=100"],
    "l1": ["criterion.distance=l1"],
    "half the learning rate": ["optimization.lr=[0.005]"],
    "reimplementation": ["criterion.layer_convention=reimplementation", "optimization.clip_norm=0.0"],
    "two batches an update": ["dataset.batch_size=2", "optimization.update_freq=[2]"],
    "streaming": ["model.chunk_frames=[16]", "model.left_context_frames=8", "model.extractor_mode=running_norm"],
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"), train=24, valid=4)


def trained(folder: Path, data: Path, teacher: Path, *overrides: str, plant: str = "") -> Path:
    """A run's folder with its log; ``plant`` is Python that runs before the trainer."""
    arguments = hydra_arguments(data, teacher, folder, *LENGTH, *overrides)
    arguments[2] = plant + TRAIN
    done = runs.run(arguments)
    assert done.returncode == 0, done.stderr
    (folder / "train.log").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def healthy(data, teacher_path, tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "healthy", data, teacher_path)


def names(folder: Path, **options) -> list[str]:
    return [finding.name for finding in diagnose(folder, **options).findings]


def test_a_healthy_run(healthy):
    diagnosis = diagnose(healthy, deep=True)
    assert diagnosis.findings == []
    assert diagnosis.state == "finished after update 60 of 60"
    assert "padding" in diagnosis.figures[0]
    assert "waiting for data" in diagnosis.figures[0]
    assert "distance of the Gram matrices" in diagnosis.figures[-1]


@pytest.mark.parametrize("name", [name if number < 3 else pytest.param(name, marks=pytest.mark.slow)
                                  for number, name in enumerate(HEALTHY)])  # fmt: skip
def test_other_healthy_runs(name, data, teacher_path, tmp_path):
    folder = trained(tmp_path / "run", data, teacher_path, *HEALTHY[name])
    assert names(folder, deep=True) == []


def test_thirty_times_the_learning_rate(healthy, data, teacher_path, tmp_path):
    folder = trained(tmp_path / "run", data, teacher_path, "optimization.lr=[0.3]")
    assert "collapsed" in names(folder)
    assert "layer-without-rank" in names(folder, deep=True)


def test_a_starved_loader(data, teacher_path, tmp_path):
    folder = trained(tmp_path / "run", data, teacher_path, "optimization.max_update=10", plant=SLOW_DISK)
    assert names(folder) == ["waits-for-data"]


def test_a_schedule_that_ended_early(data, teacher_path, tmp_path):
    folder = trained(tmp_path / "run", data, teacher_path, "optimization.max_epoch=3")
    [finding] = diagnose(folder).findings
    assert finding.name == "ended-early"
    assert "after update 18 of 60" in finding.sentence
    assert "leave out optimization.max_epoch=3" in finding.mend


def test_a_running_run_and_a_dead_one(data, teacher_path, tmp_path):
    folder = tmp_path / "run"
    arguments = [*hydra_arguments(data, teacher_path, folder, *LENGTH), "optimization.max_update=4000"]
    process = runs.start(arguments)
    with open(tmp_path / "lines", "w") as lines:
        for line in process.stdout:
            lines.write(line)
            if "num_updates=12," in line:
                break
    shutil.copy(tmp_path / "lines", folder / "train.log")
    diagnosis = diagnose(folder)
    assert diagnosis.state == "running, update 12 of 4,000"
    assert diagnosis.findings == []
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    process.stderr.close()
    [finding] = diagnose(folder).findings
    assert finding.name == "ended-early"
    assert "the same command again" in finding.mend


def test_half_the_data_silent(data, teacher_path, tmp_path):
    silent = shutil.copytree(data, tmp_path / "silent")
    for number, path in enumerate(sorted((silent / "audio" / "train").glob("*.wav"))):
        if number % 2:
            soundfile.write(path, np.zeros(soundfile.info(path).frames), 16_000)
    text = (silent / "train.tsv").read_text()
    (silent / "train.tsv").write_text(text.replace(str(data), str(silent)))
    folder = trained(tmp_path / "run", silent, teacher_path, "optimization.max_update=12")
    found = {finding.name: finding for finding in diagnose(folder, deep=True).findings}
    assert "12 of 24 utterances are silent" in found["silent-utterances"].sentence
    assert ".wav" in found["silent-utterances"].sentence


def planted(healthy: Path, folder: Path, change) -> Path:
    """A copy of a run whose second layer ``change`` has edited."""
    shutil.copytree(healthy, folder)
    state = runs.saved(folder / "checkpoint_last.pt")
    change(
        {key.removeprefix("encoder.layers.1."): value for key, value in state["model"].items() if ".layers.1." in key}
    )
    torch.save(state, folder / "checkpoint_last.pt")
    return folder


def test_a_dead_layer(healthy, tmp_path):
    """All channels constant; half of them; the layer's input handed on."""

    def dead(layer: dict) -> None:
        layer["final_layer_norm.weight"].zero_()

    def channels(layer: dict) -> None:
        layer["final_layer_norm.weight"][:8] = 0

    def idle(layer: dict) -> None:
        for name in ("self_attn.out_proj", "fc2"):
            layer[f"{name}.weight"].zero_()
            layer[f"{name}.bias"].zero_()
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            layer[f"{name}.weight"].fill_(1)
            layer[f"{name}.bias"].zero_()

    for change, name in ((dead, "layer-without-rank"), (channels, "dead-channels"), (idle, "layer-passes-on")):
        found = diagnose(planted(healthy, tmp_path / name, change), deep=True).findings
        assert any(finding.name == name and "layer 2 of the student" in finding.sentence for finding in found), found


@pytest.mark.parametrize("normalize", [False, True])
def test_a_teacher_of_the_other_normalization(normalize, data, tmp_path):
    """A front end of layer norms, its checkpoint with and without what such models were trained with."""
    model = {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True}
    teacher = tiny.write_teacher(tmp_path / "teacher.pt", {"normalize": normalize}, **model)
    folder = trained(tmp_path / "run", data, teacher, "optimization.max_update=8")
    assert names(folder, deep=True) == ([] if normalize else ["teacher-not-normalized"])
    warned = "its checkpoint says normalize=false" in (folder / "train.log").read_text()
    assert warned is not normalize


def test_the_command_in_a_process(healthy):
    done = runs.run([sys.executable, "-m", "fairseq_star.cli", "doctor", str(healthy)], preloaded=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "no findings")
