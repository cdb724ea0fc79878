"""What a running run warns of: each once, from the meters that fairseq keeps anyway."""

import logging
import time

import pytest
import torch
from fairseq.logging import metrics

from fairseq_star.fairseq_hooks import throughput
from fairseq_star.fairseq_hooks.run_watch import RunWatch


def update(waits: float = 0.0, **values: float) -> None:
    """An update as fairseq's trainer logs it, after a wait for its batch."""
    time.sleep(waits)
    metrics.log_start_time("train_wall")
    metrics.log_speed("ups", 1.0)
    time.sleep(0.02)
    for name, value in values.items():
        metrics.log_scalar(name, torch.tensor(value))
    metrics.log_derived(throughput.DATA_WAIT, throughput._waiting)
    metrics.log_stop_time("train_wall")


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_run_that_is_well_is_not_disturbed(caplog):
    watch = RunWatch()
    with metrics.aggregate("train"):
        for number in range(100, 2000, 100):
            update(gnorm=1e5 / number, padding=1.0, loss_scale=128.0)
            watch.look(number, 1e6 / number)
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("loss", "values", "told"),
    [
        (lambda number: 1e6 / number if number < 1500 else 1e4, {"gnorm": 1e4}, "the loss has risen from"),
        (lambda number: 5000.0, {"gnorm": None}, "hardly any gradient is left"),
        (lambda number: 1e6 / number, {"loss_scale": 0.01}, "common.bf16=true"),
        (lambda number: 1e6 / number, {"padding": 50.0}, "task.pad_to_multiple"),
    ],
)
def test_a_symptom_is_named_once_with_its_option(loss, values, told, caplog):
    watch = RunWatch()
    with metrics.aggregate("train"):
        for number in range(100, 2000, 100):
            of_update = {
                name: (5000.0 if number < 300 else 50.0) if value is None else value for name, value in values.items()
            }
            update(**of_update)
            watch.look(number, loss(number))
    [warning] = warnings(caplog)
    assert told in warning
    assert warning.endswith("more with fairseq-star doctor")


def test_waiting_for_data_without_validation_and_saving(caplog):
    """A validation between two updates is not a wait; a batch that comes late is."""
    watch = RunWatch()
    with metrics.aggregate("train"):
        for number in range(200, 700, 100):
            update()
            time.sleep(0.02)
            throughput.pause(0.02)
            watch.look(number, 1.0)
        assert metrics.get_smoothed_value("train", "data_wait") < 15
        assert warnings(caplog) == []
        for _ in range(5):
            update(waits=0.1)
        watch.look(800, 1.0)
        watch.look(900, 1.0)
    [warning] = warnings(caplog)
    assert "dataset.num_workers" in warning


def test_a_look_costs_next_to_nothing():
    """One in a hundred batches; a step of the smallest demo student takes 0.1 s, of which 0.5 % are 0.5 ms a batch."""
    watch = RunWatch()
    with metrics.aggregate("train"):
        update(gnorm=1.0, padding=1.0, loss_scale=128.0)
        start = time.process_time()
        for number in range(200):
            watch.look(100 * number, 1.0)
        assert (time.process_time() - start) / 200 < 0.05  # seconds; measured: 0.0006
