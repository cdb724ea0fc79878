"""What must not change the TGM loss (padding, batch, autocast, loss scale), what it refuses, and what it costs."""

import math
import subprocess
import sys

import pytest
import torch

import fairseq_star.losses.tgm.loss as loss_module
from fairseq_star.errors import StarError
from fairseq_star.losses.tgm import choose_form, form_cost, tgm_loss
from tests.support import ROOT
from tests.support.tgm_cases import CASES, computed, converted, gradients, make_states, near_states, relative_error


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize(("form", "distance", "path"), CASES)
def test_padding_has_no_influence(form, distance, path, garbage):
    lengths, weights = [140, 31], torch.tensor([1.0, -2.0], dtype=torch.float64)
    teacher, student = make_states(140)
    longer = []
    for states in (teacher, student):
        padded = [torch.full((2, 170, state.shape[2]), garbage, dtype=state.dtype) for state in states]
        for target, state in zip(padded, states, strict=True):
            for index, count in enumerate(lengths):
                target[index, :count] = state[index, :count].detach()
        longer.append(padded)
    longer_student = [state.requires_grad_() for state in longer[1]]
    with computed(path):
        short = tgm_loss(teacher, student, lengths, form=form, distance=distance)
        long = tgm_loss(longer[0], longer_student, lengths, form=form, distance=distance)
    torch.testing.assert_close(long.total, short.total, rtol=1e-12, atol=0)
    expected = gradients(short.total, weights, student)
    actual = gradients(long.total, weights, longer_student)
    torch.testing.assert_close(actual[:, :, :140], expected, rtol=1e-9, atol=1e-12)
    for index, count in enumerate(lengths):
        assert torch.count_nonzero(actual[:, index, count:]) == 0
        assert torch.count_nonzero(actual[:, index, :count]) > 0


