"""A sweep: what is done is not done again, whatever ends it; a failure does not stop the rest. s3prl is
``tests/support/fake_s3prl.py``."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fairseq_star.errors import StarError
from fairseq_star.superb import corpora, experiment, plan, sweep, table, toolkit
from tests.support import ROOT

FAKE = ROOT / "tests" / "support" / "fake_s3prl.py"
PRINTED = Path(__file__).with_name("printed")
ENVIRONMENT = toolkit.Environment(Path(sys.executable), {"versions": {"torch": "0"}, "package": None, "cuda": False})


class FakeToolkit(toolkit.Toolkit):
    version = "fake"

    def command(self, *arguments):
        return [sys.executable, str(FAKE), str(PRINTED), *arguments]

    def process_options(self):
        return {}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A sweep over tasks in a folder that stays the same."""
    monkeypatch.setattr(sweep, "look_into", lambda *_: {"layers": 1})
    monkeypatch.setattr(sweep, "POLL", 0.01)

    def make(*tasks, name="fbank", **options):
        tools = FakeToolkit(ENVIRONMENT, tmp_path, tmp_path / "code")
        (tools.package / "downstream" / "emotion" / "meta_data").mkdir(parents=True, exist_ok=True)  # as a clone has
        folder = {"": tmp_path}
        places = dict.fromkeys(("speech_commands", "fluent_speech_commands", "iemocap", "voxceleb1"), folder)
        few = {"runner.total_steps": 2, "runner.save_step": 1}
        described = corpora.Description(places, settings={corpora.ALL: few})
        return sweep.Sweep(tmp_path, toolkit.named(name, None), tools, described, list(tasks), **options)

    return make


def calls(made, name="ks"):
    return (made.out / "experiments" / name / "calls").read_text().split("\n")[:-1]


def test_a_sweep_ends_in_a_table_and_does_nothing_twice(make):
    made = make("ks", "ic")
    results, failed = made.perform()
    assert not failed
    assert {result["task"]: result["metrics"]["acc"] for result in results} == pytest.approx(
        {"ks": 12.5, "ic": 10.41667}
    )
    assert calls(made) == ["train", "evaluate -e dev-best.ckpt"]
    again, _ = make("ks", "ic").perform()
    assert again == results
    assert calls(made) == ["train", "evaluate -e dev-best.ckpt"]

    outcome = table.Outcome("FBANK", {}, results, {"er-fold1": "why"}, {}, False)
    text = outcome.to_markdown()
    assert "| **FBANK** | – | – | – | – | 12.50 |" in text
    assert "`er-fold1`: why" in text
    assert "not the published ones" in text
    assert "`ks.runner.total_steps`: 200000 → 2" in text
    written = table.write(outcome, made.out)
    assert json.loads(written[1].read_text())["numbers"] == {
        "ks": {"acc": 12.5}, "ic": {"acc": pytest.approx(10.41667)},
    }  # fmt: skip


@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_a_killed_sweep_goes_on_and_ends_in_the_same(make, monkeypatch, tmp_path, phase):
    expected, _ = make("ks").perform()
    (tmp_path / "experiments").rename(tmp_path / "whole")

    monkeypatch.setenv("FAKE_HANGS", phase)
    process = get_context("fork").Process(target=make("ks").perform)
    process.start()
    hanging = tmp_path / "experiments" / "ks" / "hanging"
    deadline = time.monotonic() + 30
    while not hanging.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    monkeypatch.delenv("FAKE_HANGS")

    got, failed = make("ks").perform()
    assert not failed
    without = [{key: value for key, value in one[0].items() if key != "seconds"} for one in (expected, got)]
    assert without[0] == without[1]
    resumed = "train -e states-1.ckpt" if phase == "train" else "evaluate -e dev-best.ckpt"
    assert resumed in calls(make("ks"))
    assert calls(make("ks")).count("train") == 1


def test_a_checkpoint_cut_short_is_passed_over(make, tmp_path, capsys):
    made = make("ks")
    [run] = [made._run(one, 1, None) for one in made.experiments()]
    run.expdir.mkdir(parents=True)
    for name, content in (("task", "ks"), ("steps", "2"), ("states-2.ckpt", "PK\3\4 cut short")):
        (run.expdir / name).write_text(content)
    subprocess.run([sys.executable, "-c", "import sys, zipfile; zipfile.ZipFile(sys.argv[1], 'w').writestr('a', 'b')",
                    run.expdir / "states-1.ckpt"], check=True)  # fmt: skip
    made.perform()
    assert calls(made)[0] == "train -e states-1.ckpt"
    assert "states-2.ckpt was cut short" in capsys.readouterr().out


def test_a_failure_does_not_stop_the_rest_and_is_tried_again(make, monkeypatch):
    monkeypatch.setenv("FAKE_FAILS", "ks")
    results, failed = make("ks", "ic").perform()
    assert [result["task"] for result in results] == ["ic"]
    assert "train ended with status 1: RuntimeError: ks is told to fail" in failed["ks"]
    monkeypatch.delenv("FAKE_FAILS")
    results, failed = make("ks", "ic").perform()
    assert [result["task"] for result in results] == ["ks", "ic"]
    assert not failed


def test_another_process_is_left_alone(make):
    made = make("ks", "ic")
    folder = made.out / "experiments" / "ks"
    folder.mkdir(parents=True)
    with experiment._alone(folder):
        results, failed = made.perform()
    assert failed == {"ks": "another process is running it"}
    assert [result["task"] for result in results] == ["ic"]


