"""The chunks a streaming student receives in training: drawn by seed and update, taken by the model."""

from types import SimpleNamespace

import pytest
import torch

from fairseq_star.data.augment.chunks import draw_chunk, in_drawn_chunks
from fairseq_star.data.augment.student import alone
from tests.support import tiny
from tests.support.steps import batch_of, build

STREAM = {"extractor_mode": "running_norm", "chunk_frames": [2, 5, 0], "left_context_frames": 6}


def test_draws_repeat_for_seed_and_update_and_take_all_sizes():
    drawn = [draw_chunk([2, 5, 0], 1, update) for update in range(200)]
    assert drawn == [draw_chunk([2, 5, 0], 1, update) for update in range(200)]
    assert drawn != [draw_chunk([2, 5, 0], 2, update) for update in range(200)]
    assert all(40 < drawn.count(size) < 95 for size in (2, 5, 0))


def test_a_batch_stays_as_it_is_where_nothing_is_drawn():
    for sample, sizes in [({"net_input": {}}, ()), ({"net_input": {}}, (4,)), ({"bad": 1}, (4, 8))]:
        assert in_drawn_chunks(sample, sizes, 1, 1) is sample


def test_an_update_is_heard_in_the_chunks_drawn_for_it(corpus, teacher_path, monkeypatch):
    task, student, criterion = build(corpus, teacher_path, model=STREAM)
    batch = batch_of(task, [0, 5])
    optimizer = SimpleNamespace(backward=lambda loss: loss.backward())
    losses = {}
    for update in range(8):
        loss, _, _ = task.train_step(batch, student, criterion, optimizer, update)
        losses.setdefault(draw_chunk(STREAM["chunk_frames"], 1, update), []).append(loss.item())
    for size, of_size in losses.items():
        batch["net_input"]["chunk_frames"] = size
        assert of_size == pytest.approx([criterion(student, batch)[0].item()] * len(of_size), rel=1e-6)
    assert len({values[0] for values in losses.values()}) == len(losses) > 1
    assert alone(batch, 1, task.teacher.geometry)["net_input"]["chunk_frames"] == size


def test_a_validation_hears_in_the_first_size(corpus, teacher_path):
    task, student, criterion = build(corpus, teacher_path, model=STREAM)
    batch = batch_of(task, [0, 5])
    loss, _, _ = task.valid_step(batch, student, criterion)
    batch["net_input"]["chunk_frames"] = 2
    student.eval()
    assert loss == criterion(student, batch)[0]


@pytest.mark.parametrize("updates", [1, 2])
def test_the_gradient_does_not_depend_on_how_a_batch_is_cut(corpus, teacher_path, updates):
    task, student, criterion = build(corpus, teacher_path, model=STREAM)

    def gradient(*parts):
        student.zero_grad()
        for indices in parts:
            batch = batch_of(task, indices, extra=320 * len(parts))
            task.train_step(batch, student, criterion, SimpleNamespace(backward=lambda loss: loss.backward()), updates)
        return torch.cat([weight.grad.flatten() for weight in student.parameters()])

    whole, cut = gradient([0, 5, 3]), gradient([3], [5, 0])
    assert (whole - cut).norm() < 1e-5 * whole.norm()


def test_a_teacher_of_normalized_audio_cannot_teach_a_stream(corpus, tmp_path):
    normalizing = tiny.write_teacher(tmp_path / "teacher.pt", task={"normalize": True})
    with pytest.raises(SystemExit, match=r"model\.chunk_frames: this teacher takes audio of zero mean"):
        build(corpus, normalizing, model=STREAM)
