"""``fairseq-star superb``: what is told, and when; and the demo's corpora through s3prl itself."""

import json
import sys

import numpy as np
import pytest
import soundfile

from fairseq_star.cli import main
from fairseq_star.superb import corpora, toolkit
from manifests.demo import superb as demo
from tests.support import convert_cases


@pytest.fixture
def described(tmp_path):
    """A superb.yaml of a Speech Commands of three files."""
    for name in ("train/yes/a.wav", "train/_background_noise_/n.wav", "test/yes/b.wav"):
        (tmp_path / "sc" / name).parent.mkdir(parents=True)
        soundfile.write(tmp_path / "sc" / name, np.zeros(16_000), 16_000)
    (tmp_path / "superb.yaml").write_text("corpora: {speech_commands: sc}\nsizes: any\n")
    return ["--corpora", str(tmp_path / "superb.yaml"), "--out", str(tmp_path / "out"), "--tasks", "ks"]


@pytest.fixture
def an_environment(tmp_path, monkeypatch):
    """s3prl's environment, without starting it; its package is a folder."""
    (tmp_path / "s3prl").mkdir()
    found = {"versions": {"torch": "0"}, "missing": [], "package": str(tmp_path / "s3prl"), "cuda": False,
             "sox": False}  # fmt: skip
    monkeypatch.setattr(toolkit.Environment, "of", lambda *_: toolkit.Environment(tmp_path / "python", found))


def told(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(["superb", *map(str, arguments)])
    return str(caught.value)


def test_corpora_at_fault_are_all_told_at_once(described):
    said = told("check", *described[:-1], "ks", "sid", "sf")
    assert "voxceleb1 is not in superb.yaml" in said
    assert "snips is not in superb.yaml" in said
    assert said.endswith("2 to fix before anything is trained")


def test_an_upstream_is_named_once(described, an_environment, tmp_path):
    assert "not both" in told(*described)
    assert "not both" in told(tmp_path / "a.pt", "-u", "fbank", *described)
    assert "--upstream-file nowhere: is not there" in told("-u", "wav2vec2_local", "-k", "nowhere", *described)


def test_check_and_plan_tell_and_train_nothing(described, an_environment, capsys, tmp_path):
    main(["superb", "check", *described])
    said = capsys.readouterr()
    assert "speech_commands: train 1, test 1" in said.out
    assert said.err.startswith("ks: libsox is missing (apt-get install libsox-dev)")
    main(["superb", "plan", "-u", "fbank", *described])
    assert "| ks | 200,000 | 6,400,000 | 0.0 | – |" in capsys.readouterr().out
    main(["superb", "-u", "fbank", "--slurm", *described])
    assert "array.sbatch" in capsys.readouterr().out
    assert not (tmp_path / "out" / "experiments").exists()


def test_a_student_of_another_rate_is_told(described, an_environment, tmp_path):
    path = convert_cases.write_checkpoint(tmp_path / "student.pt", **convert_cases.tiny.STUDENT)
    import torch

    state = torch.load(path)
    state["task_state"]["sample_rate"] = 8000
    torch.save(state, path)
    assert "s3prl takes audio of 16000 Hz" in told(path, *described)


def test_the_demos_superb_yaml_is_read(tmp_path):
    import yaml

    (tmp_path / "superb.yaml").write_text(yaml.safe_dump(demo.description(tmp_path)))
    description = corpora.read_description(tmp_path / "superb.yaml")
    assert set(description.places) == set(corpora.CORPORA)
    assert description.settings["asr"]["optimizer.lr"] == 1e-3


@pytest.mark.slow
def test_the_demos_corpora_through_s3prl(tmp_path, capsys):
    """Those tasks that run in the tests' own environment, with the package of s3prl that is on PyPI."""
    pytest.importorskip("espeakng_loader")
    demo.main([str(tmp_path / "corpora")])
    arguments = ["--corpora", str(tmp_path / "corpora" / "superb.yaml"), "--out", str(tmp_path / "out")]
    few = ["--python", sys.executable, "--tasks", "ks", "--set", "ks.runner.total_steps=4", "ks.runner.eval_step=2",
           "ks.runner.save_step=4"]  # fmt: skip
    main(["superb", "-u", "fbank", *arguments, *few])
    result = json.loads((tmp_path / "out" / "superb.json").read_text())
    assert 0 <= result["numbers"]["ks"]["acc"] <= 100
    assert result["failed"] == {}
    assert "| **FBANK** |" in capsys.readouterr().out
