"""The streaming benchmark: shares of the margin, and its command on a tiny student."""

import json
from types import SimpleNamespace

import pytest
import yaml

from benchmarks import streaming
from tests.support import labelled, runs, tiny


@pytest.mark.parametrize(("at_320", "met"), [(0.56, True), (0.54, False)])
def test_the_margin_is_that_over_random_weights_seed_by_seed(at_320, met):
    flat = {"–": {1: 0.6, 2: 0.7}}
    accuracies = {name: dict(flat) for name in (*streaming.ARMS, streaming.TEACHER)}
    accuracies[streaming.RANDOM] = {"–": {1: 0.2, 2: 0.2}, "320 ms": {1: 0.1, 2: 0.1}}
    accuracies["streaming, all sizes"] = {"320 ms": {1: at_320, 2: at_320 + 0.1}, "80 ms": {1: 0.4, 2: 0.45}}
    text = "\n".join(streaming.table(accuracies, SimpleNamespace(updates=5, seeds=[1, 2])))
    assert "| streaming, all sizes | 80 ms | 42.5 | 40.0 | 45.0 | 50.0% (50.0%, 50.0%) |" in text
    assert "| whole utterances | – | 65.0 | 60.0 | 70.0 | 100.0% (100.0%, 100.0%) |" in text
    assert f"at 320 ms of latency: {'' if met else 'not '}met by 'streaming, all sizes'." in text


@pytest.mark.slow
def test_each_student_is_probed_at_each_size_and_no_work_is_done_twice(tmp_path, teacher_path, capsys):
    recipe = runs.recipe("demo")
    recipe["model"] |= tiny.STUDENT
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    corpus, out = labelled.write_labelled(tmp_path / "corpus"), tmp_path / "out"
    arguments = [
        "--out", out, "--data", corpus, "--teacher", teacher_path, "--config", tmp_path / "tiny.yaml",
        "--updates", 2, "--seeds", 1, "--jobs", 1,
    ]  # fmt: skip
    streaming.main([str(argument) for argument in arguments])
    shown = capsys.readouterr().out
    found = json.loads((out / "streaming.json").read_text())["phones"]
    assert list(found["streaming, all sizes"]) == ["80 ms", "160 ms", "320 ms", "640 ms", "all at once"]
    assert all(f"\n| {name} | " in shown for name in found)
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    streaming.main([*(str(argument) for argument in arguments), "--students", "streaming, one size"])
    assert files == {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    assert list(json.loads((out / "streaming.json").read_text())["phones"]).count("streaming, all sizes") == 0
    assert "met by 'streaming, one size'" in capsys.readouterr().out
