"""The module of a whole-utterance student that TorchScript, ONNX and ``.pt2`` files hold.

It runs the encoder's own forward pass (``SpeechEncoder.run``). It takes raw audio, normalizes it where the student's
config says so, and returns every hidden state. Lengths are tensors, so that no shape depends on them, and features
depend neither on the batch nor on the (finite) numbers in ``source`` past ``num_samples``. A row that is empty or
shorter than a frame has 0 frames; its states are finite padding.

Shapes: B utterances, T frames of the longest one, D width, L layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_star.deploy.attention import Attend
from fairseq_star.encoder.attention import Context, Whole, attention
from fairseq_star.encoder.group_norm import standardized, valid_frames
from fairseq_star.formats.student import Student

OUTPUTS = ("last_hidden_state", "hidden_states", "frame_lengths")


class InferenceStudent(nn.Module):
    """``student`` for inference alone.

    Args:
        attend: how attention under a mask of keys is computed.
    """

    def __init__(self, student: Student, attend: Attend = attention):
        super().__init__()
        self.encoder = student.model.for_inference()
        self.normalize, self.attend = student.normalize, attend

    def forward(self, source: Tensor, num_samples: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the hidden states of raw audio.

        Args:
            source: B x samples, float32.
            num_samples: B, int64, valid samples of each row, from 0 on; all when None.

        Returns:
            ``last_hidden_state`` (B x T x D, in a pre-norm student after the encoder's final norm), ``hidden_states``
            (L+1 x B x T x D: the first layer's input, then each layer's output) and ``frame_lengths`` (B): frames past
            them are padding.
        """
        if num_samples is None:
            last, states = self.whole(source)
            return last, states, torch.full((len(source),), last.size(1), device=source.device)
        return self.padded(source, num_samples)

    def whole(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first two for a batch without padding."""
        if self.normalize:
            source = F.layer_norm(source, source.shape[1:])
        return self._run(source, None, Whole())

    def padded(self, source: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return all three for a batch with padding."""
        if self.normalize:
            source = standardized(source, valid_frames(num_samples, source))
        frame_lengths = self.encoder.geometry.all_num_frames(num_samples)
        return *self._run(source, num_samples, _Valid(frame_lengths, self.attend)), frame_lengths

    def _run(self, source: Tensor, num_samples: Tensor | None, context: Context) -> tuple[Tensor, Tensor]:
        states = self.encoder.run(source, context, num_samples=num_samples).hidden_states
        return self.encoder.finished(states[-1]), torch.stack(states)


class _Valid(Whole):
    """Whole utterances whose lengths are a tensor."""

    def __init__(self, frame_lengths: Tensor, attend: Attend):
        super().__init__()
        self.frame_lengths, self.function = frame_lengths, attend

    def padded(self, features: Tensor) -> Tensor:
        like = features[..., 0]
        # A row without frames attends to its first, which is zeros: over no key, the softmax would be nan.
        self.mask = valid_frames(self.frame_lengths.clamp(min=1), like)[:, None] > 0
        return valid_frames(self.frame_lengths, like) == 0

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, bias: Tensor | None = None
    ) -> Tensor:
        return self.function(query, key, value, self.mask)
