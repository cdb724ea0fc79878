"""The first pass of a compressed teacher cache: a codec fitted to some utterances, and others to measure it on.

Bases, offsets and spreads come from running moments of a sample of frames. The error is measured on STaR's targets:
Gram matrices, and the gradient of the loss on them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fairseq_star.data.dataset import DistillationDataset
from fairseq_star.encoder.frames import FrameGeometry, Frames
from fairseq_star.errors import StarError
from fairseq_star.losses.tgm import Bases, tgm_loss
from fairseq_star.teacher.cache.codec import Codec

SAMPLE_FRAMES = 30_000  # ten minutes; 39 frames a dimension of HuBERT Base
HELD_OUT = 8  # utterances
WORSE = 1.25  # times the error of a new codec that one of another corpus may have: a new one costs the whole cache
LEAST_ERROR = 1e-4  # below which an error is as good as none
LEAST_SPREAD = 1e-4  # of the largest coordinate's, so that a constant coordinate does not divide by 0
MOST_FRAMES = 1000  # of an utterance: its Gram matrices are formed


def choose(dataset: DistillationDataset, geometry: FrameGeometry) -> tuple[list[int], list[int]]:
    """Choose the utterances to fit to, of :data:`SAMPLE_FRAMES` frames together where there are so many, and held-out
    ones, at most a quarter of all; always the same of a data set.

    Raises:
        StarError: there is but one utterance.
    """
    if len(dataset) < 2:
        raise StarError(
            "task.teacher_cache_compression is fitted to some utterances and tried on others, and there is but one; "
            "leave it out"
        )
    order = np.random.default_rng(0).permutation(len(dataset))
    held_out = order[: min(HELD_OUT, max(1, len(order) // 4))]
    sample = order[len(held_out) :]
    reached = np.cumsum(geometry.num_frames(dataset.cropped_lengths()[sample]))
    return sample[: int(np.searchsorted(reached, SAMPLE_FRAMES)) + 1].tolist(), held_out.tolist()


def make_codec(
    dataset: DistillationDataset,
    geometry: FrameGeometry,
    states_of: Callable[[Tensor], Sequence[Tensor]],
    numbers: Sequence[int],
    dim: int | None,
) -> Codec:
    """Fit a codec to a sample of ``dataset``, and measure on held-out utterances how exact it is.

    Args:
        geometry: the teacher's.
        states_of: the states ``numbers`` (n x D each) of an utterance's samples (1-D).
        numbers: of the states.
        dim: as of :func:`fit_codec`.

    Raises:
        StarError: there is but one utterance, or none can be used.
    """
    chosen, held_out = choose(dataset, geometry)
    codec = fit_codec(_states(dataset, chosen, states_of, "fitting"), numbers, dim)
    codec.about["held_out"] = measure(codec, _states(dataset, held_out, states_of, "trying"))
    return codec


def better_codec(
    codec: Codec,
    dataset: DistillationDataset,
    geometry: FrameGeometry,
    states_of: Callable[[Tensor], Sequence[Tensor]],
    dim: int | None,
) -> Codec:
    """Return ``codec``, which was fitted to another corpus, or one fitted to ``dataset`` if that is more exact there.

    Args:
        codec: of another corpus.
        dataset, geometry, states_of, dim: as of :func:`make_codec`.

    Returns:
        The codec, with what was measured on held-out utterances of ``dataset``, or on its only one.

    Raises:
        StarError: no utterance can be used.
    """
    held_out, new = [0], None
    if len(dataset) > 1:
        new, held_out = make_codec(dataset, geometry, states_of, codec.numbers, dim), choose(dataset, geometry)[1]
    measured = measure(codec, _states(dataset, held_out, states_of, "trying"))
    if new is not None and not _as_exact(measured, new.about["held_out"]):
        return new
    return replace(codec, about=codec.about | {"held_out": measured})


def _as_exact(errors: dict, new: dict) -> bool:
    """Return whether the mean errors of one codec, as of :func:`measure`, are no larger than another's."""
    means = [
        [sum(one[name]) / len(one[name]) for one in (errors, new)]
        for name in ("layerwise", "intra_layer", "gradient")
        if errors[name] and new[name]
    ]
    return bool(means) and all(error <= max(WORSE * of_new, LEAST_ERROR) for error, of_new in means)


