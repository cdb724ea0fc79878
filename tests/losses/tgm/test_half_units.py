"""The path of half-precision units, run on the CPU with their products emulated: half inputs, float32 sums."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.losses.tgm import Bases, batch, linalg, loss, tgm_loss
from fairseq_star.losses.tgm.linalg import product, split_product
from fairseq_star.losses.tgm.naive import loop_tgm_loss
from tests.support.tgm_cases import computed, converted, gradients, make_states, relative_error

HALVES = [torch.float16, torch.bfloat16]


def emulated(left, right):
    """What ``torch.bmm`` with ``out_dtype`` gives on a GPU."""
    assert left.dtype == right.dtype
    assert left.dtype in HALVES
    return torch.bmm(left.float(), right.float())


@pytest.fixture
def half_units():
    """The loss takes the accelerators' way, its states left in their precision; gives the emulation, to be counted."""
    bmm = mock.Mock(side_effect=emulated)

    def load(self, index):
        pair = [states[index].detach()[self.utterances, : self.num_frames]
                for states in (self.teacher_states, self.student_states)]  # fmt: skip
        return tuple(s if self.padding is None else s.masked_fill(self.padding, 0.0) for s in pair)

    with (
        computed("batched"),
        mock.patch.object(linalg, "_has_half_units", return_value=True),
        mock.patch.object(linalg, "_half_bmm", bmm),
        mock.patch.object(batch.Group, "load", load),
    ):
        yield bmm


@pytest.mark.parametrize("dtype", HALVES)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 40), st.integers(1, 9)),
    magnitude=st.sampled_from([1e-30, 1e-6, 1.0, 1e5, 1e12, 1e30]),
    spread=st.sampled_from([0.0, 3.0, 6.0]),
)
@settings(max_examples=40, derandomize=True)
def test_split_weights_keep_22_and_16_bits(dtype, sizes, magnitude, spread):
    """Whatever their magnitude and that of the largest beside the least; the reference is float64."""
    batch_size, rows, inner, columns = sizes
    generator = torch.Generator().manual_seed(sum(sizes))
    states = torch.randn(batch_size, rows, inner, generator=generator).to(dtype)
    exponents = spread * (torch.rand(batch_size, inner, columns, generator=generator) - 1)
    weights = torch.randn(batch_size, inner, columns, generator=generator) * 10**exponents * magnitude
    with mock.patch.object(linalg, "_half_bmm", emulated):
        found = split_product(states, weights)
    assert found.dtype == torch.float32
    scale = states.double().abs() @ weights.double().abs()
    lost = 2.0**-21 if dtype == torch.float16 else 2.0**-16
    # What is far below the largest weight is kept to a share of that one, in the range float16 has.
    least = weights.double().abs().amax((-2, -1), keepdim=True) * 2.0**-34
    allowed = lost * scale + least * states.double().abs().sum(-1, keepdim=True) + 1e-6 * scale
    assert ((found.double() - states.double() @ weights.double()).abs() <= allowed).all()


def test_zero_weights_give_zero():
    with mock.patch.object(linalg, "_half_bmm", emulated):
        assert not split_product(torch.ones(1, 2, 3).half(), torch.zeros(1, 3, 4)).any()


@pytest.mark.parametrize("dtype", HALVES)
def test_mixed_products_of_either_side_use_the_units(half_units, dtype):
    left, right = torch.randn(2, 5, 7), torch.randn(2, 7, 3)
    for a, b in [(left.to(dtype), right), (left, right.to(dtype)), (left.to(dtype), right.to(dtype))]:
        assert relative_error(product(a, b), a.double() @ b.double()) < 1e-5
    assert half_units.call_count == 3
    assert product(left, right).dtype == torch.float32
    assert product(left.double(), right.to(dtype)).dtype == torch.float64
    assert half_units.call_count == 3


def half_gradient(teacher, student, lengths, **options):
    """The gradient as it is formed, before autograd rounds it to the states' precision: M x B x T x D_s."""
    kept = []

    def attach(values, state, gradient, scale):
        kept.append(gradient * scale[:, None, None])
        return values

    with mock.patch.object(loss._Attach, "apply", attach):
        tgm_loss(teacher, student, lengths, form="gram", **options)
    return torch.stack(kept)


def gradient_error(dtype, noise, *, dim=None):
    """Relative error of the gradient of half states against float64 of the same; the teacher is the student, rotated
    and with ``noise``. With ``dim`` it is given by as many coordinates."""
    generator = torch.Generator().manual_seed(0)
    _, student = make_states(300, dims=(1, 24), dtype=dtype)
    bases = None if dim is None else Bases(dim + 5, [torch.eye(dim)] * (len(student) - 1))
    embedding = torch.linalg.qr(torch.randn(dim or 32, 24, generator=generator)).Q
    teacher = [
        ((state.detach().float() + noise * torch.randn(state.shape, generator=generator)) @ embedding.T).to(dtype)
        for state in student
    ]
    wide = converted(student, torch.float64)
    # Bases that are all the same leave the loss of the coordinates themselves.
    expected = loop_tgm_loss(converted(teacher, torch.float64), wide, [300, 120])
    wanted = gradients(expected, torch.ones(2, dtype=torch.float64), wide)
    return relative_error(half_gradient(teacher, student, [300, 120], bases=bases), wanted)


# "near": student and teacher have all but a hundredth in common, so that Y P - X Q is a small difference. What follows,
# the rounding of the gradient to its state's precision, costs 2e-4 and 2e-3.
@pytest.mark.parametrize("dim", [None, 32])
@pytest.mark.parametrize(("dtype", "far", "near"), [(torch.float16, 2e-6, 1e-4), (torch.bfloat16, 1e-5, 4e-4)])
def test_the_gradient_of_half_states_is_nearly_as_exact_as_float32s(half_units, dtype, far, near, dim):
    assert gradient_error(dtype, 1.0, dim=dim) < far
    assert gradient_error(dtype, 0.01, dim=dim) < near
    assert half_units.call_count


@pytest.mark.parametrize(("dtype", "near"), [(torch.float16, 1e-4), (torch.bfloat16, 4e-4)])
def test_weights_rounded_once_would_not_do(half_units, dtype, near):
    """What the second product is for; the test above fails without it."""

    def once(states, weights):
        return emulated(states, weights.to(states.dtype))

    with mock.patch.object(linalg, "split_product", once):
        assert gradient_error(dtype, 0.01) > 10 * near
