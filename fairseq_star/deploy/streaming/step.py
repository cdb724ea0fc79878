"""One chunk through a streaming encoder: ``(window of audio, state) -> (frames, state)``.

It runs the encoder's own forward pass, so that the frames equal those of the whole utterance in chunks of that size
(``encoder/chunks.py``). The convolutions have no state: a window holds all samples in its frames' receptive fields, and
so overlaps the previous one.

Shapes: B streams, C frames of a chunk, L and R frames of context before and after it, D width, H heads of W = D / H, K
width of the positional convolution, P layers.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_star.deploy.attention import AttendRecent, joined
from fairseq_star.encoder.attention import audible_frames, without_silence
from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.encoder.frozen import SpeechModel
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.encoder.running_norm import Past, RecentNorm, RunningNorm
from fairseq_star.errors import StarError


def check_streams(student: SpeechModel) -> None:
    """Check that a student can process a stream.

    Raises:
        StarError: it processes whole utterances only, or audio that is normalized over the whole utterance.
    """
    if not student.model.config.chunk_frames:
        raise StarError(
            "this student processes whole utterances only; train one that streams, with model._name=starhubert_stream"
        )
    if student.normalize:
        raise StarError(
            "this student takes audio of zero mean and unit variance, and a stream does not have an utterance's mean "
            "and variance before its end; train one of a teacher of audio that is not normalized"
        )


class StreamState(NamedTuple):
    """State of B streams between two chunks."""

    heard: Tensor  # B x num_sums x channels, sums of the first norm (running_norm.py)
    features: Tensor  # B x past_features x D, past input of the positional convolution
    keys: Tensor  # B x P x H x L x W, of the attention of each layer
    values: Tensor  # B x P x H x L x W
    num_past: Tensor  # B, int64, frames returned so far

    def of(self, streams: list[int]) -> "StreamState":
        """Return the state of some of the streams."""
        return StreamState(*(value[streams] for value in self))

    def put(self, streams: list[int], state: "StreamState") -> None:
        """Replace the ``state`` of some of the streams, in place."""
        for old, new in zip(self, state, strict=True):
            old[streams] = new


@dataclass(frozen=True)
class StreamShape:
    """The numbers that a stream's windows and state follow from."""

    receptive_field: int  # samples that one frame depends on
    downsample_rate: int  # samples from one frame to the next
    num_layers: int
    embed_dim: int
    num_heads: int
    first_channels: int  # of the first convolution
    past_features: int  # frames before a chunk, of the encoder's input
    left_context_frames: int
    right_context_frames: int
    num_sums: int = 2  # of each channel of the first norm

    @classmethod
    def of(cls, config: EncoderConfig) -> "StreamShape":
        """Return the shape of a streaming encoder."""
        geometry, skip_silence = config.geometry, bool(config.norm_context_frames)
        return cls(
            receptive_field=geometry.receptive_field,
            downsample_rate=geometry.downsample_rate,
            num_layers=config.num_layers,
            embed_dim=config.embed_dim,
            num_heads=config.num_heads,
            first_channels=config.conv_layers[0].channels,
            past_features=max(config.conv_pos // 2, skip_silence * config.left_context_frames),
            left_context_frames=config.left_context_frames,
            right_context_frames=config.right_context_frames,
            num_sums=(RecentNorm if skip_silence else RunningNorm).num_sums,
        )

    @property
    def geometry(self) -> FrameGeometry:
        """From samples to frames."""
        return FrameGeometry(self.receptive_field, self.downsample_rate)

    def window(self, chunk_frames: int) -> int:
        """Return the samples of a window: the receptive field of a chunk's frames and of those it looks ahead to."""
        return (chunk_frames + self.right_context_frames - 1) * self.downsample_rate + self.receptive_field

    def first_state(self, num_streams: int) -> StreamState:
        """Return the state of streams that received nothing yet."""
        width = self.embed_dim // self.num_heads
        context = (num_streams, self.num_layers, self.num_heads, self.left_context_frames, width)
        return StreamState(
            heard=torch.zeros(num_streams, self.num_sums, self.first_channels),
            features=torch.zeros(num_streams, self.past_features, self.embed_dim),
            keys=torch.zeros(context),
            values=torch.zeros(context),
            num_past=torch.zeros(num_streams).long(),
        )


class StreamStep(nn.Module):
    """A chunk of B independent streams through a streaming encoder, for inference alone.

    Windows may be of any number of chunk frames, the same for all streams of a call; frames are exact where it is the
    same in every call of a stream.

    Args:
        attend: attention of a chunk's frames to past and new ones; ``joined_by_products`` for onnxruntime. torch's own
            is faster in torch, and never holds all weights.
    """

    def __init__(self, encoder: SpeechEncoder, attend: AttendRecent = joined):
        super().__init__()
        self.encoder, self.attend = encoder.for_inference(), attend
        self.shape = StreamShape.of(encoder.config)

    def forward(
        self,
        window: Tensor,
        num_frames: Tensor,
        heard: Tensor,
        features: Tensor,
        keys: Tensor,
        values: Tensor,
        num_past: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the chunk's hidden states, and the state after it.

        Args:
            window: B x ``shape.window(C)`` samples, each window beginning C x ``downsample_rate`` samples after the
                stream's last one.
            num_frames: B, int64, valid ones of the C + R frames of the window: all but at a stream's end,
                where zeros fill the window.
            heard, features, keys, values, num_past: the :class:`StreamState`.

        Returns:
            ``last_hidden_state`` (B x C x D, in a pre-norm student after the encoder's final norm), ``hidden_states``
            (P+1 x B x C x D: the first layer's input, then each layer's output), and the state's five tensors. Of a
            last chunk, frames from ``num_frames`` on are padding.
        """
        context = _Recent(
            self.attend, features, keys, values, num_past, num_frames, bool(self.encoder.config.norm_context_frames)
        )
        past = Past(heard, num_past)
        states = self.encoder.run(window, context, past=past).hidden_states
        chunk = states[0].size(1) - self.shape.right_context_frames
        return (
            self.encoder.finished(states[-1])[:, :chunk],
            torch.stack(states)[:, :, :chunk],
            past.sums[..., chunk : chunk + 1].squeeze(-1),  # a number as index is fixed for good by torch 2.6
            context.features[:, chunk : chunk + features.size(1)],
            context.recent(keys, context.new_keys, chunk),
            context.recent(values, context.new_values, chunk),
            num_past + chunk,
        )


class _Recent:
    """The :class:`~fairseq_star.encoder.attention.Context` of a chunk of a stream: the L frames before it, its own, and
    the R after it."""

    def __init__(
        self,
        attend: AttendRecent,
        features: Tensor,
        keys: Tensor,
        values: Tensor,
        num_past: Tensor,
        num_frames: Tensor,
        skip_silence: bool,
    ):
        self.function, self.features, self.keys, self.values = attend, features, keys, values
        self.num_past, self.num_frames, self.skip_silence = num_past, num_frames, skip_silence
        self.new_keys, self.new_values = [], []  # B x H x C+R x W, layer by layer

    def padded(self, features: Tensor) -> Tensor:
        new = self._arange(features.size(1)) < self.num_frames[:, None]
        num_kept = self.keys.size(3)
        past = self._arange(num_kept) >= num_kept - self.num_past[:, None]
        self.mask = torch.cat([past, new], dim=1)[:, None]  # B x 1 x L+C+R
        if self.skip_silence:
            kept = self.features[:, self.features.size(1) - num_kept :]
            audible = audible_frames(torch.cat([kept, features], dim=1))
            self.mask = without_silence(self.mask, audible[:, None])
        return ~new

    def place(self, pos_conv: nn.Module, features: Tensor) -> Tensor:
        convolution, activation, num_kept = pos_conv[0], pos_conv[-1], self.features.size(1)
        before = convolution.kernel_size[0] // 2
        self.features = torch.cat([self.features, features], dim=1)
        seen = self.features if before == num_kept else self.features[:, num_kept - before :]
        seen = F.pad(seen.transpose(1, 2), (0, convolution.kernel_size[0] - 1 - before))
        positions = F.conv1d(seen, convolution.weight, convolution.bias, groups=convolution.groups)
        return features + activation(positions).transpose(1, 2)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, bias: Tensor | None = None
    ) -> Tensor:
        layer = len(self.new_keys)
        self.new_keys.append(key)
        self.new_values.append(value)
        return self.function(query, self.keys[:, layer], self.values[:, layer], key, value, self.mask)

    @staticmethod
    def recent(past: Tensor, new: list[Tensor], chunk: int) -> Tensor:
        """Return the L frames before the next chunk: of ``past`` (B x P x H x L x W) and each layer's B x H x C+R x
        W."""
        return torch.cat([past, torch.stack(new, dim=1)], dim=3)[:, :, :, chunk : chunk + past.size(3)]

    def _arange(self, stop: int) -> Tensor:
        return torch.arange(stop, device=self.keys.device)
