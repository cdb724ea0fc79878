"""One vector and one label an utterance: hidden states summed by learned weights, averaged over valid frames.

The weights are the softmax of one parameter a state, as in SUPERB's featurizer (s3prl's ``Featurizer``); the mean over
time is that of an utterance's own frames, so that it depends on neither padding nor batch.

Shapes: B utterances, T frames of the longest one, D width, L layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fairseq_star.encoder.group_norm import valid_frames


class Pooling(nn.Module):
    """A learned sum of L+1 hidden states, averaged over the valid frames.

    Args:
        num_states: L+1; all count alike at first.
    """

    def __init__(self, num_states: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_states))

    def forward(self, states: Sequence[Tensor], frame_lengths: Tensor) -> Tensor:
        """Return B x D, zeros for an utterance without frames.

        Args:
            states: L+1 of B x T x D.
            frame_lengths: B, int64, the valid frames of each utterance.
        """
        valid = valid_frames(frame_lengths, states[0][..., 0]).unsqueeze(-1)
        shares = torch.softmax(self.weights.float(), dim=0)
        # Averaged first: the sum over states then is of one frame each.
        summed = sum(share * (state * valid).sum(1) for share, state in zip(shares, states, strict=True))
        return (summed / frame_lengths.clamp(min=1).unsqueeze(1)).type_as(self.weights)


class UtteranceClassifier(nn.Module):
    """:class:`Pooling` and a linear layer to the scores of labels.

    Args:
        num_states: L+1.
        width: D.
        num_labels: of the closed set.
    """

    def __init__(self, num_states: int, width: int, num_labels: int):
        super().__init__()
        self.pooling = Pooling(num_states)
        self.proj = nn.Linear(width, num_labels)

    def forward(self, states: Sequence[Tensor], frame_lengths: Tensor) -> Tensor:
        """Return the scores, B x labels, before the softmax; arguments of :meth:`Pooling.forward`."""
        return self.proj(self.pooling(states, frame_lengths))
