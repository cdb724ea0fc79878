"""What the log says of a run's speed: counted by hand, and in a run of fairseq's own trainer."""

import json

import numpy as np
import pytest
import torch
from fairseq.logging import metrics

from fairseq_star.encoder.macs import encoder_macs
from fairseq_star.fairseq_hooks import throughput
from fairseq_star.fairseq_hooks.throughput import TRAINED, Throughput
from fairseq_star.runtime import ceiling
from tests.support.runs import hydra_arguments, run
from tests.support.steps import build


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass as the test says, for updates and for fairseq's meters."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def test_counted_and_timed_by_hand(clock, monkeypatch, corpus, teacher_path):
    """Ten updates of a second each, half of what a large product reaches, by two utterances of two lengths."""
    task, student, _ = build(corpus, teacher_path)
    lengths = [16_000, 40_000]
    teacher, own = task.teacher.config, student.config
    macs = sum(encoder_macs(teacher, lengths)) + 3 * sum(encoder_macs(own, lengths))
    monkeypatch.setattr(throughput, "product_flops", lambda *_: 2.0 * macs * 2)  # twice an update's in a second
    speed = Throughput()
    speed.begin(torch.device("cpu"), torch.float32, max_update=3610)
    with metrics.aggregate("train", new_root=True) as found:
        for number in range(10):
            clock[0] += 1
            speed.count(teacher, lengths)
            speed.count(own, lengths, TRAINED)
            speed.end_update(number)
            speed.end_update(number)  # a second batch of it
            speed.reduce([{Throughput.KEY: speed.take()}], speech=3.5)
            if number == 0:
                assert "hours_left" not in found, "one update says nothing"
        told = found.get_smoothed_values()
    assert told["speech"] == pytest.approx(3.5)
    assert told["mfu"] == pytest.approx(50.0)
    assert told["hours_left"] == pytest.approx(1.0)


def test_only_the_last_updates_tell_what_the_others_take(clock, monkeypatch):
    """A first epoch that fills a teacher cache is no measure of those that read it."""
    monkeypatch.setattr(throughput, "product_flops", lambda *_: 1.0)
    speed = Throughput()
    speed.begin(torch.device("cpu"), torch.float32, max_update=1000)
    with metrics.aggregate("train", new_root=True) as found:
        speed.reduce([{}], speech=1.0)
        for number in range(640):
            clock[0] += 100 if number < 300 else 1
            speed.end_update(number)
        speed.reduce([{}], speech=1.0)
        assert found.get_smoothed_values()["hours_left"] == pytest.approx(360 / 3600, abs=0.01)


def test_nothing_is_counted_where_no_teacher_ran(monkeypatch):
    monkeypatch.setattr(throughput, "product_flops", lambda *_: 1.0)
    speed = Throughput()
    assert speed.take() == 0.0
    speed.begin(torch.device("cpu"), torch.float32, 0)
    assert speed.take() == 0.0


def test_the_ceiling_disturbs_no_random_numbers():
    torch.manual_seed(1)
    wanted = torch.rand(4)
    torch.manual_seed(1)
    assert ceiling.product_flops("cpu", torch.float32) > 1e8
    assert torch.equal(torch.rand(4), wanted)


def test_a_runs_log_tells(corpus, teacher_path, tmp_path):
    arguments = hydra_arguments(corpus, teacher_path, tmp_path / "run", "common.log_format=json")
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    lines = [line[line.index("{") :] for line in done.stdout.splitlines() if "train_inner" in line]
    told = [json.loads(line) for line in lines]
    assert len(told) == 6
    assert all(float(one["mfu"]) > 0 for one in told[1:])
    left = [float(one["hours_left"]) for one in told[1:]]
    assert left[-1] == 0
    assert np.all(np.array(left) >= 0)
    valid = [line for line in done.stdout.splitlines() if "[valid]" in line]
    assert valid
    assert not any("mfu" in line or "hours_left" in line for line in valid)
