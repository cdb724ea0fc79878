"""How slicing computes; the defaults are what it does, the rest is for ``benchmarks.slicing`` to take away."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Method:
    """Steps of slicing that can be left out, and its constants.

    Raises nothing: these are no user's options.
    """

    scale: bool = True  # channels of the residual stream are scaled to make up for those left out
    refit: bool = True  # convolutions after the first are fitted again; off: rows and columns taken out
    greedy: bool = True  # channels of convolutions and feed-forward units by what they explain together; off: by energy
    correct: bool = True  # a sub-layer is fitted to the teacher's sum less the student's own residual; off: to its part
    ridge: float = 1e-2  # share of the inputs' mean variance
    convolution_ridge: float = 1e-4
    products: torch.dtype = torch.float32  # precision of moments' products; their sums and all solves are in float64
    first_utterances: int = 16  # of the sample, that channels are chosen and convolutions fitted by
    rows: int = 1_500  # time steps of an utterance that a convolution is fitted to
    unit_rows: int = 6_000  # frames of all utterances that feed-forward units are chosen by


DEFAULT = Method()
