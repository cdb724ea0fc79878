"""The student as one module that torch can script and trace, of torchaudio's parts: what TorchScript and ONNX hold.

It differs from torchaudio's own model in what it takes and gives. It takes raw audio, normalizing it where the student
wants that. It gives every hidden state. Its group norm is taken over an utterance's own frames, as the student's is, so
features do not depend on the batch, nor on what (finite) numbers stand in ``source`` past ``num_samples``. A row that
is empty or shorter than a frame has 0 frames, as in torchaudio; its states are padding, finite and without meaning.

Shapes: B utterances, T frames of the longest one, D width, L layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fairseq_star.deploy.key_attention import KeyAttention
from fairseq_star.formats.student import Student
from fairseq_star.formats.torchaudio import build_model, torchaudio_state

OUTPUTS = ("last_hidden_state", "hidden_states", "frame_lengths")


class InferenceStudent(nn.Module):
    """``student`` for inference alone. Its linear layers, convolutions and norms are torchaudio's modules.

    Args:
        attention: what becomes of torchaudio's self-attention; it gets a mask of keys.
    """

    def __init__(self, student: Student, attention: type[nn.Module] = KeyAttention):
        super().__init__()
        model = build_model(torchaudio_state(student))
        transformer = model.encoder.transformer
        # g v / |v| is formed once, not at every call; neither script nor ONNX could express the parametrization.
        parametrize.remove_parametrizations(transformer.pos_conv_embed.conv, "weight")
        self.normalize = student.normalize
        self.pre_norm = student.config.layer_norm_first
        self.conv_blocks = nn.ModuleList(_ConvBlock(block) for block in model.feature_extractor.conv_layers)
        self.feature_projection = model.encoder.feature_projection
        self.pos_conv_embed = transformer.pos_conv_embed
        self.layer_norm = transformer.layer_norm
        self.layers = transformer.layers
        for layer in self.layers:
            layer.attention = attention(layer.attention)
        self.eval().requires_grad_(False)

    def forward(self, source: Tensor, num_samples: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states of raw audio.

        Args:
            source: B x samples, float32.
            num_samples: B, int64, how many of each row are audio, from 0 on; all when None.

        Returns:
            ``last_hidden_state`` (B x T x D, in a pre-norm student after the encoder's final norm), ``hidden_states``
            (L+1 x B x T x D: the first layer's input, then each layer's output) and ``frame_lengths`` (B): frames past
            them are padding.
        """
        if self.normalize:
            source = _normalized(source, num_samples)
        x, frame_lengths = source.unsqueeze(1), num_samples  # B x 1 x samples
        for block in self.conv_blocks:
            x, frame_lengths = block(x, frame_lengths)  # B x channels x frames
        x = self.feature_projection(x.transpose(1, 2))  # B x T x D

        num_utterances, num_frames = x.size(0), x.size(1)
        attend: Tensor | None = None
        if frame_lengths is not None:
            valid = _valid(frame_lengths, num_frames)
            x = x * valid.unsqueeze(-1)
            # A row without any frame attends to its first, which is zeros: over none, the softmax would be nan.
            attended = _valid(frame_lengths.clamp(min=1), num_frames) > 0
            attend = attended[:, None, None]
        x = x + self.pos_conv_embed(x)
        if not self.pre_norm:
            x = self.layer_norm(x)
        states = [x]
        for layer in self.layers:
            x, _ = layer(x, attend)
            states.append(x)
        if self.pre_norm:
            x = self.layer_norm(x)
        if frame_lengths is None:
            frame_lengths = torch.full((num_utterances,), num_frames, dtype=torch.long, device=x.device)
        return x, torch.stack(states), frame_lengths


class _ConvBlock(nn.Module):
    """torchaudio's ``ConvLayerBlock``, its group norm over valid frames."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.kernel_size, self.stride = block.kernel_size, block.stride
        self.conv = block.conv
        grouped = isinstance(block.layer_norm, nn.GroupNorm)
        self.group_norm = _ValidGroupNorm(block.layer_norm) if grouped else None
        self.layer_norm = None if grouped else block.layer_norm

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = self.conv(x)
        if lengths is not None:
            # Never below 0, and never a negative number divided: onnxruntime rounds those up, torch down.
            lengths = (lengths - self.kernel_size + self.stride).clamp(min=0)
            lengths = torch.div(lengths, self.stride, rounding_mode="floor")
        if self.group_norm is not None:
            x = self.group_norm(x, lengths)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return F.gelu(x), lengths


class _ValidGroupNorm(nn.Module):
    """``fairseq_star.encoder.group_norm.ValidGroupNorm`` (one group a channel) with lengths in a tensor."""

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.num_groups, self.weight, self.bias, self.eps = norm.num_groups, norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:  # B x C x T, B
        if lengths is None:
            return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        x = _standardized(x, _valid(lengths, x.size(2)).unsqueeze(1), self.eps)
        return x * self.weight[:, None] + self.bias[:, None]


def _valid(lengths: Tensor, longest: int) -> Tensor:
    """B x longest, 1 where valid and 0 where padded."""
    return (torch.arange(longest, device=lengths.device) < lengths[:, None]).float()


def _standardized(x: Tensor, valid: Tensor, eps: float = 1e-5) -> Tensor:
    """``x`` of mean 0 and variance 1 over its last axis where ``valid`` is 1, if it is anywhere; 0 elsewhere."""
    num_valid = valid.sum(-1, keepdim=True).clamp(min=1)
    mean = (x * valid).sum(-1, keepdim=True) / num_valid
    x = (x - mean) * valid
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) / num_valid + eps)


def _normalized(source: Tensor, num_samples: Tensor | None) -> Tensor:
    """Each row's audio with mean 0 and variance 1."""
    if num_samples is None:
        return F.layer_norm(source, [source.size(1)])
    return _standardized(source, _valid(num_samples, source.size(1)))