def _states(
    dataset: DistillationDataset, indices: Sequence[int], states_of: Callable[[Tensor], Sequence[Tensor]], doing: str
) -> Iterator[Sequence[Tensor]]:
    for index in tqdm(indices, f"teacher cache: {doing}", unit="utt", leave=False, disable=None):
        # Unreadable files are reported when their batch is loaded.
        if (source := dataset[index]["source"]) is not None:
            yield states_of(source)


def describe(codec: Codec) -> str:
    """Return a codec's accuracy in one sentence."""
    about = codec.about
    how = f"{codec.width} numbers a frame in 8 bits"
    if codec.bases is not None:
        kept = about["explained_energy"]
        how = (
            f"{codec.offsets.shape[1]} of {codec.width} coordinates in 8 bits, fitted to {about['sample_frames']:,} "
            f"frames of which they keep {min(kept):.2%} to {max(kept):.2%} of the energy, by layer"
        )
    errors = about["held_out"]
    if not errors["utterances"]:
        return how

    def percent(name: str) -> str:
        return f"{sum(errors[name]) / len(errors[name]):.2%} (at most {max(errors[name]):.2%})"

    sentence = f"{how}; off on {errors['utterances']} held-out utterances: Gram matrices by {percent('layerwise')}"
    if errors["intra_layer"]:
        sentence += f", cross-layer ones by {percent('intra_layer')}, the gradient near the teacher by "
        sentence += f"{errors['gradient'][0]:.2%}"
    return sentence


class Moments:
    """First and second moments of the frames of S states, in float64.

    Args:
        cross: whether the products of all pairs of dimensions are summed (S x D x D), or squares alone (S x D).
    """

    def __init__(self, *, cross: bool):
        self.cross = cross
        self.num_frames = 0
        self.sums: list[tuple[Tensor, Tensor]] = []  # of each state: D, and D x D or D

    def add(self, states: Sequence[Tensor]) -> None:
        """Count an utterance in: S of n x D. One that holds NaN or infinities is left out."""
        if not all(bool(torch.isfinite(state.sum(dtype=torch.float64))) for state in states):
            return
        self.num_frames += len(states[0])
        for place, state in enumerate(states):
            frames = state.double()
            sums = frames.sum(0), frames.mT @ frames if self.cross else frames.square().sum(0)
            if place == len(self.sums):
                self.sums.append(sums)
            else:
                for total, more in zip(self.sums[place], sums, strict=True):
                    total.add_(more)

    def means(self) -> tuple[Tensor, Tensor]:
        """First and second moments of all states, on the CPU: S x D, and S x D x D or S x D."""
        first, second = (torch.stack(sums).cpu() / self.num_frames for sums in zip(*self.sums, strict=True))
        return first, second


def fit_codec(sample: Iterable[Sequence[Tensor]], numbers: Sequence[int], dim: int | None) -> Codec:
    """Fit a codec to ``sample``.

    The basis of a state is that of the ``dim`` largest eigenvalues of its second moments (1/N) sum_t x_t x_t^T, which
    leaves of all bases of so many columns the largest share of the energy sum_t |x_t|^2. They are not centred, because
    Gram matrices are not.

    Args:
        sample: for each utterance its S states, n x D each.
        numbers: of the S states.
        dim: d; None for states as they are, in 8-bit numbers.

    Returns:
        The codec, on the CPU; in its ``about`` the frames of the sample and of each state the share of energy kept.

    Raises:
        StarError: the sample has no frame.
    """
    moments = Moments(cross=dim is not None)
    for states in sample:
        moments.add(states)
    if not moments.num_frames:
        raise StarError("task.teacher_cache_compression: the teacher's states are not finite for any utterance tried")
    first, second = moments.means()
    bases, explained = None, torch.ones(len(first))
    if dim is None:
        offsets, squares = first, second
    else:
        energies, vectors = torch.linalg.eigh(second)  # S x D rising, S x D x D
        bases = vectors[..., -dim:].flip(-1)
        offsets, squares = (bases.mT @ first[..., None])[..., 0], energies[:, -dim:].flip(-1)
        explained = squares.sum(1) / energies.sum(1)
    deviations = (squares - offsets.square()).clamp_min(0).sqrt()
    spreads = deviations.clamp_min(LEAST_SPREAD * deviations.amax(1, keepdim=True).clamp_min(1e-6)).sqrt()
    about = {"sample_frames": moments.num_frames, "explained_energy": [round(float(share), 6) for share in explained]}
    return Codec(
        tuple(numbers), offsets.float(), spreads.float(), None if bases is None else bases.float().contiguous(), about
    )


