import pytest

from fairseq_star.superb import scores
from fairseq_star.superb.scores import BEST, COLUMNS, FBANK, PUBLISHED
from fairseq_star.superb.tasks import TASKS

ROWS = {row.name: row for row in (*PUBLISHED, BEST)}


@pytest.mark.parametrize("name", ["HuBERT Base", "DistilHuBERT"])
def test_overall_gives_what_was_published(name):
    assert scores.overall(ROWS[name].numbers) == pytest.approx(ROWS[name].overall, abs=0.05)


def test_generalizability_has_its_ends_where_they_are_said_to_be():
    assert scores.generalizability(FBANK.numbers) == 0
    assert scores.generalizability(BEST.numbers) == pytest.approx(1000)
    assert 600 < scores.generalizability(ROWS["DistilHuBERT"].numbers) < 700


def test_a_part_of_the_tasks_has_no_score():
    part = {task: numbers for task, numbers in BEST.numbers.items() if task != "qbe"}
    assert scores.overall(part) is None
    assert scores.generalizability(part) is None


def test_better_numbers_never_score_less():
    for task, metric in scores.COUNTED:
        [about] = [one for one in TASKS[task].metrics if one.name == metric]
        numbers = {key: dict(value) for key, value in ROWS["HuBERT Base"].numbers.items()}
        numbers[task][metric] *= 0.9 if about.is_error else 1.02
        assert scores.overall(numbers) > scores.overall(ROWS["HuBERT Base"].numbers)
        assert scores.generalizability(numbers) > scores.generalizability(ROWS["HuBERT Base"].numbers)


def test_the_tables_columns_are_the_tasks_metrics():
    assert list(COLUMNS) == [(task.name, metric.name) for task in TASKS.values() for metric in task.metrics]