@pytest.mark.parametrize(("form", "distance", "path"), CASES)
def test_a_batch_is_its_utterances_one_by_one(form, distance, path):
    lengths = [90, 200, 1, 133]
    teacher, student = make_states(200, utterances=4)
    weights = torch.tensor([0.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    with computed(path):
        together = tgm_loss(teacher, student, lengths, form=form, distance=distance)
        alone = [
            tgm_loss(
                [state[b : b + 1, :n] for state in teacher],
                [state[b : b + 1, :n] for state in student],
                None,
                form=form,
                distance=distance,
            )
            for b, n in enumerate(lengths)
        ]
    for name in ("total", "layerwise", "intra_layer"):
        expected = torch.cat([getattr(one, name) for one in alone])
        torch.testing.assert_close(getattr(together, name), expected, rtol=1e-11, atol=1e-13)
    expected = gradients(torch.cat([one.total for one in alone]), weights, student)
    assert relative_error(gradients(together.total, weights, student), expected) < 1e-11


@pytest.mark.parametrize("form", ["auto", "gram", "tiled"])
def test_total_is_the_weighted_sum_and_a_term_of_weight_0_is_skipped(form):
    teacher, student = make_states(50)
    both = tgm_loss(teacher, student, None, layerwise_weight=0.3, intra_layer_weight=2.0, form=form)
    torch.testing.assert_close(both.total.detach(), 0.3 * both.layerwise + 2.0 * both.intra_layer)
    assert both.total.requires_grad
    assert not both.layerwise.requires_grad
    assert not both.intra_layer.requires_grad
    one = tgm_loss(teacher, student, None, intra_layer_weight=0.0, form=form)
    torch.testing.assert_close(one.layerwise, both.layerwise)
    assert torch.count_nonzero(one.intra_layer) == 0
    none = tgm_loss(teacher, student, None, layerwise_weight=0.0, intra_layer_weight=0.0, form=form)
    assert torch.count_nonzero(gradients(none.total, torch.ones(2), student)) == 0


@pytest.mark.parametrize("form", ["gram", "tiled"])
def test_without_gradient_none_is_computed(form, monkeypatch):
    teacher, student = make_states(50)
    seen = []
    function = getattr(loss_module, f"{form}_terms")
    monkeypatch.setattr(loss_module, f"{form}_terms", lambda *args: seen.append(args[2]) or function(*args))
    with torch.no_grad():
        value = tgm_loss(teacher, student, None, form=form).total
    assert not value.requires_grad
    assert seen == [None, None]
    expected = tgm_loss(teacher, student, None, form=form).total
    assert None not in seen[2:]
    torch.testing.assert_close(value, expected.detach())


@pytest.mark.parametrize("form", ["gram", "tiled"])
def test_a_frozen_state_gets_no_gradient_and_changes_no_other(form):
    teacher, student = make_states(40)
    expected = gradients(tgm_loss(teacher, student, None, form=form).total, torch.ones(2), student)
    student[1].requires_grad_(False)
    rest = [student[i] for i in (0, 2, 3)]
    actual = gradients(tgm_loss(teacher, student, None, form=form).total, torch.ones(2), rest)
    torch.testing.assert_close(actual, expected[[0, 2, 3]])


@pytest.mark.parametrize("form", ["gram", "tiled"])
def test_a_second_backward_through_a_kept_graph_is_the_same(form):
    teacher, student = make_states(40)
    total = tgm_loss(teacher, student, None, form=form).total.sum()
    first = torch.autograd.grad(total, student, retain_graph=True)
    second = torch.autograd.grad(total, student)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("form", ["auto", "gram", "tiled"])
def test_transposed_states_as_fairseq_has_them(form):
    teacher, student = make_states(300)
    expected = tgm_loss(teacher, student, [300, 120], form=form).total
    views = [[state.detach().transpose(0, 1).contiguous().transpose(0, 1) for state in m] for m in (teacher, student)]
    leaves = [state.requires_grad_() for state in views[1]]
    actual = tgm_loss(views[0], leaves, [300, 120], form=form).total
    torch.testing.assert_close(actual, expected)
    weights = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(gradients(actual, weights, leaves), gradients(expected, weights, student))


@pytest.mark.parametrize("form", ["auto", "gram", "tiled"])
def test_autocast_does_not_reach_the_products(form):
    teacher, student = make_states(100, dims=(24, 16), dtype=torch.float32)
    expected = tgm_loss(teacher, student, None, form=form).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = tgm_loss(teacher, student, None, form=form).total
    assert torch.equal(actual, expected)


def test_reduced_float32_precision_is_off_inside_and_set_back(monkeypatch):
    teacher, student = make_states(100, dims=(24, 16), dtype=torch.float32)
    seen = []
    tiled = loss_module.tiled_terms

    def watched(*args):
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return tiled(*args)

    monkeypatch.setattr(loss_module, "tiled_terms", watched)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        tgm_loss(teacher, student, None, form="tiled")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [False, False]


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9")
def test_reduced_float32_precision_set_the_new_way():
    """In a process of its own: the new settings can't be told from the old ones' absence once they are made."""
    lines = (
        "import torch; from fairseq_star.losses.tgm.linalg import full_precision",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "with full_precision('cpu'): assert torch.backends.cuda.matmul.fp32_precision == 'ieee'",
        "assert torch.backends.cuda.matmul.fp32_precision == 'tf32'",
    )
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("form", ["gram", "tiled"])
def test_a_float16_gradient_survives_until_the_loss_scale_is_applied(form):
    """Unscaled, all of it is under float16's smallest number; scaled by 2^16 it isn't."""
    teacher, student = make_states(60, dtype=torch.float16, scale=1e-3)
    teacher, student = ([(state * 1e-2).detach() for state in states] for states in (teacher, student))
    student = [state.requires_grad_() for state in student]
    wide = converted(student, torch.float32)
    scale = torch.full((2,), 2.0**16)
    expected = gradients(tgm_loss(converted(teacher, torch.float32), wide, None, form=form).total, scale, wide)
    assert torch.count_nonzero((expected / 2.0**16).half()) < expected.numel() / 10
    actual = gradients(tgm_loss(teacher, student, None, form=form).total, scale, student)
    assert actual.dtype == torch.float16
    assert relative_error(actual, expected) < 2e-3


def test_auto_redoes_what_cancels_and_only_that(monkeypatch):
    calls = []
    tiled = loss_module.tiled_terms
    monkeypatch.setattr(loss_module, "tiled_terms", lambda *args: calls.append(args[0].num_frames) or tiled(*args))
    tgm_loss(*near_states(600, 1e-3), None)
    assert calls == [600]
    tgm_loss(*near_states(600, 0.3), None)
    assert calls == [600]


def _states(shape, count=3, **options):
    return [torch.zeros(shape, **options) for _ in range(count)]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((_states((2, 5, 4)), _states((2, 5, 3), 4), None), {}, "teacher has 3 and the student 4"),
        ((_states((2, 5, 4), 1), _states((2, 5, 3), 1), None), {}, "at least 2 states"),
        ((_states((2, 6, 4)), _states((2, 5, 3)), None), {}, r"\(2, 6\).*\(2, 5\)"),
        ((_states((2, 5)), _states((2, 5, 3)), None), {}, "shape"),
        ((_states((2, 0, 4)), _states((2, 0, 3)), None), {}, "shape"),
        ((_states((2, 5, 4)), [*_states((2, 5, 3), 2), torch.zeros(2, 5, 7)], None), {}, "7 wide"),
        ((_states((2, 5, 4), dtype=torch.int64), _states((2, 5, 3)), None), {}, "floating"),
        ((_states((2, 5, 4), device="meta"), _states((2, 5, 3)), None), {}, "meta"),
        ((_states((2, 5, 4)), _states((2, 5, 3)), [5, 6]), {}, r"frame_lengths\[1\] is 6"),
        ((_states((2, 5, 4)), _states((2, 5, 3)), [0, 5]), {}, r"frame_lengths\[0\] is 0"),
        ((_states((2, 5, 4)), _states((2, 5, 3)), [5]), {}, "1 counts for 2"),
        ((_states((2, 5, 4)), _states((2, 5, 3)), torch.ones(2, 5)), {}, "not a mask"),
        ((_states((2, 5, 4)), _states((2, 5, 3)), torch.ones(2, 1, dtype=torch.int64)), {}, "one per utterance"),
        ((_states((2, 5, 4)), _states((2, 5, 3)), None), {"distance": "cosine"}, "cosine"),
        ((_states((2, 5, 4)), _states((2, 5, 3)), None), {"form": "fast"}, "fast"),
        ((_states((2, 5, 4)), _states((2, 5, 3)), None), {"form": "gram", "distance": "l1"}, "mse alone"),
        ((_states((2, 5, 4)), _states((2, 5, 3)), None), {"first_layerwise_state": 3}, "first_layerwise_state is 3"),
        ((_states((2, 5, 4)), _states((2, 5, 3)), None), {"layerwise_weight": -1.0}, "layerwise_weight is -1"),
        ((_states((2, 5, 4)), _states((2, 5, 3)), None), {"intra_layer_weight": math.nan}, "intra_layer_weight is nan"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(arguments, options, message):
    with pytest.raises(StarError, match=message) as refused:
        tgm_loss(*arguments, **options)
    assert "\n" not in str(refused.value)


def test_cost_model():
    dims = (768, 432, 13)
    assert choose_form(100, *dims) == "tiled"
    assert choose_form(800, *dims) == "gram"
    changes = [choose_form(n, *dims) != choose_form(n + 1, *dims) for n in range(1, 2000)]
    assert sum(changes) == 1
    # Narrow models have cheaper D x D products and change earlier.
    assert choose_form(400, 192, 108, 13) == "gram"
    # gram is linear in T, tiled is not; workspace of both is.
    gram, tiled = ([form_cost(form, n, *dims) for n in (500, 1000, 2000)] for form in ("gram", "tiled"))
    assert gram[2].operations == pytest.approx(2 * gram[1].operations)
    assert tiled[2].operations > 3.8 * tiled[1].operations
    for costs in (gram, tiled):
        assert costs[2].workspace <= 2 * costs[1].workspace
    assert form_cost("gram", 500, *dims, with_gradient=False).time < gram[0].time
    with pytest.raises(StarError, match="stacked"):
        form_cost("stacked", 500, *dims)


def test_operations_counted_are_those_of_the_formula():
    """One state pair, by hand: T = 10, D_t = 3, D_s = 2, layer-wise on state 1 only, no gradient."""
    tiled = form_cost("tiled", 10, 3, 2, 2, with_gradient=False)
    assert tiled.operations == 100 * (3 + 2) + 100 * (3 + 2)
    gram = form_cost("gram", 10, 3, 2, 2, with_gradient=False)
    assert gram.operations == pytest.approx(2 * 10 * (5 / 8 * 9 + 6 + 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("where", ["cpu", "cuda"])
@pytest.mark.parametrize(("form", "distance", "path"), [case for case in CASES if case[2] == "batched"])
def test_cuda_equals_cpu_without_host_synchronization(form, distance, path, where, dtype):
    teacher, student = make_states(300, dims=(96, 64), dtype=dtype)
    lengths, weights = torch.tensor([300, 111]), torch.tensor([1.0, 2.0])
    wide = converted(student, torch.float64)
    options = {"form": form, "distance": distance}
    expected = tgm_loss(converted(teacher, torch.float64), wide, lengths, **options)
    expected_gradient = gradients(expected.total, weights.double(), wide)
    teacher = [state.cuda() for state in teacher]
    student = [state.detach().cuda().requires_grad_() for state in student]
    lengths, weights = lengths.to(where), weights.cuda()
    mode = torch.cuda.get_sync_debug_mode()
    if where == "cuda":  # counts on the host are copied to the device, which torch's mode counts as waiting
        torch.cuda.set_sync_debug_mode("error")
    try:
        actual = tgm_loss(teacher, student, lengths, **options)
        gradient = gradients(actual.total, weights, student)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert relative_error(actual.total.cpu(), expected.total) < 1e-4
    assert relative_error(gradient.cpu(), expected_gradient) < {torch.float32: 1e-3}.get(dtype, 5e-3)
