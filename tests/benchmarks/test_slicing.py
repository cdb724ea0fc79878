"""The benchmark of slicing: goals and subsets, and its suites on a tiny student."""

import json
from types import SimpleNamespace

import pytest
import yaml

from benchmarks import slicing
from benchmarks.slicing_arms import RANDOM, SLICED, STEPS, write_subset
from fairseq_star.errors import StarError
from fairseq_star.manifest import read_manifest
from fairseq_star.runtime.names import KEYWORD, PHONE
from tests.support import labelled, runs, tiny

SIZES = ("conv_pos", "conv_pos_groups", "encoder_layers")


@pytest.fixture
def tiny_setting(tmp_path, teacher_path) -> list:
    """Options of a labelled corpus and recipes of seconds."""
    for name in ("demo", "demo_sliced"):
        recipe = runs.recipe(name)
        recipe["model"] |= tiny.STUDENT if name == "demo" else {size: tiny.STUDENT[size] for size in SIZES}
        if name == "demo_sliced":
            recipe["model"] |= {"target_params": 12_000.0, "target_macs": None, "init_utterances": 4}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return [
        "--data", labelled.write_labelled(tmp_path / "corpus"), "--teacher", teacher_path,
        "--config", tmp_path / "demo.yaml", "--sliced-config", tmp_path / "demo_sliced.yaml",
        "--out", tmp_path / "out", "--results", tmp_path / "results", "--jobs", 1, "--seeds", 1,
    ]  # fmt: skip


def _row(loss: float, phones: float) -> dict:
    figures = {"loss": loss, PHONE: [phones, 0.7, 0.9], KEYWORD: [0.5, 0.4, 0.6]}
    sizes = {"updates": 300, "parameters": 1_400_000, "macs": 44e9, "cpu_seconds": 200.0}
    return {"name": SLICED, "seed": 1, **sizes, "slicing": {"wall_seconds": 30.0}, "trained": figures}


@pytest.mark.parametrize(("loss", "phones"), [(91.0, 0.8), (80.0, 0.794)])
def test_goals_are_of_every_seed(loss, phones):
    options = SimpleNamespace(suite="seeds", updates=300, phone_utterances=None, max_utterances=150)
    told = slicing.students_table([_row(85.0, 0.81), _row(loss, phones)], None, options)[-1]
    assert f"{'not met' if loss > 90 else 'met'} (greatest {max(loss, 85):.1f})" in told
    assert f"{'not met' if phones < 0.795 else 'met'} (least {phones:.2%})" in told


def test_a_subset_keeps_to_its_seconds_and_all_held_out_speech(tmp_path):
    corpus = labelled.write_labelled(tmp_path / "corpus")
    write_subset(corpus, tmp_path / "some", seconds=3.0, seed=1)
    root, entries = read_manifest(tmp_path / "some" / "train.tsv")
    assert root == str(corpus / "train")
    assert 2.0 < sum(entry.num_samples for entry in entries) / 16_000 <= 3.0
    assert len(read_manifest(tmp_path / "some" / "valid.tsv")[1]) == 8


def test_a_curve_is_of_one_seed():
    with pytest.raises(StarError, match="is of one seed"):
        slicing.main(["--suite", "curve"])


@pytest.mark.slow
def test_both_first_weights_are_judged_and_no_work_is_done_twice(tmp_path, tiny_setting, capsys):
    arguments = [str(argument) for argument in (*tiny_setting, "--updates", 2)]
    slicing.main(arguments)
    table = capsys.readouterr().out
    assert f"\n| {RANDOM} | 1 | " in table
    assert "Goals, in every seed" in table
    [written] = (tmp_path / "results").glob("slicing-*-seeds.json")
    found = {row["name"]: row for row in json.loads(written.read_text())["students"]}
    assert found[SLICED]["parameters"] <= 12_000
    assert found[SLICED]["untrained"]["loss"] < found[SLICED]["slicing"]["loss_of_zero"]
    assert found[RANDOM]["slicing"] is None

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.pt")}
    slicing.main(arguments)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.pt")}
    assert capsys.readouterr().out.split("| student |")[1] == table.split("| student |")[1]


@pytest.mark.slow
def test_a_curve_beside_a_random_run(tmp_path, tiny_setting, capsys, monkeypatch):
    slicing.main([str(argument) for argument in (*tiny_setting, "--updates", 2)])
    more = ["--suite", "curve", "--updates", 50, "--random-run", tmp_path / "out" / "random-1-2"]
    slicing.main([str(argument) for argument in (*tiny_setting, *more)])
    told = capsys.readouterr().out
    assert [f"\n| {SLICED} | {number} | " in told for number in (0, 50)] == [True, True]
    assert [f"\n| {RANDOM} | {number} | " in told for number in (0, 2)] == [True, True]
    [picture] = (tmp_path / "results").glob("slicing-*-curve.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_steps_are_taken_away_one_by_one(tiny_setting, capsys):
    slicing.main([str(argument) for argument in (*tiny_setting, "--suite", "steps")])
    told = capsys.readouterr().out
    assert all(f"\n| {name} | " in told for name in STEPS)
