"""Settings of slicing; other than the defaults are for ``benchmarks.slicing`` alone, to measure each step."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Method:
    """Steps of slicing that can be switched off, and its constants; no user option sets them."""

    scale: bool = True  # scale channels of the residual stream to compensate for those left out
    refit: bool = True  # refit the convolutions after the first; off: select rows and columns of the weight alone
    greedy: bool = True  # choose channels and feed-forward units by what they explain together; off: by energy
    correct: bool = True  # fit a sub-layer to the teacher's sum minus the student's residual; off: to its own output
    ridge: float = 1e-2  # share of the inputs' mean variance
    convolution_ridge: float = 1e-4
    products: torch.dtype = torch.float32  # precision of moments' products; their sums and all solves are in float64
    first_utterances: int = 16  # used to choose channels and to fit convolutions
    rows: int = 1_500  # time steps of an utterance that a convolution is fitted to
    unit_rows: int = 6_000  # frames of all utterances that feed-forward units are chosen on


DEFAULT = Method()
