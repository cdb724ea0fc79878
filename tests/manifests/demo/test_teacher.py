"""The committed teacher: small, loadable by stock fairseq, free of paths, and better than chance at phones."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fairseq_star.checkpoint import read_checkpoint
from fairseq_star.errors import StarError
from manifests.demo import teacher as demo_teacher
from manifests.demo import teacher_targets as demo_teacher_targets
from tests.support import ROOT

CHECKPOINT = ROOT / "assets" / "demo_teacher" / "demo_hubert.pt"

# Nothing of this package: what a user of fairseq alone does, with torch's protection told of one class.
STOCK = """
import sys, torch
from fairseq.data.dictionary import Dictionary
from fairseq import checkpoint_utils
torch.serialization.add_safe_globals([Dictionary])
(model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task([sys.argv[1]], strict=True)
assert "fairseq_star" not in sys.modules
x, padding = model.eval().extract_features(torch.randn(1, 16000))
assert x.shape == (1, 49, 256) and x.isfinite().all(), x.shape
print("loaded", type(model).__name__, type(task).__name__, sum(p.numel() for p in model.parameters()))
"""


@pytest.fixture(scope="module")
def state() -> dict:
    return read_checkpoint(str(CHECKPOINT), "test")


def strings(value) -> list[str]:
    if isinstance(value, dict):
        return [text for item in (*value.keys(), *value.values()) for text in strings(item)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def test_size():
    assert CHECKPOINT.stat().st_size < 12_000_000


def test_config_and_contents(state):
    assert state.keys() == {"args", "cfg", "model", "task_state", "optimizer_history", "extra_state"}
    texts = strings({name: part for name, part in state.items() if name not in ("model", "task_state")})
    assert len(texts) > 100
    assert [text for text in texts if text.startswith("/") or "\\" in text or str(Path.home()) in text] == []
    config = OmegaConf.create(state["cfg"])
    assert (config.model._name, config.task._name) == ("hubert", "hubert_pretraining")
    assert (config.task.normalize, config.task.sample_rate, config.model.layer_norm_first) == (False, 16_000, False)
    assert state["optimizer_history"][-1]["num_updates"] >= 1500
    assert all(value.dtype == torch.float16 for value in state["model"].values())
    assert all(value.isfinite().all() for value in state["model"].values())
    assert [len(dictionary) - dictionary.nspecial for dictionary in state["task_state"]["dictionaries"]][1] == 50


def test_stock_fairseq_loads_it_strictly(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", STOCK, CHECKPOINT],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "loaded HubertModel HubertPretrainingTask 5580864" in done.stdout


def test_it_knows_phones_that_random_weights_do_not(tmp_path):
    """The probe of benchmarks/phone_probe.py, small: six speakers to learn from, two others to be tested on."""
    pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed (extra [demo])")
    from benchmarks import phone_probe
    from manifests.demo import corpus as demo_corpus

    corpus = tmp_path / "corpus"
    demo_corpus.main([str(corpus), "--minutes", "2.5", "--train-speakers", "6", "--dev-speakers", "2", "--seed", "7"])
    splits = {split: phone_probe.read_split(corpus, split, 1000) for split in ("train", "valid")}
    model, random_model = phone_probe.load_models(CHECKPOINT)
    (mfcc,) = phone_probe.probe(lambda path: [demo_teacher_targets.mfcc_features(path)], splits)
    trained, untrained = (
        phone_probe.probe(lambda path, of=of: phone_probe.layer_features(of, path)[-1:], splits)
        for of in (model, random_model)
    )
    assert max(trained) > max(untrained) + 0.15
    assert max(trained) > mfcc + 0.05


def test_probe_measures():
    """The linear probe on classes that are, and are not, to be told from the features."""
    from benchmarks import phone_probe

    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 2000)
    features = np.eye(3, 8)[classes] * 4 + rng.standard_normal((2000, 8))
    halves = (features[:1000], classes[:1000]), (features[1000:], classes[1000:])
    assert phone_probe.linear_probe(*halves, 3) > 0.95
    assert phone_probe.linear_probe(halves[0], (features[1000:], rng.permutation(classes[1000:])), 3) < 0.45


def test_targets_fit_the_frames(tmp_path):
    """One label of either stream a frame, and MFCC frames in step with HuBERT's."""
    import soundfile

    for num_samples in (400, 719, 720, 16_000, 23_457):
        soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.1, 0.1, num_samples), 16_000)
        num_frames = demo_teacher_targets.count_frames(num_samples)
        assert num_frames == (num_samples - 80) // 320
        assert demo_teacher_targets.mfcc_features(tmp_path / "a.wav").shape == (num_frames, 39)


def test_export_refuses_other_checkpoints(tmp_path):
    torch.save({"cfg": {"task": {"_name": "translation"}}, "model": {}}, tmp_path / "x.pt")
    with pytest.raises(StarError, match="no checkpoint of fairseq's hubert_pretraining task"):
        demo_teacher.export(tmp_path / "x.pt", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_export_takes_paths_out_and_refuses_those_it_does_not_know(tmp_path, state):
    def with_paths(section: str, option: str) -> Path:
        config = {name: dict(part) if isinstance(part, dict) else part for name, part in state["cfg"].items()}
        config["task"]["data"] = "/home/someone/data"
        config[section][option] = "/home/someone/else"
        torch.save({**state, "cfg": config, "extra_state": {"train_iterator": {"epoch": 1}}}, tmp_path / "in.pt")
        return tmp_path / "in.pt"

    demo_teacher.export(with_paths("checkpoint", "save_dir"), tmp_path / "out.pt")
    assert "/home/someone" not in str(read_checkpoint(str(tmp_path / "out.pt"), "test")["cfg"])
    with pytest.raises(StarError, match="/home/someone/else"):
        demo_teacher.export(with_paths("checkpoint", "restore_file"), tmp_path / "out.pt")
