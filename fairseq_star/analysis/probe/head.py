"""The trainable part of a probe: s3prl's learned sum of layers, then one linear layer.

Shapes: N items (frames or utterances), L layers, D width, C classes.
"""

import threading
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, CHUNK = 1024, 8192
STEPS = 600
EVALUATED_AT = (25, 50, 100, 200, 300, 400, 500, STEPS)  # small tasks are best early, large ones at the end
LEARNING_RATE = 1e-2  # initial; it falls to 0
_FIRST_WEIGHTS = threading.Lock()  # torch draws them from the one generator that all threads share


class WeightedSumHead(nn.Module):
    """``logits = W ((h - mean) / deviation) + b`` with ``h = sum over l of softmax(w)_l x_l``.

    Layers are not normalized one by one, as in s3prl's ``Featurizer`` at its defaults. Mean and deviation are those of
    ``h`` over the training items for the current ``w``: the head stays linear, but learns features of any scale equally
    fast.

    Args:
        features: N x L x D, the training items.
        num_classes: C.
    """

    def __init__(self, features: Tensor, num_classes: int):
        super().__init__()
        num_layers, width = features.shape[1:]
        self.layer_logits = nn.Parameter(torch.zeros(num_layers))
        self.linear = nn.Linear(width, num_classes)
        nn.init.zeros_(self.linear.bias)
        mean, second = torch.zeros(num_layers, width), torch.zeros(width, num_layers, num_layers)
        for chunk in features.split(CHUNK):
            mean += chunk.float().sum(0)
        mean /= len(features)
        for chunk in features.split(CHUNK):
            centred = (chunk.float() - mean).permute(2, 1, 0)  # D x L x n
            second += centred @ centred.transpose(1, 2)
        self.register_buffer("mean", mean)
        self.register_buffer("covariance", second / len(features))  # D x L x L

    @property
    def layer_weights(self) -> Tensor:
        """Softmax weights of the layers, L."""
        return self.layer_logits.softmax(0)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, N x C, of ``x``, N x L x D."""
        weights = self.layer_weights
        summed = torch.bmm(weights.expand(len(x), 1, -1), x.float())[:, 0]  # einsum would copy x, transposed
        variance = torch.einsum("dlm,l,m->d", self.covariance, weights, weights)
        normalized = (summed - weights @ self.mean) / (variance.clamp_min(0) + 1e-8).sqrt()
        return self.linear(normalized)


class Trained(NamedTuple):
    """Outcome of training a head."""

    correct: Tensor  # N test items, bool
    layer_weights: Tensor  # L, they sum to 1
    dev_accuracy: float
    num_steps: int  # the best on dev


def train_head(
    train: tuple[Tensor, Tensor], dev: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], num_classes: int, seed: int
) -> Trained:
    """Train a head with Adam, keep its best weights on ``dev`` of several steps, and test them.

    Args:
        train, dev, test: features (N x L x D) and class numbers (N; -1 is never correct).
        num_classes: C.
        seed: for the linear layer's initial weights and the mini-batches.
    """
    with _FIRST_WEIGHTS, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = WeightedSumHead(train[0], num_classes)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    best, best_state, best_step = (-1.0, 0.0), None, 0
    order = torch.empty(0, dtype=torch.long)
    for step in range(1, STEPS + 1):
        if len(order) < min(BATCH, len(train[0])):
            order = torch.randperm(len(train[0]), generator=generator)
        chosen, order = order[:BATCH], order[BATCH:]
        loss = F.cross_entropy(head(train[0][chosen]), train[1][chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step in EVALUATED_AT and (score := _score(head, *dev)) > best:
            best, best_step = score, step
            best_state = {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(best_state)
    return Trained(_correct(head, *test), head.layer_weights.detach(), best[0], best_step)


@torch.no_grad()
def _correct(head: WeightedSumHead, features: Tensor, classes: Tensor) -> Tensor:
    predicted = torch.cat([head(chunk).argmax(1) for chunk in features.split(CHUNK)])
    return predicted == classes


@torch.no_grad()
def _score(head: WeightedSumHead, features: Tensor, classes: Tensor) -> tuple[float, float]:
    """Return the accuracy, then (for ties on small dev parts) the negative loss over known classes."""
    logits = torch.cat([head(chunk) for chunk in features.split(CHUNK)])
    loss = F.cross_entropy(logits, classes, ignore_index=-1)
    return (logits.argmax(1) == classes).float().mean().item(), -loss.item()
