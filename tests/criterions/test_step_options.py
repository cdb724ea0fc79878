"""Teacher precision, compiled layers, bucketed lengths: faster steps that compute the same loss."""

import pytest
import torch

from tests.support.steps import batch_of, build, gradient, relative_difference


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_teacher_precision(corpus, teacher_path, precision, without_onednn):
    task, student, criterion = build(corpus, teacher_path, teacher_precision=precision)
    batch = batch_of(task, [0, 3])
    assert task.provider.encode(batch).hidden_states[-1].dtype == getattr(torch, precision)
    reference_task, _, reference = build(corpus, teacher_path)
    expected = reference(student, batch_of(reference_task, [0, 3]))[0].item()
    assert criterion(student, batch)[0].item() == pytest.approx(expected, rel=1e-5 if precision == "float32" else 0.05)


def test_teacher_takes_the_precision_of_the_run(corpus, teacher_path):
    task, student, criterion = build(corpus, teacher_path)
    student.to(torch.bfloat16)
    batch = batch_of(task, [0, 3])
    batch["net_input"]["source"] = batch["net_input"]["source"].to(torch.bfloat16)
    loss, _, _ = criterion(student, batch)
    loss.backward()
    assert task.provider.encode(batch).hidden_states[-1].dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in student.parameters())


def test_bucketed_lengths_change_nothing_but_the_padding(corpus, teacher_path):
    task, student, criterion = build(corpus, teacher_path, pad_to_multiple=8000)
    plain_task, _, plain = build(corpus, teacher_path)
    parts = [[0, 8], [1, 9], [3], [5, 6], [7]]
    batches = [batch_of(task, part) for part in parts]
    assert {batch["net_input"]["source"].size(1) for batch in batches} == {8000, 16_000, 24_000}
    loss, bucketed = gradient(student, criterion, *batches)
    expected, reference = gradient(student, plain, *(batch_of(plain_task, part) for part in parts))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert relative_difference(bucketed, reference) < 1e-5


@pytest.mark.slow
def test_compiled_layers_give_the_same_loss_and_state_dict(corpus, teacher_path):
    task, student, criterion = build(corpus, teacher_path, compile=True, pad_to_multiple=8000)
    plain_task, plain_student, plain = build(corpus, teacher_path, pad_to_multiple=8000)
    assert student.state_dict().keys() == plain_student.state_dict().keys()
    parts = [[0, 8], [3, 5], [7]]
    loss, compiled = gradient(student, criterion, *(batch_of(task, part) for part in parts))
    expected, reference = gradient(plain_student, plain, *(batch_of(plain_task, part) for part in parts))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert relative_difference(compiled, reference) < 1e-4
