"""The ablation's command on a tiny student: a row for each method, and finished runs are not done again."""

import json

import numpy as np
import pytest
import soundfile
import yaml

from benchmarks import ablation, ablation_curve, real_speech
from benchmarks.ablation_methods import LOSSES, OBJECTIVES, STAR
from fairseq_star.analysis.probe.labels import read_task
from fairseq_star.criterions.star_tgm import StarTGMConfig, StarTGMCriterion
from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks.resuming import TEACHER
from fairseq_star.losses.centroids import Centroids
from fairseq_star.manifest import read_manifest
from fairseq_star.runtime.names import PHONE, SPEAKER
from tests.support import labelled, runs, tiny
from tests.support.steps import batch_of, build


@pytest.fixture
def tiny_setting(tmp_path, teacher_path) -> list:
    """Options of a labelled corpus and a recipe of seconds."""
    recipe = runs.recipe("demo")
    recipe["model"] |= tiny.STUDENT
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    corpus = labelled.write_labelled(tmp_path / "corpus")
    return ["--data", corpus, "--teacher", teacher_path, "--config", tmp_path / "tiny.yaml"]


def test_methods_are_the_papers_and_the_baseline():
    assert list(LOSSES) == [
        "frame matching", "last-attn", "avg-attn", "layer-wise", "intra-layer", "layer-wise + intra-layer", "all three",
    ]  # fmt: skip
    assert [name for name, method in LOSSES.items() if method.needs_maps] == ["last-attn", "avg-attn", "all three"]
    assert not any(method.needs_maps for method in OBJECTIVES.values())
    assert STAR in OBJECTIVES
    with pytest.raises(StarError, match="must be 1 or more"):
        ablation.main(["--updates", "0"])
    with pytest.raises(StarError, match="name that too in --methods"):
        ablation.main(["--equal-time", "--methods", "layer-wise"])


def test_every_objective_is_one_that_can_be_trained(corpus, teacher_path, tmp_path):
    """With three layers instead of the demo's six."""
    units = tmp_path / "units.npz"
    for name, method in OBJECTIVES.items():
        task, student, _ = build(corpus, teacher_path, **{**method.task, **({"mask_length": 3} if method.task else {})})
        if not units.exists():
            Centroids(np.random.default_rng(0).standard_normal((5, 24)), 2, task.state_dict()[TEACHER]).write(units)
        options = {key: value for key, value in method.criterion.items() if key != "_name"}
        if method.needs_units:
            options["units"] = [str(units)]
        if "frame_layers" in options:
            options |= {"frame_layers": [1, 2, 3], "frame_student_layers": [3, 3, 3]}
        loss, _, _ = StarTGMCriterion(task, StarTGMConfig(**options))(student, batch_of(task, [0, 3]))
        loss.backward()
        assert loss > 0, name