def measure(codec: Codec, held_out: Iterable[Sequence[Tensor]]) -> dict:
    """Return relative errors |compressed - exact| / |exact| in the Frobenius norm, means over utterances.

    ``layerwise`` is of X_l X_l^T and ``intra_layer`` of X_{l-1} X_l^T, a number for each state and each pair of
    neighbours among those stored. ``gradient`` is of the TGM loss's gradient, of all states together, for a stand-in
    student: the teacher's own states, projected at random on half their dimensions. As its Gram matrices are near the
    teacher's already, its gradient is a small difference, and more sensitive to errors than an untrained student's.

    Args:
        codec: what is measured.
        held_out: for each utterance its S states, n x D each; none of the codec's sample.
    """
    found: dict[str, list[list[float]]] = {"layerwise": [], "intra_layer": [], "gradient": []}
    for utterance in held_out:
        exact = [state[None, :MOST_FRAMES].float() for state in utterance]
        if not torch.isfinite(torch.stack(exact).sum()):
            continue
        kept, bases = compressed(codec.to(exact[0].device), exact)
        pairs = [(index, index) for index in range(len(exact))] + list(pairwise(range(len(exact))))
        errors = []
        for left, right in pairs:
            gram = exact[left] @ exact[right].mT
            rows = kept[left] if bases is None or left == right else kept[left] @ bases.overlap(right)
            errors.append(float((rows @ kept[right].mT - gram).norm() / gram.norm().clamp_min(1e-12)))
        found["layerwise"].append(errors[: len(exact)])
        if len(exact) > 1:
            found["intra_layer"].append(errors[len(exact) :])
            found["gradient"].append([gradient_error(exact, kept, bases, stand_in(exact))])
    return {
        name: [round(value, 6) for value in torch.tensor(errors).mean(0).tolist()] if errors else []
        for name, errors in found.items()
    } | {"utterances": len(found["layerwise"])}


def compressed(codec: Codec, states: Sequence[Tensor]) -> tuple[list[Tensor], Bases | None]:
    """Return a loss's input of stored ``states`` (S of 1 x n x D): S of 1 x n x d, and the bases if any."""
    rows = torch.stack([codec.encode(place, state) for place, state in enumerate(states)])  # S x 1 x n x row
    given = codec.give(rows, Frames([], [states[0].shape[1]], None), codec.numbers, torch.float32)
    if codec.bases is None:
        return list(codec.decode(rows)), None
    return given.hidden_states.coordinates(codec.numbers)


def stand_in(exact: Sequence[Tensor]) -> list[Tensor]:
    """Return states (1 x n x D/2 each) of a student near its teacher: the teacher's own, projected at random."""
    width = exact[0].shape[-1]
    half = max(width // 2, 1)
    projection = torch.randn(width, half, generator=torch.Generator().manual_seed(0)) / half**0.5
    return [state @ projection.to(state.device) for state in exact]


def gradient_error(
    exact: Sequence[Tensor], kept: Sequence[Tensor], bases: Bases | None, student: Sequence[Tensor]
) -> float:
    """Return the relative error of the TGM loss's gradient, of all states together.

    Args:
        exact: the teacher's M states, 1 x n x D each.
        kept, bases: the same as :func:`compressed` gives them.
        student: M states, 1 x n x D_s each.
    """
    student = [state.detach().requires_grad_() for state in student]
    with torch.enable_grad():  # a validation may be what fills the cache
        losses = [tgm_loss(exact, student, None), tgm_loss(kept, student, None, bases=bases)]
        wanted, found = (
            torch.cat([part.flatten() for part in torch.autograd.grad(loss.total.sum(), student)]) for loss in losses
        )
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))
