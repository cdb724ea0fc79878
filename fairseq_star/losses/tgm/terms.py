"""The states of each term and their weights, common to all forms of the loss."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """The two TGM terms over M states, before the division by an utterance's number of pairs.

    With G_l = X_l X_l^T and the cross-layer matrix C_l = X_{l-1} X_l^T (paper, section 2: layer-wise and intra-layer
    TGM distillation), an utterance's loss is

        sum_l layerwise_coef * d(G_l^T, G_l^S)  +  sum_l intra_coef * d(C_l^T, C_l^S)

    over ``layerwise_states`` and ``pairs``; d is a *sum* over entries (mse, l1) or rows (kl).
    """

    num_states: int
    first_layerwise_state: int
    layerwise_weight: float
    intra_layer_weight: float

    @property
    def layerwise_states(self) -> range:
        """Return the states with a layer-wise term; empty where its weight is 0, so that its work is skipped."""
        return range(self.first_layerwise_state, self.num_states) if self.layerwise_weight != 0 else range(0)

    @property
    def pairs(self) -> range:
        """Return l of the pairs (l-1, l) with an intra-layer term; empty where its weight is 0."""
        return range(1, self.num_states) if self.intra_layer_weight != 0 else range(0)

    @property
    def layerwise_coef(self) -> float:
        """Return the weight of one state's distance: the term is a mean over its states."""
        return self.layerwise_weight / (self.num_states - self.first_layerwise_state)

    @property
    def intra_coef(self) -> float:
        """Return the weight of one pair's distance: the term is a mean over the M - 1 pairs."""
        return self.intra_layer_weight / (self.num_states - 1)
