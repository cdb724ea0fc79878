"""A plan of a run: what can be told exactly is exact, what is measured adds up, and a run that cannot be is refused."""

import json
import math

import pytest

from fairseq_star.analysis.plan import measure
from fairseq_star.analysis.plan import plan as planning
from fairseq_star.cli import main
from fairseq_star.runtime import ceiling
from tests.support.runs import hydra_arguments
from tests.support.steps import batch_of, build


def arguments_of(corpus, teacher_path, folder, *more) -> list[str]:
    """Those of a run, as plan takes them."""
    return [str(part) for part in hydra_arguments(corpus, teacher_path, folder / "run", *more)[3:]]


@pytest.fixture
def planned(corpus, teacher_path, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(ceiling.SIDES, "cpu", 64)

    def planned(*more, steps=1) -> dict:
        main(["plan", *arguments_of(corpus, teacher_path, tmp_path, *more), "--steps", str(steps), "--json"])
        return json.loads(capsys.readouterr().out)

    return planned


def test_what_can_be_told_is_exact(planned, corpus, teacher_path, tmp_path):
    """12 utterances in batches of 4, 6 updates of one batch."""
    found = planned("checkpoint.save_interval_updates=2")
    task, student, _ = build(corpus, teacher_path)
    for split in ("train", "valid"):
        task.load_dataset(split)
    lengths = sorted(task.dataset("train").sizes.tolist(), reverse=True)
    padded = sum(4 * lengths[start] for start in (0, 4, 8))
    assert found["padding"] == pytest.approx(1 - sum(lengths) / padded)
    assert (found["updates"], found["epochs"], found["utterances_an_update"]) == (6, 2.0, 4.0)
    assert found["checkpoint_bytes"] == 12 * sum(parameter.numel() for parameter in student.parameters())
    assert found["checkpoints"] == 3  # last, best, and one of every so many updates
    assert found["hours"] == pytest.approx(6 * found["seconds_an_update"] / 3600)
    saved = found["teacher_share"] / 2  # the second of two epochs
    assert found["hours_cached"] == pytest.approx(found["hours"] * (1 - saved))
    assert 0 < found["teacher_share"] < 1
    seconds = sum(lengths) / 16_000 / 3
    assert found["audio_seconds_a_second"] == pytest.approx(seconds / found["seconds_an_update"])
    assert found["mfu"] > 0
    assert 0 < found["peak_bytes"] < found["total_bytes"]
    assert not (tmp_path / "run").exists(), "nothing is written"

    # Against what a cache really takes.
    for name, size in found["cache_bytes"].items():
        options = {"teacher_cache": str(tmp_path / name), "teacher_cache_compression": name}
        task, student, criterion = build(corpus, teacher_path, **options)
        task.load_dataset("valid")
        criterion(student, batch_of(task, range(12)))
        criterion(student, batch_of(task, range(3), "valid"))
        [store] = task.provider.cache.stores.values()
        assert store.num_bytes() == size


def test_more_batches_an_update_and_workers(planned):
    one, more = planned(), planned("optimization.update_freq=[3]", "distributed_training.distributed_world_size=2")
    assert more["epochs"] == 6 * one["epochs"]
    assert more["utterances_an_update"] == 24
    assert more["world_size"] == 2
    found = planned("optimization.max_epoch=1")
    assert (found["updates"], found["epochs"]) == (3, 1.0)


def test_a_run_that_is_sliced_first_says_so(planned, corpus, teacher_path, tmp_path, capsys):
    """It is measured with random weights, which cost the same: nothing is sliced, written or waited for."""
    assert planned()["sliced"] is False
    sliced = ["model.init=sliced", "model.target_params=16000"]
    found = planned(*sliced)
    assert found["sliced"] is True
    assert found["checkpoint_bytes"] <= 12 * 16_000
    assert not (tmp_path / "run").exists()
    main(["plan", *arguments_of(corpus, teacher_path, tmp_path, *sliced), "--steps", "1"])
    shown = capsys.readouterr().out
    assert "begins     sliced out of the teacher, which takes a minute or a few first" in shown


@pytest.mark.parametrize("option", ["task.release_memory=true", "task.pad_to_multiple=3200"])
def test_a_peak_that_stays_is_not_said_to_grow(planned, option):
    assert planned()["peak_grows"]
    assert not planned(option)["peak_grows"]


def test_no_cache_is_told_where_there_can_be_none(planned, corpus, teacher_path, tmp_path, capsys):
    assert planned("criterion.avg_attn_weight=1")["cache_bytes"] == {}
    main(["plan", *arguments_of(corpus, teacher_path, tmp_path, "criterion.avg_attn_weight=1"), "--steps", "1"])
    lines = capsys.readouterr().out
    assert "none is possible with these options" in lines
    assert "with a teacher cache" not in lines


def test_slow_data_and_full_memory_are_warned_of(planned, monkeypatch):
    assert planned()["warnings"] == []
    monkeypatch.setattr(measure, "_total", lambda device: (1000, "the machine"))
    monkeypatch.setattr(measure, "_step", lambda *_: (2.0, 1.0))
    monkeypatch.setattr(measure, "_seconds_to_read", lambda *_: 6.0)
    found = planned()
    assert [option in text for text, option in zip(found["warnings"], ("batch_size", "num_workers"), strict=True)]
    assert len(found["warnings"]) == 2
    assert found["data_share"] == pytest.approx(3)
    assert found["batch_size_that_fits"] == 0


def test_counted_operations_are_the_encoders_own(corpus, teacher_path, tmp_path, monkeypatch):
    """From sizes alone, against each utterance counted by itself."""
    from fairseq_star.analysis.plan.plan import run_config
    from fairseq_star.encoder.macs import encoder_macs

    monkeypatch.setitem(ceiling.SIDES, "cpu", 64)
    _, folder, _, name, *overrides = arguments_of(corpus, teacher_path, tmp_path)
    measured = measure.measure(run_config(folder, name, overrides), 3)
    dataset = measured.trainer.task.dataset("train")
    lengths = [dataset.size(index) for step in measured.steps for index in step.batch.indices]
    teacher, student = measured.trainer.task.teacher.config, measured.trainer.model.config
    expected = 2 * (sum(encoder_macs(teacher, lengths)) + 3 * sum(encoder_macs(student, lengths)))
    assert planning._flops(measured) == pytest.approx(expected, rel=0.02)
    assert math.isclose(sum(batch.samples for batch in measured.batches), dataset.sizes.sum())


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["common.fp16=true"], r"common\.fp16=true needs a GPU"),
        (["task.no_such=1"], "no_such"),
        (["task.data=/nowhere"], r"task\.data: /nowhere is no folder"),
        (["dataset.max_tokens=10"], r"dataset\.max_tokens=10"),
        (["--steps", "0"], "--steps 0 must be 1 or more"),
        (["--config-name", "none"], r"no none\.yaml"),
    ],
)
def test_what_cannot_be_is_one_line(corpus, teacher_path, tmp_path, more, told):
    with pytest.raises(SystemExit, match=told) as ended:
        main(["plan", *arguments_of(corpus, teacher_path, tmp_path), *more])
    assert len(str(ended.value).splitlines()) == 1


def test_another_tasks_recipe_is_refused():
    with pytest.raises(SystemExit, match="finetune_ctc trains another task"):
        main(["plan", "--config-name", "finetune_ctc"])


def test_memory_that_does_not_suffice_is_one_line(corpus, teacher_path, tmp_path, monkeypatch):
    import torch
    from fairseq.trainer import Trainer

    def refuse(*arguments, **options):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "train_step", refuse)
    with pytest.raises(SystemExit, match=r"a batch of 4 utterances .* does not fit .* lower dataset\.batch_size"):
        main(["plan", *arguments_of(corpus, teacher_path, tmp_path)])
