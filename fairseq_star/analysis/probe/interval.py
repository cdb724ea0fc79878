"""Confidence intervals: a bootstrap over test clusters (speakers or utterances) and seeds."""

from collections.abc import Sequence

import numpy as np

DRAWS, LEVEL = 2000, 0.95


class Bootstrap:
    """95 % percentile intervals of accuracies and of functions of several of them.

    A draw takes clusters with replacement, all items of a cluster together, and, independently, seeds with replacement.
    Every model sees the same draws, so that differences are paired.

    Args:
        clusters: the cluster of each test item.
        num_seeds: heads trained for each model.
    """

    def __init__(self, clusters: Sequence[str], num_seeds: int):
        names, self.members = np.unique(clusters, return_inverse=True)
        self.num_clusters = len(names)
        self.sizes = np.bincount(self.members, minlength=self.num_clusters)
        rng = np.random.default_rng(0)
        drawn = rng.integers(self.num_clusters, size=(DRAWS, self.num_clusters))
        # How often each cluster (seed) is in each draw, rather than the draws themselves.
        self.times = np.stack([np.bincount(of_one, minlength=self.num_clusters) for of_one in drawn])
        drawn = rng.integers(num_seeds, size=(DRAWS, num_seeds))
        self.seed_share = np.stack([np.bincount(of_one, minlength=num_seeds) for of_one in drawn]) / num_seeds

    def draws(self, correct: np.ndarray) -> np.ndarray:
        """The accuracy in each draw, from ``correct`` (seeds x items, bool)."""
        by_cluster = np.stack([np.bincount(self.members, of_seed, self.num_clusters) for of_seed in correct])
        accuracies = (self.times @ by_cluster.T) / (self.times @ self.sizes)[:, None]  # draws x seeds
        return (accuracies * self.seed_share).sum(1)


def interval(draws: np.ndarray) -> tuple[float, float]:
    """Low and high end."""
    tail = (1 - LEVEL) / 2 * 100
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)
