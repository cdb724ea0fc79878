"""The first pass of a compressed teacher cache: utterances to fit its codec to, others to tell how exact it is."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor
from tqdm import tqdm

from fairseq_star.data.dataset import DistillationDataset
from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.errors import StarError
from fairseq_star.teacher.cache.codec import Codec
from fairseq_star.teacher.cache.codec_errors import measure
from fairseq_star.teacher.cache.codec_fit import fit_codec

SAMPLE_FRAMES = 30_000  # ten minutes; 39 frames a dimension of HuBERT Base
HELD_OUT = 8  # utterances


def choose(dataset: DistillationDataset, geometry: FrameGeometry) -> tuple[list[int], list[int]]:
    """Numbers of utterances to fit to, of :data:`SAMPLE_FRAMES` frames together where there are so many, and of those
    held out, at most a quarter of all; always the same ones of a data set.

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
        dim: as of :func:`fairseq_star.teacher.cache.codec_fit.fit_codec`.

    Raises:
        StarError: there is but one utterance, or none can be used.
    """
    chosen, held_out = choose(dataset, geometry)

    def states(indices: Sequence[int], doing: str) -> Iterator[Sequence[Tensor]]:
        for index in tqdm(indices, f"teacher cache: {doing}", unit="utt", leave=False, disable=None):
            # What cannot be read is named when its batch comes.
            if (source := dataset[index]["source"]) is not None:
                yield states_of(source)

    codec = fit_codec(states(chosen, "fitting"), numbers, dim)
    codec.about["held_out"] = measure(codec, states(held_out, "trying"))
    return codec


def told(codec: Codec) -> str:
    """A codec's accuracy in one sentence."""
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
