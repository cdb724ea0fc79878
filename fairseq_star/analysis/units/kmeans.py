"""k-means centroids of frames, and their quality: inertia, evenness of use, agreement with phones.

More frames than fit into memory: scikit-learn's ``MiniBatchKMeans`` reads a file minibatch by minibatch. The measures
are those of HuBERT (arXiv 2106.07447), from counts of (phone, cluster) pairs of frames.

Shapes: F frames, D width, K clusters.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from tqdm import tqdm

from fairseq_star.errors import StarError

BATCH = 10_000  # frames, as in fairseq's learn_kmeans.py
PASSES = 20
TOLERANCE = 1e-3  # of the inertia, from one pass to the next


def fit(frames: np.ndarray, num_clusters: int, seed: int) -> tuple[np.ndarray, list[float]]:
    """Return centroids (K x D, float32) of ``frames`` (F x D), and the mean inertia of each pass.

    k-means++ on the first minibatch, then passes over all frames in random order until the inertia of a pass falls by
    less than :data:`TOLERANCE`. No cluster is replaced later (``reassignment_ratio=0``), as in fairseq's
    ``simple_kmeans/learn_kmeans.py``.

    Raises:
        StarError: scikit-learn is missing, or there are fewer frames than clusters.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise StarError("units need scikit-learn: pip install 'fairseq-star[units]'") from error
    if len(frames) < num_clusters:
        raise StarError(f"--clusters {num_clusters}: there are {len(frames)} frames only; lower it or raise --frames")
    batch = min(max(BATCH, 3 * num_clusters), len(frames))
    kmeans = MiniBatchKMeans(num_clusters, batch_size=batch, n_init=1, reassignment_ratio=0.0, random_state=seed)
    rng, history = np.random.default_rng(seed), []
    passes = tqdm(range(PASSES), f"{num_clusters} clusters of {len(frames):,} frames", unit="pass", disable=None)
    for _ in passes:
        history.append(_one_pass(kmeans, frames, batch, rng))
        passes.set_postfix(inertia=f"{history[-1]:.4g}")
        if len(history) > 1 and history[-2] - history[-1] < TOLERANCE * history[-2]:
            break
    return kmeans.cluster_centers_.astype(np.float32), history


def _one_pass(kmeans, frames: np.ndarray, batch: int, rng: np.random.Generator) -> float:
    # Neighbouring frames are alike: a minibatch is drawn from blocks all over the file, each read whole.
    blocks = rng.permutation(-(-len(frames) // 100))
    total, count = 0.0, 0
    per_batch = -(-batch // 100)
    for first in range(0, len(blocks), per_batch):
        chosen = blocks[first : first + per_batch]
        part = np.concatenate([frames[100 * number : 100 * number + 100] for number in chosen])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about memory leaks on Windows, and few distinct points
            kmeans.partial_fit(part)
        total, count = total + kmeans.inertia_, count + len(part)
    return total / count


def assign(frames: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest centroid of each of ``frames`` (F x D): numbers (F) and squared distances (F)."""
    from sklearn.metrics import pairwise_distances_argmin_min

    return pairwise_distances_argmin_min(frames, centroids, metric="sqeuclidean")


@dataclass(frozen=True)
class Quality:
    """Measures of K clusters over some frames."""

    frames: int
    clusters: int
    inertia: float  # mean squared distance to the nearest centroid
    relative_inertia: float  # of the frames' variance: 0 is perfect, 1 is one cluster
    used: int  # clusters with any frame in them
    perplexity: float  # 2 to the entropy of their use: K where all are used equally
    phone_purity: float | None = None  # share of frames whose phone is the commonest of their cluster
    cluster_purity: float | None = None  # share of frames whose cluster is the commonest of their phone
    phone_information: float | None = None  # share of the phones' entropy that clusters explain (PNMI)

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
        return asdict(self)


def quality(
    numbers: np.ndarray, distances: np.ndarray, variance: float, num_clusters: int, phones: Sequence[str | None] = ()
) -> Quality:
    """Measure an assignment.

    Args:
        numbers, distances: each frame's cluster and squared distance to its centroid.
        variance: the frames' mean squared distance to their mean.
        num_clusters: K.
        phones: each frame's, None where it is not known; empty where none is.
    """
    use = np.bincount(numbers, minlength=num_clusters) / len(numbers)
    agreement = {}
    known = np.array([phone is not None for phone in phones], bool)
    if known.any():
        names, places = np.unique([phone for phone in phones if phone is not None], return_inverse=True)
        counts = np.zeros((len(names), num_clusters))
        np.add.at(counts, (places, numbers[known]), 1)
        joint = counts / counts.sum()
        phone_entropy = _entropy(joint.sum(1))
        information = phone_entropy + _entropy(joint.sum(0)) - _entropy(joint.ravel())
        agreement = {
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
        **agreement,
    )


def _entropy(shares: np.ndarray) -> float:
    """Entropy in bits."""
    above = shares[shares > 0]
    return float(-(above * np.log2(above)).sum())
