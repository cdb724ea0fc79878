"""The cost model that chooses the form of the mse loss from T, D_t, D_s, M and the weighted terms.

Per utterance, in multiply-adds of matrix products (the loss's own, one state; t = D_t, s = D_s, f = upper panels' share
of a symmetric product: (1 + 1/number of panels) / 2):

    gram    T (f t^2 + t s + s^2)  value          + T (t s + s^2)  gradient
    tiled   f T^2 (t + s)  layer-wise value       + T^2 s  its gradient
            T^2 (t + s)    intra-layer value      + 2 T^2 s  its gradient

and for each pair of a teacher given by coordinates (``bases.py``), t = d: gram 2 t^3 + 2 t^2 s, tiled T t^2.

All else is bound by memory. It is counted as entries read or written, ENTRY_COST multiply-adds each, and as operations
called from Python, CALL_COST multiply-adds each:

    gram    passes over A, R, S (norms, weights) and over X, Y (centring), calls per state
    tiled   passes over the T x T blocks, calls per block

Memory never decides: ``workspace`` of both forms is linear in T and small against the states (tested), and the stacked
T x T form is no candidate.
"""

from typing import NamedTuple

from fairseq_star.errors import StarError
from fairseq_star.losses.tgm.gram import NUM_PANELS
from fairseq_star.losses.tgm.tiled import BLOCK_ROWS

# Multiply-adds in the time of one entry's pass through memory, and of one call: fitted to times of both forms over T on
# a CPU (benchmarks/loss.md). They put the crossing of the forms at 520 frames where 500 was measured; halved or doubled
# they move it by under 100 frames, where the forms differ by less than a tenth.
ENTRY_COST = 10.0
CALL_COST = 5e5


class FormCost(NamedTuple):
    """Cost of one utterance's loss; forms are compared by ``time``."""

    operations: float  # multiply-adds in matrix products
    entries: float  # matrix entries read or written outside of products
    calls: float  # operations called from Python
    workspace: float  # entries alive at once beyond states and gradients

    @property
    def time(self) -> float:
        """Return operations + ENTRY_COST * entries + CALL_COST * calls, in multiply-adds."""
        return self.operations + ENTRY_COST * self.entries + CALL_COST * self.calls


def form_cost(
    form: str,
    num_frames: int,
    teacher_dim: int,
    student_dim: int,
    num_states: int,
    *,
    first_layerwise_state: int = 1,
    layerwise: bool = True,
    intra_layer: bool = True,
    with_gradient: bool = True,
    two_bases: bool = False,
) -> FormCost:
    """Return the cost of the mse loss of one utterance in one form (formula: head of this file).

    Args:
        form: ``gram`` or ``tiled``.
        num_frames: T, valid frames of the utterance (of the longest one where a batch is computed as one).
        teacher_dim: D_t.
        student_dim: D_s.
        num_states: M.
        first_layerwise_state: first state with a layer-wise term.
        layerwise: whether there is a layer-wise term.
        intra_layer: whether there is an intra-layer term.
        with_gradient: whether the gradient is formed too.
        two_bases: whether the teacher's states are coordinates, each in a basis of its own.

    Raises:
        StarError: another form.
    """
    t, s, frames = float(teacher_dim), float(student_dim), float(num_frames)
    own = num_states - first_layerwise_state if layerwise else 0
    pairs = num_states - 1 if intra_layer else 0
    gradient = 1.0 if with_gradient else 0.0
    if form == "gram":
        states = num_states if intra_layer else own
        share = (1 + 1 / NUM_PANELS) / 2
        share = 1.0 if two_bases else share
        operations = states * frames * (share * t * t + (1 + gradient) * (t * s + s * s))
        operations += pairs * 2 * t * t * (t + s) * two_bases
        matrices = share * t * t + t * s + s * s
        # Norms read each matrix twice a term; weights add R and S once or twice each.
        entries = 2 * (own + pairs) * matrices + gradient * 3 * (own + 2 * pairs) * (t * s + s * s)
        entries += states * frames * (4 * (t + s) + gradient * 3 * s) + (own + pairs) * 2 * frames * (t + s)
        calls = 25 * states + 25 * (own + pairs)
        return FormCost(operations, entries, calls, 2 * matrices + 2 * (t * s + s * s) + 2 * frames * (t + s))
    if form == "tiled":
        blocks = -(-num_frames // BLOCK_ROWS)
        share = (1 + 1 / blocks) / 2
        square = frames * frames
        operations = square * (own * (share * (t + s) + gradient * s) + pairs * ((t + s) + gradient * 2 * s))
        operations += pairs * frames * t * t * two_bases
        entries = (share * own + pairs) * 6 * square
        calls = 12 * blocks * (own + pairs)
        return FormCost(operations, entries, calls, 2 * min(BLOCK_ROWS, num_frames) * frames)
    raise StarError(f"The cost of TGM form {form!r} is not modelled: choose 'gram' or 'tiled'.")


def choose_form(
    num_frames: int,
    teacher_dim: int,
    student_dim: int,
    num_states: int,
    *,
    first_layerwise_state: int = 1,
    layerwise: bool = True,
    intra_layer: bool = True,
    with_gradient: bool = True,
    two_bases: bool = False,
) -> str:
    """Return the cheaper form of the mse loss by ``FormCost.time``, ``gram`` or ``tiled``; arguments: ``form_cost``'s.

    HuBERT Base (768) to 432 with 13 states changes to ``gram`` at about 500 frames, 10 s of audio.
    """

    def time(form: str) -> float:
        return form_cost(
            form,
            num_frames,
            teacher_dim,
            student_dim,
            num_states,
            first_layerwise_state=first_layerwise_state,
            layerwise=layerwise,
            intra_layer=intra_layer,
            with_gradient=with_gradient,
            two_bases=two_bases,
        ).time

    return "gram" if time("gram") < time("tiled") else "tiled"
