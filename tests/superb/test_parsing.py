"""Numbers out of what s3prl itself printed: the files in ``printed`` are its output in runs on the demo's corpora."""

from pathlib import Path

import pytest

from fairseq_star.errors import StarError
from fairseq_star.superb import parsing
from fairseq_star.superb.tasks import TASKS

PRINTED = Path(__file__).with_name("printed")
EVALUATED = {
    "pr": {"per": 90.60402684563759},
    "asr": {"wer": 100.0},
    "ks": {"acc": 12.5},
    "sid": {"acc": 12.5},
    "asv": {"eer": 39.28571428571429},
    "sd": {"der": 51.05090141296387},
    "ic": {"acc": 10.416666418313980},
    "sf": {"slot_type_f1": 0.0, "slot_value_cer": 100.0},
    "er": {"acc": 25.0},
    "se": {"si_sdr": -8.2964, "stoi": 74.56, "pesq": 1.0772},
}
ON_DEV = {
    "asr": 100.0, "sd": 0.648888885974884, "sf": 0.0, "er": 0.5384615659713745, "se": 1.0346,
}  # fmt: skip


def text(name: str) -> str:
    return (PRINTED / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("task", EVALUATED)
def test_metrics_are_read_in_the_tables_units(task):
    assert parsing.metrics_of(TASKS[task], text(f"{task}.evaluate.txt")) == pytest.approx(EVALUATED[task])


def test_every_task_that_s3prl_scores_is_covered():
    assert set(EVALUATED) == set(TASKS) - {"qbe"}  # scored outside


@pytest.mark.parametrize("task", ON_DEV)
def test_the_best_on_dev_is_found(task):
    line, lower = TASKS[task].dev
    assert parsing.best_on_dev(text(f"{task}.train.txt"), line, lower) == pytest.approx(ON_DEV[task])


@pytest.mark.parametrize("task", [task.name for task in TASKS.values() if task.dev])
def test_each_dev_line_is_one_that_s3prl_prints(task):
    line, lower = TASKS[task].dev
    worst, best = (parsing.best_on_dev(text(f"{task}.train.txt"), line, choice) for choice in (not lower, lower))
    assert (best <= worst) if lower else (best >= worst)


def test_progress_is_read_from_s3prls_bar():
    whole = text("ks.progress.txt")
    assert parsing.steps_done(whole)[:2] == (40, 40)
    half = whole[: whole.index(" 20/40 [") + 20]
    assert parsing.steps_done(half)[:2] == (20, 40)
    assert parsing.steps_done("loading") is None


def test_a_number_that_is_not_there_is_told():
    with pytest.raises(StarError, match="s3prl printed no acc of test"):
        parsing.metrics_of(TASKS["ks"], text("pr.evaluate.txt"))
    with pytest.raises(StarError, match="no 'dev acc' while it trained"):
        parsing.best_on_dev(text("pr.train.txt"), "dev acc", False)


def test_training_scores_are_not_taken_for_evaluated_ones():
    with pytest.raises(StarError, match="of test-clean"):
        parsing.metrics_of(TASKS["asr"], text("asr.train.txt"))


def test_quessts_scorer():
    # As the README of its scoring tools prints it.
    printed = "Main Results:\n\nactTWV: 0.40079603  maxTWV: 0.41911224  Threshold: 5.2125\nactCnxe: 0.97  minCnxe: 0.68"
    assert parsing.twv(printed) == 0.41911224
    with pytest.raises(StarError, match="no maxTWV"):
        parsing.twv("java: not found")


def test_the_error_is_told_not_the_progress():
    stderr = (
        "train:  60%|######    | 3/5 [00:00<00:00, 21.19it/s]\rTraceback (most recent call last):\n  File 'x'\n"
        "FileNotFoundError: [Errno 2] No such file\noverall: 0%| | 0/40 [00:02<?, ?it/s]\n"
    )
    assert parsing.last_error(stderr) == "FileNotFoundError: [Errno 2] No such file"
    assert parsing.last_error("") == "nothing was printed"