def test_a_program_ends_with_what_started_it(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import os, sys, time\nopen(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    tied = toolkit.PROGRAMS / "end_with_parent.py"
    starting = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, sys.argv[1], str(os.getpid()), *sys.argv[2:]])\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", starting, tied, program, tmp_path / "pid"])
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    child = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    late = subprocess.run(
        [sys.executable, tied, "1", program, tmp_path / "late"], capture_output=True, text=True, check=False
    )
    assert "process 1, which started this, has ended" in late.stderr
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize("change", [{"seed": 1}, {"name": "mfcc"}, {"changes": {"ks": {"optimizer.lr": 1.0}}}])
def test_results_of_something_else_are_not_taken(make, change):
    make("ks").perform()
    _, failed = make("ks", **change).perform()
    assert "was begun with" in failed["ks"]
    results, failed = make("ks", **change).results()
    assert results == []
    assert "was begun with" in failed["ks"]
    assert calls(make("ks")) == ["train", "evaluate -e dev-best.ckpt"]


def test_folds_are_a_mean_once_all_are_there(make):
    results, _ = make("er").perform()
    assert len(results) == 5
    assert sweep.task_numbers(results) == {"er": {"acc": 25.0}}
    assert sweep.task_numbers(results[:4]) == {}
    only, _ = make("er", only="er-fold3").perform()
    assert only == [results[2]]
    with pytest.raises(StarError, match="these are the experiments: er-fold1"):
        make("er", only="er-fold6").perform()


def test_rates_are_chosen_on_dev_and_one_is_evaluated(make):
    made = make("ks", rates=(1e-3, 1e-4))
    [result], failed = made.perform()
    assert not failed
    assert result["experiment"] == "ks-lr1e-03"
    assert "learning rate 1e-03 of these" in result["notes"][0]
    assert calls(made, "ks-lr1e-04") == ["train"]
    assert "experiments=(ks)" in plan.write_array(made, ["fairseq-star"]).read_text()
    assert make("ks", rates=(1e-3, 1e-4), only="ks").perform() == ([result], {})


def test_a_job_array_has_an_index_an_experiment(make):
    made = make("ks", "er")
    text = plan.write_array(made, ["fairseq-star", "superb", "a student.pt"]).read_text()
    assert "--array=0-5" in text
    assert "experiments=(ks er-fold1 er-fold2 er-fold3 er-fold4 er-fold5)" in text
    assert "fairseq-star superb 'a student.pt' --only \"${experiments[$SLURM_ARRAY_TASK_ID]}\"" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_no_room_and_no_list_are_told_before_anything_starts(make, monkeypatch, tmp_path):
    with pytest.raises(StarError, match=r"sid: .*veri_test_class\.txt is not there; s3prl's clone has it"):
        make("sid").check()
    made = make("ks")
    with pytest.raises(StarError, match=r"ks: .*train is not there; correct superb\.yaml"):
        made.check()
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    made.check()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1})())
    with pytest.raises(StarError, match="checkpoints and stored features take about"):
        made.check()


def test_an_environment_at_fault_is_told(tmp_path):
    from fairseq_star.superb.tasks import TASKS

    with pytest.raises(StarError, match=r"is not there; make it with `make superb-env`"):
        toolkit.Environment.of(tmp_path / "python", [TASKS["ks"]])
    with pytest.raises(StarError, match=r"has no s3prl/run_downstream\.py"):
        toolkit.source_package(tmp_path, ENVIRONMENT)
    with pytest.raises(StarError, match="has no s3prl; give --s3prl CLONE"):
        toolkit.source_package(None, ENVIRONMENT)
    silly = tmp_path / "silly"
    silly.write_text("#!/bin/sh\necho 'ModuleNotFoundError: no torch' >&2\nexit 1\n")
    silly.chmod(0o755)
    with pytest.raises(StarError, match=r"cannot run s3prl .*no torch"):
        toolkit.Environment.of(silly, [TASKS["ks"]])


def test_a_sweep_with_stored_features_says_so_and_is_another_one(make):
    results, failed = make("ks").perform()
    assert not failed
    chosen = experiment.Features(Path("features"), 10)
    _, failed = make("ks", features=chosen).perform()
    assert "was begun with upstream" in failed["ks"]
    made = make("ic", features=chosen)
    (result,), failed = made.perform()
    assert not failed
    assert any(experiment.ALONE in note for note in result["notes"])
    described = json.loads((made.out / "experiments" / "ic" / "experiment.json").read_text())
    assert described["upstream"][-1] == experiment.ALONE
    assert results[0]["features"] == {}


def test_the_features_of_a_corpus_are_estimated(make, monkeypatch, tmp_path):
    """Eleven seconds in two parts, in float16: 2 bytes x 3 states x 8 channels x 50 frames a second."""
    shape = {"layers": 3, "width": 8, "downsample_rate": 320}
    monkeypatch.setattr(sweep, "look_into", lambda *_: shape)
    for name, seconds in (("train/a/1.wav", 4), ("train/a/2.wav", 6), ("test/b/1.wav", 1)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name, np.zeros(seconds * 16_000), 16_000)
    assert make("ks").feature_bytes() == 11 * 50 * 3 * 8 * 2
