"""The module of a whole-utterance student that TorchScript, ONNX and ``.pt2`` files hold.

It runs the encoder's own forward pass (``SpeechEncoder.run``). It takes raw audio, normalizes it where the student's
config says so, and returns every hidden state, or the outputs of a fine-tuned student's head. Lengths are tensors, so
that no shape depends on them, and features depend neither on the batch nor on the (finite) numbers in ``source`` past
``num_samples``. A row that is empty or shorter than a frame has 0 frames; its states are finite padding.

Shapes: B utterances, T frames of the longest one, D width, L layers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_star.deploy.attention import Attend
from fairseq_star.encoder.attention import Context, Whole, attention
from fairseq_star.encoder.group_norm import standardized, valid_frames
from fairseq_star.formats.student import Student

INPUTS = ("source", "num_samples")
OUTPUTS = ("last_hidden_state", "hidden_states", "frame_lengths")


def output_names(student: Student) -> tuple[str, ...]:
    """Return the names of what ``student`` gives as a program, in order."""
    return OUTPUTS if student.head is None else student.head.output_names


def head_metadata(student: Student, inputs: Sequence[str] = INPUTS) -> dict[str, str]:
    """Return what a program's file says of its head, nothing for an encoder."""
    if student.head is None:
        return {}
    downsample_rate = student.model.geometry.downsample_rate
    return student.head.metadata(inputs, sample_rate=student.sample_rate, downsample_rate=downsample_rate)


class InferenceStudent(nn.Module):
    """``student`` for inference alone.

    Args:
        attend: how attention under a mask of keys is computed.
    """

    def __init__(self, student: Student, attend: Attend = attention):
        super().__init__()
        self.encoder = student.model.for_inference()
        self.normalize, self.attend, self.head = student.normalize, attend, student.head

    def forward(self, source: Tensor, num_samples: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the hidden states of raw audio, or a head's outputs.

        Args:
            source: B x samples, float32.
            num_samples: B, int64, valid samples of each row, from 0 on; all when None.

        Returns:
            ``last_hidden_state`` (B x T x D, in a pre-norm student after the encoder's final norm), ``hidden_states``
            (L+1 x B x T x D: the first layer's input, then each layer's output) and ``frame_lengths`` (B): frames past
            them are padding. Of a fine-tuned student the head's outputs, such as ``log_probs`` (B x T x tokens), in
            place of the first two.
        """
        return self.whole(source) if num_samples is None else self.padded(source, num_samples)

    def whole(self, source: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of a batch without padding."""
        if self.normalize:
            source = F.layer_norm(source, source.shape[1:])
        return self._run(source, None, Whole(), None)

    def padded(self, source: Tensor, num_samples: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of a batch with padding."""
        if self.normalize:
            source = standardized(source, valid_frames(num_samples, source))
        frame_lengths = self.encoder.geometry.all_num_frames(num_samples)
        return self._run(source, num_samples, _Valid(frame_lengths, self.attend), frame_lengths)

    def _run(
        self, source: Tensor, num_samples: Tensor | None, context: Context, frame_lengths: Tensor | None
    ) -> tuple[Tensor, ...]:
        states = self.encoder.run(source, context, num_samples=num_samples).hidden_states
        last = self.encoder.finished(states[-1])
        if frame_lengths is None:
            # Summed, not made of sizes: those are numbers of the example in a traced program.
            frame_lengths = torch.ones_like(last[..., 0], dtype=torch.long).sum(1)
        if self.head is not None:
            return (*self.head([*states[:-1], last], frame_lengths), frame_lengths)
        return last, torch.stack(states), frame_lengths


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
