"""The benchmark of a plan: what it reads from a run's log, and the whole on a tiny student."""

import json
import time
from pathlib import Path

import pytest

from benchmarks import plan_run
from fairseq_star.errors import StarError
from tests.support.runs import hydra_arguments


def line(updates: int, wall: float) -> str:
    return "[x][train_inner][INFO] - " + json.dumps({"num_updates": str(updates), "wall": str(wall)})


def test_an_updates_time_is_between_the_first_and_the_last_line():
    whole = "\n".join([line(20, 30.0), "other", line(40, 41.0), line(60, 50.0), "[train_inner] {cut"])
    assert plan_run.taken(whole) == 0.5
    with pytest.raises(StarError, match="fewer than two lines"):
        plan_run.taken(line(20, 30.0))


def test_a_run_is_halted_and_goes_on(tmp_path):
    told = line(0, 0.0)[:-1].replace('"', '\\"')
    counting = f"""
import time
for number in range(1, 41):
    print("{told}".replace('"0"', f'"{{number}}"', 1) + "}}", flush=True)
    time.sleep(0.05)
"""
    with plan_run.Run([counting]) as run:
        first = plan_run.logged(run.until(5))
        with run.halted():
            time.sleep(0.1)
            held = Path(run.log.name).read_text()
            time.sleep(0.3)
            assert Path(run.log.name).read_text() == held
        second = plan_run.logged(run.until(30))
        assert plan_run.logged(run.end())[-1]["num_updates"] == "40"
    assert int(first[-1]["num_updates"]) + 1 == int(second[0]["num_updates"])
    with plan_run.Run(["import sys; sys.exit('told why')"]) as run, pytest.raises(StarError, match="told why"):
        run.until(1)


@pytest.mark.slow
def test_a_plan_beside_its_run(corpus, teacher_path, tmp_path, capsys):
    _, folder, _, name, *overrides = hydra_arguments(corpus, teacher_path, tmp_path / "run")[3:]
    wanted = ("optimization.max_update", "lr_scheduler.warmup", "common.log", "common.user", "common.tensor")
    overrides = [one for one in overrides if not one.startswith(wanted)]
    plan_run.main(
        [
            "--minutes",
            "0.01",
            "--rounds",
            "2",
            "--config-dir",
            folder,
            "--config-name",
            name,
            "--out",
            str(tmp_path),
            *overrides,
        ]
    )
    shown = capsys.readouterr().out
    assert "| an update, s, part 2 | " in shown
    result = json.loads(next(tmp_path.glob("plan-*.json")).read_text())
    assert all(0.2 < planned / result["MiB"]["taken"] < 5 for planned in result["MiB"]["planned"])
