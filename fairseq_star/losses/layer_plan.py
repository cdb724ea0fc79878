"""The compared layers: two conventions, and the match of a deeper teacher's layers.

:func:`compared_states` returns the states for ``tgm_loss``: neighbours make the intra-layer pairs.
"""

from itertools import pairwise
from typing import TYPE_CHECKING, Sequence

from torch import Tensor

from fairseq_star.errors import StarError

if TYPE_CHECKING:  # this package does not import fairseq
    from fairseq_star.encoder.modules import Encoding

PAPER, REIMPLEMENTATION = "paper", "reimplementation"
CONVENTIONS = (PAPER, REIMPLEMENTATION)


def match_layers(teacher_layers: int, student_layers: int, chosen: Sequence[int] | None = None) -> list[int]:
    """Return the teacher layer (1-based) that each student layer 1 .. L learns from.

    Equal depths match one to one, a deeper teacher uniformly (24 to 12: every second); ``chosen`` overrides both.

    Raises:
        StarError: the depths cannot be matched, or ``chosen`` is not one rising teacher layer for each student layer.
    """
    if student_layers > teacher_layers:
        raise StarError(
            f"the student has {student_layers} layers and the teacher {teacher_layers}; a student cannot be deeper: "
            "lower model.encoder_layers"
        )
    if chosen is not None:
        rising = all(a < b for a, b in pairwise(chosen))
        if len(chosen) != student_layers or not rising or not (chosen[0] >= 1 and chosen[-1] <= teacher_layers):
            raise StarError(
                f"criterion.teacher_layers={list(chosen)} must name {student_layers} rising layers of the teacher's "
                f"1 .. {teacher_layers}, one for each layer of the student"
            )
        return list(chosen)
    if teacher_layers % student_layers:
        raise StarError(
            f"the teacher has {teacher_layers} layers and the student {student_layers} (model.encoder_layers), which "
            "cannot be matched evenly; name the teacher's layers in criterion.teacher_layers"
        )
    step = teacher_layers // student_layers
    return [step * number for number in range(1, student_layers + 1)]


def compared_states(encoding: "Encoding", convention: str, layers: Sequence[int] | None = None) -> list[Tensor]:
    """Return the L+1 states (B x T x D) to compare.

    The first is the input of the first layer in the paper's convention and ``projected_features`` in the
    re-implementation's; then come the outputs of ``layers`` (1-based; all when None).
    """
    first = encoding.projected_features if convention == REIMPLEMENTATION else encoding.hidden_states[0]
    numbers = range(1, len(encoding.hidden_states)) if layers is None else layers
    return [first] + [encoding.hidden_states[number] for number in numbers]


def compared_numbers(convention: str, layers: Sequence[int]) -> list[int]:
    """Return the numbers of the states of :func:`compared_states`, -1 for ``projected_features``."""
    return [-1 if convention == REIMPLEMENTATION else 0, *layers]


def first_layerwise_state(convention: str) -> int:
    """Return the first compared state of the layer-wise term: the re-implementation counts the encoder's input too."""
    return 0 if convention == REIMPLEMENTATION else 1