@pytest.mark.slow
def test_a_row_for_each_method_and_no_work_twice(tmp_path, tiny_setting, capsys):
    out = tmp_path / "out"
    arguments = [
        "--out", out, *tiny_setting, "--updates", 2, "--seeds", 1, 2, "--jobs", 1, "--methods",
        "frame matching", "avg-attn", "layer-wise + intra-layer",
    ]  # fmt: skip
    ablation.main([str(argument) for argument in arguments])
    table = capsys.readouterr().out
    result = json.loads((out / "ablation.json").read_text())
    spectra = ["FBANK", "FBANK, not normalized"]
    names = [*spectra, "random init", "frame matching", "avg-attn", "layer-wise + intra-layer", "teacher"]
    assert list(dict.fromkeys(row["features"] for row in result["rows"])) == names
    assert all(f"\n| {name} | " in table for name in names)
    assert all(len(row["seed_accuracies"]) == 2 for row in result["rows"])
    assert {one["other"] for one in result["comparisons"]} == set(names) - {"layer-wise + intra-layer"}
    (recorded,) = out.glob("framematching-1-2/recipe.yaml")
    criterion = yaml.safe_load(recorded.read_text())["criterion"]
    weights = {name: value for name, value in criterion.items() if name.endswith("_weight") and value}
    assert weights == {"frame_mse_weight": 1.0, "frame_masked_weight": 1.0, "frame_unmasked_weight": 1.0}

    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    assert len(files) == 6 * 2 + 1
    ablation.main([str(argument) for argument in arguments])
    assert files == {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    assert capsys.readouterr().out.split("* date")[0] == table.split("* date")[0]


@pytest.mark.slow
def test_objectives_in_noise(tmp_path, tiny_setting, capsys):
    arguments = [
        "--suite", "objectives", "--out", tmp_path / "out", *tiny_setting, "--updates", 2, "--seeds", 1,
        "--methods", "masked STaR", "STaR + units", "--jobs", 1,
        "--noisy", "--snrs", 20, 0,
    ]  # fmt: skip
    ablation.main([str(argument) for argument in arguments])
    table = capsys.readouterr().out
    for name in ("masked STaR", "masked STaR (noisy)", "STaR + units", "STaR + units (noisy)"):
        assert table.count(f"\n| {name} | ") == 3 + (name != "masked STaR"), name
    assert "| phones in noise never trained on | 20 dB | 0 dB |" in table


@pytest.mark.slow
def test_a_curve_of_long_runs(tmp_path, tiny_setting, capsys):
    arguments = [
        "--out", tmp_path / "out", *tiny_setting, "--updates", 6, "--every", 2, "--jobs", 1,
        "--methods", STAR, "masked STaR",
    ]  # fmt: skip
    ablation_curve.main([str(argument) for argument in arguments])
    assert "| method | 2 | 4 | 6 |" in capsys.readouterr().out
    curves = json.loads((tmp_path / "out" / "curve.json").read_text())["curves"]
    assert [point[0] for point in curves[STAR]] == [2, 4, 6]
    assert (tmp_path / "out" / "curve.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_equal_time_is_that_of_star(tmp_path, tiny_setting, capsys, monkeypatch):
    monkeypatch.setattr(ablation, "ALIKE", -1.0)  # not even STaR's own
    arguments = [
        "--suite", "objectives", "--out", tmp_path / "out", *tiny_setting, "--updates", 2, "--seeds", 1,
        "--methods", STAR, "masked STaR", "--jobs", 1, "--equal-time",
    ]  # fmt: skip
    ablation.main([str(argument) for argument in arguments])
    result = json.loads((tmp_path / "out" / "ablation.json").read_text())
    expected = 2 * result["seconds"][STAR][0] / result["seconds"]["masked STaR"][0]
    assert result["updates"]["masked STaR (equal time)"] == round(expected)
    assert result["updates"][STAR + " (equal time)"] == 2
    assert "\n| masked STaR (equal time) | " in capsys.readouterr().out


def test_runs_of_about_star_s_time_are_not_done_again():
    runs = {name: ablation.Run(OBJECTIVES[name], 100) for name in (STAR, "masked STaR", "STaR + units")}
    seconds = {STAR: 50.0, "masked STaR": 52.0, "STaR + units": 62.5}
    done = {(name, 1): ablation.Outcome({}, time) for name, time in seconds.items()}
    more = ablation._of_equal_time(runs, done, [1])
    assert {name: run.updates for name, run in more.items()} == {"STaR + units (equal time)": 80}
    with pytest.raises(StarError, match="whose CPU time nobody kept"):
        ablation._of_equal_time(runs, done | {(STAR, 1): ablation.Outcome({}, 0.0)}, [1])


def test_real_speech_is_divided_by_speaker(tmp_path):
    rng = np.random.default_rng(0)
    for speaker in range(1, 7):
        folder = tmp_path / "LibriSpeech" / "train-clean-100" / str(speaker) / "1"
        folder.mkdir(parents=True)
        soundfile.write(folder / f"{speaker}-1-0000.flac", rng.uniform(-0.1, 0.1, 16_003), 16_000)
    corpus = labelled.write_labelled(tmp_path / "corpus")
    out = tmp_path / "real"
    real_speech.main([str(tmp_path / "LibriSpeech"), "--out", str(out), "--corpus", str(corpus), "--held-out", "4"])
    assert [entry.path.split("/")[1] for entry in read_manifest(out / "train.tsv")[1]] == ["1", "2"]
    geometry = FrameGeometry(400, 320)
    speakers = read_task(out, SPEAKER, geometry)
    assert speakers.classes == ["3", "4", "5", "6"]
    assert [len(part) for part in (speakers.train, speakers.dev, speakers.test)] == [12, 4, 4]
    assert {one.num_samples for one in speakers.utterances} == {3200}
    assert read_task(out, PHONE, geometry).classes == read_task(corpus, PHONE, geometry).classes
    with pytest.raises(StarError, match="no demo corpus"):
        real_speech.main([str(tmp_path / "LibriSpeech"), "--out", str(out), "--corpus", str(tmp_path)])
