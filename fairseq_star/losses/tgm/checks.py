"""Checks of ``tgm_loss``'s arguments; none of them reads anything back from an accelerator."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fairseq_star.errors import StarError
from fairseq_star.losses.tgm.distances import DISTANCES, MSE


def check_states(
    teacher_states: Sequence[Tensor], student_states: Sequence[Tensor], first_layerwise_state: int
) -> None:
    """Check that states are M of B x T x D_t and M of B x T x D_s with M >= 2, floating point, on one device.

    Raises:
        StarError: they are not, or ``first_layerwise_state`` is not the index of a state.
    """
    if len(teacher_states) != len(student_states):
        raise StarError(
            f"The TGM loss matches states one to one, but the teacher has {len(teacher_states)} and the student "
            f"{len(student_states)}: select the same number of each."
        )
    if len(student_states) < 2:
        raise StarError(f"The TGM loss needs at least 2 states (one pair of neighbours), not {len(student_states)}.")
    if not 0 <= first_layerwise_state < len(student_states):
        raise StarError(
            f"first_layerwise_state is {first_layerwise_state}, not one of the states 0 to {len(student_states) - 1}."
        )
    first = student_states[0]
    for name, states in (("teacher", teacher_states), ("student", student_states)):
        for index, state in enumerate(states):
            if state.ndim != 3 or 0 in state.shape:
                raise StarError(
                    f"{name} state {index} has shape {tuple(state.shape)}, not batch x frames x width, none of them 0."
                )
            if not state.is_floating_point():
                raise StarError(f"{name} state {index} is of {state.dtype}, not of a floating-point type.")
            if state.shape[2] != states[0].shape[2]:
                raise StarError(
                    f"{name} state {index} is {state.shape[2]} wide and state 0 {states[0].shape[2]}: "
                    "all states of a model must have one width."
                )
            if state.shape[:2] != first.shape[:2]:
                raise StarError(
                    f"{name} state {index} has batch x frames {tuple(state.shape[:2])} and student state 0 "
                    f"{tuple(first.shape[:2])}: teacher and student must see the same frames."
                )
            if state.device != first.device:
                raise StarError(f"{name} state {index} is on {state.device}, student state 0 on {first.device}.")


def check_options(
    layerwise_weight: float, intra_layer_weight: float, distance: str, form: str, forms: tuple[str, ...]
) -> None:
    """Check that weights are finite and not negative, and that names are known and fit.

    Raises:
        StarError: they are not.
    """
    for name, weight in (("layerwise_weight", layerwise_weight), ("intra_layer_weight", intra_layer_weight)):
        if not (math.isfinite(weight) and weight >= 0):
            raise StarError(f"{name} is {weight}: it must be a finite number, 0 (term off) or above.")
    if distance not in DISTANCES:
        raise StarError(f"TGM distance {distance!r} is unknown: choose one of {', '.join(DISTANCES)}.")
    if form not in forms:
        raise StarError(f"TGM form {form!r} is unknown: choose one of {', '.join(forms)}.")
    if form == "gram" and distance != MSE:
        raise StarError(f"TGM form 'gram' exists for mse alone: use 'auto' or 'tiled' with distance {distance!r}.")


def read_lengths(frame_lengths: Tensor | Sequence[int] | None, state: Tensor) -> tuple[list[int] | None, Tensor | None]:
    """Return frame counts for the host and for the device.

    Args:
        frame_lengths: [B] valid frames per utterance; None = all T.
        state: B x T x D, for B, T and the device.

    Returns:
        host: B ints, or None where all frames are valid or the host cannot read them without waiting for the device.
        device: [B] int64 on the state's device, or None where all frames are valid.

    Raises:
        StarError: not B integers, or one of them is not in 1..T (not checked for a tensor on an accelerator: reading
            it would stop the host until the device is done).
    """
    if frame_lengths is None:
        return None, None
    num_utterances, num_frames, _ = state.shape
    if isinstance(frame_lengths, Tensor):
        if frame_lengths.dtype.is_floating_point or frame_lengths.dtype in (torch.bool, torch.complex64):
            raise StarError(f"frame_lengths is of {frame_lengths.dtype}: it holds counts of frames, not a mask.")
        if frame_lengths.shape != (num_utterances,):
            raise StarError(
                f"frame_lengths has shape {tuple(frame_lengths.shape)}, not ({num_utterances},), one per utterance."
            )
        if frame_lengths.device.type != "cpu":
            if frame_lengths.device != state.device:
                raise StarError(f"frame_lengths is on {frame_lengths.device} and the states on {state.device}.")
            return None, frame_lengths.long()
    host = [int(count) for count in frame_lengths]
    if len(host) != num_utterances:
        raise StarError(f"frame_lengths has {len(host)} counts for {num_utterances} utterances.")
    for index, count in enumerate(host):
        if not 1 <= count <= num_frames:
            raise StarError(f"frame_lengths[{index}] is {count}, not one of 1 to {num_frames}, the states' frames.")
    if min(host) == num_frames:
        return None, None
    return host, torch.tensor(host).to(state.device, non_blocking=True)
