"""One chunk through a streaming encoder: ``(window of audio, state) -> (frames, state)``, without what came before it.

What it runs are the encoder's own modules, so that what it gives is what the encoder gives of the whole utterance in
chunks of that size (``encoder/chunks.py``). The convolutions have no state: a window holds all
samples that its frames hear, and so begins before the last one's end.

Shapes: B streams, C frames of a chunk, L and R frames of context before and after it, D width, H heads of W = D / H, K
width of the positional convolution, P layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_star.encoder.chunks import heads_attention, positions_weight
from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.encoder.frozen import Hearer
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.encoder.running_norm import extract_window
from fairseq_star.errors import StarError

UNSEEN = -1e9  # of a score: exp is 0, and a row of nothing else still no nan
Attend = Callable[..., Tensor]
"""What takes and gives what :func:`joined` does."""


def check_streams(student: Hearer) -> None:
    """See that a student can hear speech as it comes.

    Raises:
        StarError: it hears whole utterances only, or audio that is normalized over the whole utterance.
    """
    if not student.model.config.chunk_frames:
        raise StarError(
            "this student hears whole utterances only; train one that streams, with model._name=starhubert_stream"
        )
    if student.normalize:
        raise StarError(
            "this student hears audio of zero mean and unit variance, which no stream tells of an utterance before its "
            "end; train one of a teacher that hears audio as it is"
        )


class StreamState(NamedTuple):
    """What a stream keeps from one chunk to the next; every tensor begins with the streams."""

    heard: Tensor  # B x 2 x channels, of the first norm: sums of all frames so far, and of their squares
    features: Tensor  # B x K//2 x D, what the positional convolution sees of the past
    keys: Tensor  # B x P x H x L x W, of the attention of each layer
    values: Tensor  # B x P x H x L x W
    num_past: Tensor  # B, int64, frames given out so far

    def of(self, streams: list[int]) -> "StreamState":
        """The state of some of the streams."""
        return StreamState(*(value[streams] for value in self))

    def put(self, streams: list[int], state: "StreamState") -> None:
        """Take over the ``state`` of some of the streams."""
        for kept, new in zip(self, state, strict=True):
            kept[streams] = new


@dataclass(frozen=True)
class StreamShape:
    """The numbers that a stream's windows and state follow from."""

    receptive_field: int  # samples that one frame hears
    downsample_rate: int  # samples from one frame to the next
    num_layers: int
    embed_dim: int
    num_heads: int
    first_channels: int  # of the first convolution
    past_features: int  # frames, that the positional convolution sees before a frame
    left_context_frames: int
    right_context_frames: int

    @classmethod
    def of(cls, config: EncoderConfig) -> "StreamShape":
        """Of a streaming encoder."""
        geometry = config.geometry
        return cls(
            receptive_field=geometry.receptive_field,
            downsample_rate=geometry.downsample_rate,
            num_layers=config.num_layers,
            embed_dim=config.embed_dim,
            num_heads=config.num_heads,
            first_channels=config.conv_layers[0].channels,
            past_features=config.conv_pos // 2,
            left_context_frames=config.left_context_frames,
            right_context_frames=config.right_context_frames,
        )

    @property
    def geometry(self) -> FrameGeometry:
        """From samples to frames."""
        return FrameGeometry(self.receptive_field, self.downsample_rate)

    def window(self, chunk_frames: int) -> int:
        """Samples of a window: those that a chunk's frames, and the ones it looks ahead to, hear."""
        return (chunk_frames + self.right_context_frames - 1) * self.downsample_rate + self.receptive_field

    def first_state(self, num_streams: int) -> StreamState:
        """The state of streams that heard nothing yet."""
        width = self.embed_dim // self.num_heads
        context = (num_streams, self.num_layers, self.num_heads, self.left_context_frames, width)
        return StreamState(
            heard=torch.zeros(num_streams, 2, self.first_channels),
            features=torch.zeros(num_streams, self.past_features, self.embed_dim),
            keys=torch.zeros(context),
            values=torch.zeros(context),
            num_past=torch.zeros(num_streams).long(),
        )


