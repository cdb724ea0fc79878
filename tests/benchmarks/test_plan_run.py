"""The benchmark of a plan: what it reads from a run's log, and the whole on a tiny student."""

import json

import pytest

from benchmarks import plan_run
from fairseq_star.errors import StarError
from tests.support.runs import hydra_arguments


def line(updates: int, wall: float) -> str:
    return "[x][train_inner][INFO] - " + json.dumps({"num_updates": str(updates), "wall": str(wall)})


def test_an_updates_time_is_between_the_first_and_the_last_line():
    assert plan_run.taken("\n".join([line(20, 30.0), "other", line(40, 41.0), line(60, 50.0)])) == 0.5
    with pytest.raises(StarError, match="fewer than two lines"):
        plan_run.taken(line(20, 30.0))


@pytest.mark.slow
def test_a_plan_beside_its_run(corpus, teacher_path, tmp_path, capsys):
    _, folder, _, name, *overrides = hydra_arguments(corpus, teacher_path, tmp_path / "run")[3:]
    wanted = ("optimization.max_update", "lr_scheduler.warmup", "common.log", "common.user", "common.tensor")
    overrides = [one for one in overrides if not one.startswith(wanted)]
    plan_run.main(
        ["--minutes", "0.01", "--config-dir", folder, "--config-name", name, "--out", str(tmp_path), *overrides]
    )
    shown = capsys.readouterr().out
    assert "| an update, s | " in shown
    result = json.loads(next(tmp_path.glob("plan-*.json")).read_text())
    assert 0.2 < result["planned"]["MiB"] / result["taken"]["MiB"] < 5
