"""The ablation's command on a tiny student: a row for each method, and finished runs are not done again."""

import json
from pathlib import Path

import pytest
import yaml

from benchmarks import ablation
from fairseq_star.errors import StarError
from tests.support import labelled, tiny

ROOT = Path(__file__).resolve().parents[2]


def test_methods_are_the_papers_and_the_baseline():
    assert list(ablation.METHODS) == [
        "frame matching", "last-attn", "avg-attn", "layer-wise", "intra-layer", "layer-wise + intra-layer", "all three",
    ]  # fmt: skip
    assert [name for name, criterion in ablation.METHODS.items() if ablation._needs_maps(criterion)] == [
        "last-attn", "avg-attn", "all three",
    ]  # fmt: skip
    with pytest.raises(StarError, match="must be 1 or more"):
        ablation.main(["--updates", "0"])


@pytest.mark.slow
def test_a_row_for_each_method_and_no_work_twice(tmp_path, teacher_path, capsys):
    corpus = labelled.write_labelled(tmp_path / "corpus")
    recipe = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    recipe["model"] |= tiny.STUDENT
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "out"
    arguments = [
        "--out", out, "--data", corpus, "--teacher", teacher_path, "--config", tmp_path / "tiny.yaml", "--updates", 2,
        "--seeds", 1, 2, "--methods", "frame matching", "avg-attn", "layer-wise + intra-layer", "--jobs", 1,
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
    assert yaml.safe_load(recorded.read_text())["criterion"] == {"_name": "frame_matching"}

    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    assert len(files) == 6 * 2 + 1
    ablation.main([str(argument) for argument in arguments])
    assert files == {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    assert capsys.readouterr().out.split("* date")[0] == table.split("* date")[0]