class StreamStep(nn.Module):
    """A chunk of B independent streams through a streaming encoder, for inference alone.

    Windows may be of any number of chunk frames, the same for all streams of a call; what comes out is exact where it
    was the same in every call of a stream.

    Args:
        products: write attention out as products of what is kept and what is new, so that nothing that is kept is
            copied to join the two: for onnxruntime. In torch its own attention is faster, and never holds all weights.
    """

    def __init__(self, encoder: SpeechEncoder, products: bool = False):
        super().__init__()
        self.attend = by_products if products else joined
        self.shape = StreamShape.of(encoder.config)
        self.feature_extractor, self.layer_norm = encoder.feature_extractor, encoder.layer_norm
        self.projection = encoder.post_extract_proj or nn.Identity()
        convolution = encoder.encoder.pos_conv[0]
        self.register_buffer("positions_weight", positions_weight(convolution).detach())  # once, not at every call
        self.register_buffer("positions_bias", convolution.bias.detach())
        self.groups = convolution.groups
        self.layers, self.final_norm = encoder.encoder.layers, encoder.encoder.layer_norm
        self.pre_norm = encoder.config.layer_norm_first
        self.eval().requires_grad_(False)

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
        """The chunk's hidden states, and the state after it.

        Args:
            window: B x ``shape.window(C)`` samples, each window beginning C x ``downsample_rate`` samples after the
                stream's last one.
            num_frames: B, int64, how many of the C + R frames of the window are audio: all but at a stream's end,
                where zeros fill the window.
            heard, features, keys, values, num_past: the :class:`StreamState`.

        Returns:
            ``last_hidden_state`` (B x C x D, in a pre-norm student after the encoder's final norm), ``hidden_states``
            (P+1 x B x C x D: the first layer's input, then each layer's output), and the state's five tensors. Of a
            last chunk, frames from ``num_frames`` on are without meaning.
        """
        x, heard = extract_window(self.feature_extractor, window, heard, num_past)
        x = self.projection(self.layer_norm(x.transpose(1, 2)))  # B x C+R x D
        new = self._arange(x.size(1), x) < num_frames[:, None]
        x = x * new[..., None]  # no frame sees what is none
        chunk, kept = x.size(1) - self.shape.right_context_frames, features.size(1)
        seen = torch.cat([features, x], dim=1)
        features = seen[:, chunk : chunk + kept]
        seen = F.pad(seen.transpose(1, 2), (0, self.positions_weight.size(2) - 1 - kept))
        positions = F.conv1d(seen, self.positions_weight, self.positions_bias, groups=self.groups)
        x = x + F.gelu(positions).transpose(1, 2)
        if not self.pre_norm:
            x = self.final_norm(x)

        past = self._arange(keys.size(3), x) >= keys.size(3) - num_past[:, None]
        mask = torch.cat([past, new], dim=1)[:, None]  # B x 1 x L+C+R
        windows = [_Recent(self.attend, keys[:, n], values[:, n], mask) for n in range(len(self.layers))]
        x = x.transpose(0, 1)  # C+R x B x D, as the layers take it
        states = [x]
        for layer, attended in zip(self.layers, windows, strict=True):
            x, _ = layer(x, self_attn_padding_mask=attended, need_weights=False)
            states.append(x)
        last = self.final_norm(x) if self.pre_norm else x
        return (
            last[:chunk].transpose(0, 1),
            torch.stack(states)[:, :chunk].transpose(1, 2),
            heard[..., chunk : chunk + 1].squeeze(-1),  # a number as index is fixed for good by torch 2.6
            features,
            self._kept(keys, [attended.new_keys for attended in windows], chunk),
            self._kept(values, [attended.new_values for attended in windows], chunk),
            num_past + chunk,
        )

    @staticmethod
    def _kept(past: Tensor, new: list[Tensor], chunk: int) -> Tensor:
        """The L frames before the next chunk: of ``past`` (B x P x H x L x W) and each layer's B x H x C+R x W."""
        return torch.cat([past, torch.stack(new, dim=1)], dim=3)[:, :, :, chunk : chunk + past.size(3)]

    @staticmethod
    def _arange(stop: int, like: Tensor) -> Tensor:
        return torch.arange(stop, device=like.device)


class _Recent:
    """A layer's attention to the L frames before a chunk, which were kept, the chunk, and the R frames after it."""

    def __init__(self, attend: Attend, past_keys: Tensor, past_values: Tensor, mask: Tensor):
        self.function, self.past, self.mask = attend, (past_keys, past_values), mask  # B x H x L x W

    def attend(self, query: Tensor, key: Tensor, value: Tensor, num_heads: int, dropout: float) -> Tensor:
        query, self.new_keys, self.new_values = (
            x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value)
        )
        out = self.function(query, *self.past, self.new_keys, self.new_values, self.mask)
        return out.transpose(1, 2).flatten(2)


def joined(query: Tensor, past_keys: Tensor, past_values: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention of ``query`` (B x H x C+R x W) to past and new keys under ``mask`` (B x 1 x L+C+R), by torch's own."""
    keys, values = torch.cat([past_keys, keys], dim=2), torch.cat([past_values, values], dim=2)
    return heads_attention(query, keys, values, mask[:, None])


def by_products(
    query: Tensor, past_keys: Tensor, past_values: Tensor, keys: Tensor, values: Tensor, mask: Tensor
) -> Tensor:
    """The same, written out."""
    query = query * query.size(-1) ** -0.5
    scores = torch.cat([query @ past_keys.transpose(2, 3), query @ keys.transpose(2, 3)], dim=3)
    weights = torch.softmax(scores + UNSEEN * (~mask[:, None]).float(), dim=3)
    num_past = past_keys.size(2)
    return weights[..., :num_past] @ past_values + weights[..., num_past:] @ values
