"""``tgm_loss``: checks, choice of the form, and autograd for a gradient computed in the forward pass."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fairseq_star.losses.tgm.bases import Bases
from fairseq_star.losses.tgm.batch import Group, groups
from fairseq_star.losses.tgm.checks import check_options, check_states, read_lengths
from fairseq_star.losses.tgm.cost import choose_form
from fairseq_star.losses.tgm.distances import DISTANCES, MSE
from fairseq_star.losses.tgm.gram import gram_terms
from fairseq_star.losses.tgm.linalg import accumulation_dtype, full_precision
from fairseq_star.losses.tgm.terms import Terms
from fairseq_star.losses.tgm.tiled import tiled_terms

FORMS = ("auto", "gram", "tiled")
# The D x D form's float32 value is off by 5e-9 of the sums it subtracts (benchmarks/loss.md): below this share of
# them the value has fewer than 5 digits.
CANCELLATION = 5e-4


class TGMLoss(NamedTuple):
    """The loss of each utterance of a batch; see ``tgm_loss``."""

    total: Tensor  # [B], differentiable: layerwise_weight * layerwise + intra_layer_weight * intra_layer
    layerwise: Tensor  # [B], detached, unweighted
    intra_layer: Tensor  # [B], detached, unweighted


class _Attach(torch.autograd.Function):
    """Identity on [B] values whose backward multiplies one state's precomputed gradient by the incoming one.

    A chain of these, one per state, rather than one function of all states: autograd frees each stored gradient as it
    returns its product, so that both never exist for all M states. The stored gradient is float32 (float64) and
    unscaled; a loss scale in ``incoming`` is applied before the product is rounded to the state's float16.
    """

    @staticmethod
    def forward(ctx, values: Tensor, state: Tensor, gradient: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(gradient, scale)
        ctx.dtype = state.dtype
        return values.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, incoming: Tensor) -> tuple[Tensor, Tensor, None, None]:
        gradient, scale = ctx.saved_tensors  # B x T x D_s, [B]
        factor = (incoming * scale).to(gradient.dtype)[:, None, None]
        return incoming, (gradient * factor).to(ctx.dtype), None, None


def tgm_loss(
    teacher_states: Sequence[Tensor],
    student_states: Sequence[Tensor],
    frame_lengths: Tensor | Sequence[int] | None,
    *,
    layerwise_weight: float = 1.0,
    intra_layer_weight: float = 1.0,
    first_layerwise_state: int = 1,
    distance: str = MSE,
    form: str = "auto",
    bases: Bases | None = None,
) -> TGMLoss:
    """Compute STaR's layer-wise and intra-layer TGM distillation loss of each utterance.

    >>> import torch
    >>> from fairseq_star import tgm_loss
    >>> teacher_states = [torch.randn(2, 49, 768) for _ in range(13)]  # of 2 utterances, a second and less
    >>> student_states = [torch.randn(2, 49, 432, requires_grad=True) for _ in range(13)]
    >>> loss = tgm_loss(teacher_states, student_states, frame_lengths=[49, 24])
    >>> loss.total.shape
    torch.Size([2])
    >>> loss.total.sum().backward()
    >>> student_states[0].grad[1, 24:].any()  # frames past an utterance's end learn nothing
    tensor(False)

    With X_l, Y_l teacher's and student's state l of an utterance of n valid frames (arXiv 2312.09040, section 2):

        layerwise    mean over l in first_layerwise_state..M-1 of  1/n^2 ||X_l X_l^T - Y_l Y_l^T||_F^2
        intra_layer  mean over l in 1..M-1               of  1/n^2 ||X_{l-1} X_l^T - Y_{l-1} Y_l^T||_F^2
        total        layerwise_weight * layerwise + intra_layer_weight * intra_layer

    ``l1`` has absolute differences in place of squares. ``kl`` divides the matrices by the root of their model's width,
    reads rows as softmax distributions over valid frames and takes 1/n sum_rows KL(teacher || student); the
    re-implementation's "batchmean" is that times n times the number of states (pairs).

    Padding is exact: rows past an utterance's frame count, NaN included, change neither value nor gradient, and their
    gradient is 0. Sums run in float32, in float64 where an input is float64, whatever autocast and TF32 settings say.
    The gradient is formed in the forward pass and stored in that precision, unscaled: a loss scale is applied before it
    is rounded to a float16 state's precision. There are no second derivatives (``naive.loop_tgm_loss`` has them).

    Args:
        teacher_states: M tensors B x T x D_t; no gradient flows into them.
        student_states: M tensors B x T x D_s on the same device. B x T may be a transposed T x B.
        frame_lengths: [B] valid frames (50 a second for HuBERT), 1..T; None: all T. Prefer counts on the host: a tensor
            on an accelerator is used there as a mask, its range is not checked and no row is left out of the products.
        layerwise_weight: weight of the layer-wise term; 0 skips its work and reports 0.
        intra_layer_weight: the same of the intra-layer term.
        first_layerwise_state: first state with a layer-wise term. 1: the paper's convention, states are
            ``hidden_states[0..L]``. 0: the re-implementation's, states are projected features and layers 1..L.
        distance: ``mse`` (STaR), ``l1`` or ``kl``; see :data:`fairseq_star.losses.tgm.distances.DISTANCES`.
        form: ``auto`` chooses by ``choose_form`` (per utterance on the CPU, per batch elsewhere). ``gram``: D x D
            matrices, mse only. ``tiled``: blocks of T x T matrices.
        bases: of a teacher whose states are given by coordinates, M tensors B x T x d (``bases.py``); the result is
            that of the states Z P^T, though these are never formed.

    Returns:
        ``TGMLoss`` of three [B] tensors in float32 (float64). ``gram`` subtracts large sums, and the value (not the
        gradient) has fewer digits than ``tiled`` has where teacher and student nearly agree. ``auto`` computes an
        utterance whose loss is under ``CANCELLATION`` of those sums again with ``tiled``, on the CPU.

    Raises:
        StarError: numbers of states, shapes, devices, counts, weights or names that do not fit.
    """
    check_states(teacher_states, student_states, first_layerwise_state)
    if bases is not None:
        bases.check(teacher_states)
    check_options(layerwise_weight, intra_layer_weight, distance, form, FORMS)
    host_lengths, device_lengths = read_lengths(frame_lengths, student_states[0])
    terms = Terms(len(student_states), first_layerwise_state, float(layerwise_weight), float(intra_layer_weight))

    num_utterances, num_frames, _ = student_states[0].shape
    device = student_states[0].device
    dtype = accumulation_dtype(*(state.dtype for state in (*teacher_states, *student_states)))
    if device_lengths is None:
        scale = torch.full((num_utterances,), 1.0 / num_frames, dtype=torch.float64, device=device)
    else:
        scale = device_lengths.clamp(min=1).to(torch.float64).reciprocal()
    if DISTANCES[distance].over_entries:
        scale = scale.square()

    wanted = torch.is_grad_enabled() and any(state.requires_grad for state in student_states)
    gradients = None
    with torch.no_grad(), full_precision(device.type):
        if wanted:
            gradients = [torch.zeros(state.shape, dtype=dtype, device=device) for state in student_states]
        parts = [
            _evaluate(group, terms, gradients, distance, form)
            for group in groups(
                teacher_states,
                student_states,
                host_lengths,
                device_lengths,
                dtype,
                batched=_batched(device),
                bases=bases,
            )
        ]
        layerwise, intra_layer = (torch.cat(part) for part in zip(*parts, strict=True))
    layerwise = (layerwise * scale / (terms.num_states - terms.first_layerwise_state)).to(dtype)
    intra_layer = (intra_layer * scale / (terms.num_states - 1)).to(dtype)
    total = terms.layerwise_weight * layerwise + terms.intra_layer_weight * intra_layer
    if gradients is not None:
        scale = scale.to(dtype)
        for index, state in enumerate(student_states):
            if state.requires_grad:
                total = _Attach.apply(total, state, gradients[index], scale)
    return TGMLoss(total, layerwise.detach(), intra_layer.detach())


def _batched(device: torch.device) -> bool:
    """Return whether the batch is computed as one group (see ``groups``)."""
    return device.type != "cpu"


def _evaluate(
    group: Group, terms: Terms, gradients: list[Tensor] | None, distance: str, form: str
) -> tuple[Tensor, Tensor]:
    """Return both sums of one group; write its gradients into their rows of ``gradients``."""
    if gradients is not None:
        gradients = [gradient[group.utterances, : group.num_frames] for gradient in gradients]
    chosen = form
    if form == "auto":
        dims = group.teacher_states[0].shape[-1], group.student_states[0].shape[-1]
        chosen = "tiled"
        if distance == MSE:
            chosen = choose_form(
                group.num_frames,
                *dims,
                terms.num_states,
                first_layerwise_state=terms.first_layerwise_state,
                layerwise=bool(terms.layerwise_states),
                intra_layer=bool(terms.pairs),
                with_gradient=gradients is not None,
                two_bases=group.bases is not None,
            )
    if chosen == "tiled":
        return tiled_terms(group, terms, gradients, distance)
    layerwise, intra_layer, magnitude = gram_terms(group, terms, gradients)
    # On other devices than the CPU, reading the numbers would wait for them.
    readable = not _batched(group.device) and group.dtype == torch.float32
    if form == "auto" and readable and bool(layerwise + intra_layer < CANCELLATION * magnitude):
        for gradient in gradients or ():
            gradient.zero_()
        return tiled_terms(group, terms, gradients, distance)
    return layerwise, intra_layer
