"""k-means of more frames than fit into memory: scikit-learn's ``MiniBatchKMeans`` over a file, minibatch by minibatch.

Shapes: F frames, D width, K clusters.
"""

import warnings

import numpy as np
from tqdm import tqdm

from fairseq_star.errors import StarError

BATCH = 10_000  # frames, as fairseq's learn_kmeans.py takes them
PASSES = 20
TOLERANCE = 1e-3  # of the inertia, from one pass to the next


def fit(frames: np.ndarray, num_clusters: int, seed: int) -> tuple[np.ndarray, list[float]]:
    """Centroids (K x D, float32) of ``frames`` (F x D), and the mean inertia of each pass.

    k-means++ on the first minibatch, then passes over all frames in random order until the inertia of a pass falls by
    less than :data:`TOLERANCE`. No cluster is given up for a new one later (``reassignment_ratio=0``), as in fairseq's
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
    # Neighbouring frames are alike: a minibatch is drawn from blocks all over the file, which are read whole.
    blocks = rng.permutation(-(-len(frames) // 100))
    total, count = 0.0, 0
    per_batch = -(-batch // 100)
    for first in range(0, len(blocks), per_batch):
        chosen = blocks[first : first + per_batch]
        part = np.concatenate([frames[100 * number : 100 * number + 100] for number in chosen])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of memory leaks on Windows, and of few distinct points
            kmeans.partial_fit(part)
        total, count = total + kmeans.inertia_, count + len(part)
    return total / count


def assign(frames: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest centroid of each of ``frames`` (F x D): numbers (F) and squared distances (F)."""
    from sklearn.metrics import pairwise_distances_argmin_min

    return pairwise_distances_argmin_min(frames, centroids, metric="sqeuclidean")
