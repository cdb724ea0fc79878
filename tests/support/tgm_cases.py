"""What the tests of the TGM loss share: states, comparisons, and the accelerators' path run on the CPU."""

from itertools import pairwise
from unittest import mock

import torch

import fairseq_star.losses.tgm.loss as loss_module
from fairseq_star.losses.tgm import Bases, tgm_loss
from fairseq_star.losses.tgm.naive import loop_tgm_loss

# (form, distance, path): every form with every distance it has. "each" utterance by itself is the CPU's way,
# "batched" as one masked group the accelerators'.
CASES = [(form, "mse", path) for form in ("gram", "tiled") for path in ("each", "batched")]
CASES += [("auto", "mse", "each")]
CASES += [("tiled", distance, path) for distance in ("l1", "kl") for path in ("each", "batched")]


def computed(path):
    """Context in which the loss takes ``path``, "each" or "batched"."""
    return mock.patch.object(loss_module, "_batched", return_value=path == "batched")


def make_states(frames, *, utterances=2, dims=(6, 4), states=4, dtype=torch.float64, seed=0, scale=0.5):
    """Teacher's and student's states with a common offset, as Transformer layers have: M of B x T x D each."""
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (
        [
            (torch.randn(utterances, frames, dim, generator=generator, dtype=torch.float64) * scale + 0.3).to(dtype)
            for _ in range(states)
        ]
        for dim in dims
    )
    return teacher, [state.requires_grad_() for state in student]


def make_bases(width, dim, states, *, dtype=torch.float64, seed=0):
    """M orthonormal bases (D_t x d), neighbours alike but not equal, and what the loss is told of them."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(width, dim, generator=generator, dtype=torch.float64)
    found = [
        torch.linalg.qr(common + 0.5 * torch.randn(width, dim, generator=generator, dtype=torch.float64)).Q.to(dtype)
        for _ in range(states)
    ]
    return found, Bases(width, [left.mT @ right for left, right in pairwise(found)])


def near_states(frames, noise, *, dims=(48, 32), states=4, offset=0.0, seed=0):
    """A student whose Gram matrices are its teacher's up to ``noise``: the teacher is the student, rotated and
    embedded.

    Returns:
        M of 1 x T x D_t and M of 1 x T x D_s, float32.
    """
    generator = torch.Generator().manual_seed(seed)
    teacher, student = [], []
    # One for all states: cross-layer matrices are to agree too.
    embedding = torch.linalg.qr(torch.randn(*dims, generator=generator, dtype=torch.float64)).Q  # D_t x D_s
    for _ in range(states):
        y = torch.randn(1, frames, dims[1], generator=generator, dtype=torch.float64) + offset
        teacher.append((y @ embedding.T).float())
        student.append((y + noise * torch.randn(y.shape, generator=generator, dtype=torch.float64)).float())
    return teacher, [state.requires_grad_() for state in student]


def converted(states, dtype):
    """Copies in another precision; leaves that need a gradient stay such leaves."""
    return [state.detach().to(dtype).requires_grad_(state.requires_grad) for state in states]


def gradients(values, weights, states):
    """Gradient of sum_b weights_b values_b, M x B x T x D_s; zeros where autograd has none."""
    found = torch.autograd.grad((values * weights).sum(), states, allow_unused=True)
    return torch.stack([torch.zeros_like(s) if g is None else g for s, g in zip(states, found, strict=True)])


def relative_error(actual, expected):
    """Norm of the difference over the norm of what is expected (over 1 where that is 0)."""
    expected = expected.detach().double()
    return ((actual.detach().double() - expected).norm() / (expected.norm() or 1.0)).item()


def assert_same(teacher, student, frame_lengths, form, tolerance, **options):
    """Values and gradients of a form equal the loop reference's, with other incoming gradients per utterance."""
    weights = torch.linspace(-1.5, 2.0, student[0].shape[0], dtype=student[0].dtype)
    expected = loop_tgm_loss(teacher, student, frame_lengths, **options)
    actual = tgm_loss(teacher, student, frame_lengths, form=form, **options)
    # kl of a single frame is 0 on both sides but for rounding: hence the floor, far under any other value here.
    assert ((actual.total - expected).abs() <= tolerance * expected.abs().clamp(min=1e-4)).all()
    expected_gradient = gradients(expected, weights, student)
    error = (gradients(actual.total, weights, student) - expected_gradient).norm()
    assert error <= tolerance * expected_gradient.norm().clamp(min=1e-4)
