"""A position within an epoch is taken up for the batches that it was counted in, and no others."""

import io
import tempfile
from pathlib import Path

import pytest
import torch
from fairseq.data.iterators import EpochBatchIterator
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.fairseq_hooks.epoch_position import RecordedBatches
from tests.support import tiny
from tests.support.runs import finish, hydra_arguments, run, saved, start_workers


class Numbers(torch.utils.data.Dataset):
    """Utterances that are their own numbers, with a manifest of names."""

    def __init__(self, folder: str, count: int, corpus: str = "a"):
        self.manifest, self.count = Path(folder, f"{corpus}.tsv"), count
        lines = [folder, *(f"{corpus}{number}.wav\t16000" for number in range(count))]
        self.manifest.write_text("\n".join(lines) + "\n")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> int:
        return number

    def set_epoch(self, epoch: int) -> None:
        pass


def iterators(dataset: Numbers, size: int, workers: int, seed: int = 1) -> list[RecordedBatches]:
    """One for each of a run's processes."""
    batches = [list(range(first, min(first + size, len(dataset)))) for first in range(0, len(dataset), size)]
    made = (
        EpochBatchIterator(dataset, list, batches, seed=seed, num_shards=workers, shard_id=rank)
        for rank in range(workers)
    )
    return [RecordedBatches(one, dataset, {"dataset.batch_size": size}) for one in made]


def advance(processes: list[RecordedBatches], steps: int | None = None) -> list[list[int]]:
    """Batches of the epoch's next ``steps`` updates, or of all that are left, as they are drawn in turn."""
    epoch = [one.next_epoch_itr() for one in processes]
    left = [list(one) if steps is None else [next(one) for _ in range(steps)] for one in epoch]
    return [batch for update in zip(*left, strict=True) for batch in update if batch]


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@settings(max_examples=60)
@given(
    count=st.integers(3, 60),
    size=st.sampled_from([1, 2, 4]),
    workers=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    share=st.floats(0, 1),
)
def test_with_other_processes_the_epoch_goes_on_and_nothing_is_left_out(count, size, workers, share):
    with tempfile.TemporaryDirectory() as folder:
        dataset = Numbers(folder, count)
        first = iterators(dataset, size, workers[0])
        done = advance(first, int(share * (len(first[0]) - 1)))
        state = through_a_file(first[0].state_dict())
        resumed = iterators(dataset, size, workers[1])
        for one in resumed:
            one.load_state_dict(state)
        left = advance(resumed)
        whole = advance(iterators(dataset, size, workers[1]))
        assert left == whole[-len(left) :]
        seen_again = len(done) + len(left) - len(whole)
        assert 0 <= seen_again < workers[1]
        assert seen_again == 0 or workers[0] != workers[1]


@settings(max_examples=60)
@given(
    count=st.integers(8, 40),
    other=st.integers(1, 60),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 9)),
    seeds=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    corpora=st.tuples(st.just("a"), st.sampled_from("ab")),
    steps=st.integers(0, 1),
)
def test_with_other_batches_the_epoch_begins_again(count, other, sizes, seeds, corpora, steps):
    with tempfile.TemporaryDirectory() as folder:
        first = iterators(Numbers(folder, count, corpora[0]), sizes[0], 1, seeds[0])
        drawn = advance(first, steps)
        state = through_a_file(first[0].state_dict())
        [resumed] = iterators(Numbers(folder, other, corpora[1]), sizes[1], 1, seeds[1])
        resumed.load_state_dict(state)
        left = advance([resumed])
        whole = advance(iterators(Numbers(folder, other, corpora[1]), sizes[1], 1, seeds[1]))
        same = (count, sizes[0], seeds[0], corpora[0]) == (other, sizes[1], seeds[1], corpora[1])
        assert left == (whole[len(drawn) :] if same else whole)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": 8}, "dataset.batch_size=4 (now 8)"),
        ({"seed": 2}, "common.seed=1 (now 2)"),
        ({"count": 20}, "a corpus of 60 utterances (now 20)"),
        ({"corpus": "b"}, "another corpus of 60 utterances"),
        ({"count": 2000, "size": 2}, "a corpus of 60 utterances (now 2,000), dataset.batch_size=4 (now 2)"),
    ],
)
def test_the_log_names_what_is_another(changes, said, tmp_path, caplog):
    first = iterators(Numbers(str(tmp_path), 60), 4, 1)
    advance(first, 5)
    values = {"count": 60, "corpus": "a", "size": 4, "seed": 1} | changes
    [resumed] = iterators(Numbers(str(tmp_path), values["count"], values["corpus"]), values["size"], 1, values["seed"])
    resumed.load_state_dict(first[0].state_dict())
    assert caplog.messages == [
        f"epoch 1 begins again: the checkpoint's position, after 5 batches of each process, is of {said}; give the "
        "same options to go on from there"
    ]


@pytest.mark.parametrize("done", [7, 14, 15, 40])
def test_a_position_of_nothing_known_is_taken_up_where_there_are_as_many_batches(done, tmp_path, caplog):
    """Of 15 batches; fairseq ends in a traceback at the others."""
    [resumed] = iterators(Numbers(str(tmp_path), 60), 4, 1)
    resumed.load_state_dict({"version": 2, "epoch": 3, "iterations_in_epoch": done, "shuffle": True})
    assert ("epoch 3 begins again" in caplog.text) == (done >= 15)
    assert ("nothing records what it was made of" in caplog.text) == (done >= 15)
    assert len(advance([resumed])) == (15 - done if done < 15 else 15)
    assert resumed.epoch == 3


@pytest.mark.slow
def test_a_run_stopped_in_mid_epoch_goes_on_with_other_batches_files_and_processes(teacher_path, tmp_path):
    data = tiny.write_corpus(tmp_path / "data", train=20)
    fewer = tiny.write_corpus(tmp_path / "fewer", train=6)

    def arguments(name, *options, corpus=data):
        return hydra_arguments(corpus, teacher_path, tmp_path / name, *options)

    def go(*given, **files):
        finished = run(arguments(*given, **files))
        assert finished.returncode == 0, finished.stderr
        return finished.stdout + finished.stderr

    options = ["dataset.batch_size=2", "dataset.disable_validation=true"]
    go("first", *options, "optimization.max_update=4")
    last = tmp_path / "first" / "checkpoint_last.pt"
    assert saved(last)["extra_state"]["train_iterator"]["iterations_in_epoch"] == 4
    more = ["optimization.max_update=7", f"checkpoint.restore_file={last}", "dataset.disable_validation=true"]
    assert "dataset.batch_size=2 (now 8)" in go("a", *more, "dataset.batch_size=8")
    assert "a corpus of 20 utterances (now 6)" in go("b", *more, "dataset.batch_size=2", corpus=fewer)
    assert "begins again" not in go("c", *more, "dataset.batch_size=2")
    outputs = finish(start_workers(tmp_path / "d", arguments("d", *more, "dataset.batch_size=2")))
    assert "epoch 1 goes on after 4 of its 10 batches: number of processes=1 (now 2)" in outputs[0]
