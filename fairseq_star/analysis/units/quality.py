"""What clusters are worth: how tight, how evenly used, and how well they agree with phones where those are known.

Measures as HuBERT's authors took them (arXiv 2106.07447), from counts of (phone, cluster) pairs of frames.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Quality:
    """Of K clusters on frames that they were not fitted to, or on the sample itself where there are no others."""

    frames: int
    clusters: int
    inertia: float  # mean squared distance to the nearest centroid
    relative_inertia: float  # of the frames' variance: 0 is perfect, 1 is one cluster
    used: int  # clusters that any frame is in
    perplexity: float  # 2 to the entropy of their use: K where all are used alike
    phone_purity: float | None = None  # share of frames that their cluster's commonest phone is right for
    cluster_purity: float | None = None  # share of frames that their phone's commonest cluster is right for
    phone_information: float | None = None  # share of the phones' entropy that clusters tell (PNMI)

    def __str__(self) -> str:
        lines = [
            f"frames looked at     {self.frames:>10,}",
            f"inertia              {self.inertia:>10.4g}   ({self.relative_inertia:.1%} of the variance)",
            f"clusters in use      {self.used:>10,}   of {self.clusters:,}; as many as {self.perplexity:.1f} even ones",
        ]
        if self.phone_purity is not None:
            lines += [
                f"phone purity         {self.phone_purity:>10.1%}",
                f"cluster purity       {self.cluster_purity:>10.1%}",
                f"phone information    {self.phone_information:>10.1%}   (PNMI)",
            ]
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Plain values."""
        return asdict(self)


def quality(
    numbers: np.ndarray, distances: np.ndarray, variance: float, num_clusters: int, phones: Sequence[str] | None = None
) -> Quality:
    """Measure an assignment.

    Args:
        numbers, distances: of each frame, its cluster and the squared distance to it.
        variance: of the frames: their mean squared distance to their mean.
        num_clusters: K.
        phones: of each frame, where they are known.
    """
    use = np.bincount(numbers, minlength=num_clusters) / len(numbers)
    told = {}
    if phones is not None:
        counts = np.zeros((len(set(phones)), num_clusters))
        np.add.at(counts, (np.unique(phones, return_inverse=True)[1], numbers), 1)
        joint = counts / counts.sum()
        phone_entropy = _entropy(joint.sum(1))
        information = phone_entropy + _entropy(joint.sum(0)) - _entropy(joint.ravel())
        told = {
            "phone_purity": float(joint.max(0).sum()),
            "cluster_purity": float(joint.max(1).sum()),
            "phone_information": float(information / phone_entropy) if phone_entropy else 1.0,
        }
    inertia = float(distances.mean())
    return Quality(
        frames=len(numbers),
        clusters=num_clusters,
        inertia=inertia,
        relative_inertia=inertia / variance if variance else 0.0,
        used=int((use > 0).sum()),
        perplexity=float(2 ** _entropy(use)),
        **told,
    )


def _entropy(shares: np.ndarray) -> float:
    """In bits."""
    above = shares[shares > 0]
    return float(-(above * np.log2(above)).sum())
