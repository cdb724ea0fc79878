"""The convolutions from samples to features, under the names of fairseq's ``ConvFeatureExtractionModel``.

Shapes: B utterances, C channels of a convolution, T frames of it.
"""

import math
from collections.abc import Sequence

from fairseq.modules import Fp32LayerNorm, TransposeLast
from torch import Tensor, nn

from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.encoder.group_norm import ValidGroupNorm
from fairseq_star.encoder.running_norm import RUNNING, Past, RecentNorm, RunningNorm


def _group_norm(config: EncoderConfig, number: int) -> nn.Module | None:
    return None if number else ValidGroupNorm(config.conv_layers[0].channels)


def _layer_norm(config: EncoderConfig, number: int) -> nn.Module:
    return nn.Sequential(TransposeLast(), Fp32LayerNorm(config.conv_layers[number].channels), TransposeLast())


def _running_norm(config: EncoderConfig, number: int) -> nn.Module | None:
    step = math.prod(layer.stride for layer in config.conv_layers[1:])
    if number:
        return None
    channels, context = config.conv_layers[0].channels, config.norm_context_frames
    return RecentNorm(channels, step, context) if context else RunningNorm(channels, step)


NORMS = {"default": _group_norm, "layer_norm": _layer_norm, RUNNING: _running_norm}
"""``extractor_mode`` -> builder of the norm after convolution ``number`` (from 0), None where it has none."""


class ConvBlock(nn.Sequential):
    """A convolution, its norm if it has one, GELU; children are numbered as fairseq's, whose second is a dropout."""

    def __init__(self, convolution: nn.Conv1d, norm: nn.Module | None):
        norms = [] if norm is None else [norm]
        super().__init__(convolution, nn.Identity(), *norms, nn.GELU())
        self.geometry = FrameGeometry(convolution.kernel_size[0], convolution.stride[0])

    def forward(self, x: Tensor, num_samples: Sequence[int] | Tensor | None = None, past: Past | None = None) -> Tensor:
        """Return the block's output (B x C x T) for its input.

        Args:
            num_samples: of each utterance, valid at its input; statistics of a group norm are over these alone, over
                all when None.
            past: the state of a stream's running norm, and where a running norm leaves its own.
        """
        for module in self:
            if isinstance(module, ValidGroupNorm):
                x = module(x, None if num_samples is None else self.geometry.all_num_frames(num_samples))
            elif isinstance(module, RunningNorm):
                x = module(x, past)
            else:
                x = module(x)
        return x


class FeatureExtractor(nn.Module):
    """The blocks of an encoder of ``config``."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.conv_layers = nn.ModuleList()
        channels = 1
        for number, layer in enumerate(config.conv_layers):
            convolution = nn.Conv1d(channels, layer.channels, layer.kernel, layer.stride, bias=config.conv_bias)
            nn.init.kaiming_normal_(convolution.weight)
            self.conv_layers.append(ConvBlock(convolution, NORMS[config.extractor_mode](config, number)))
            channels = layer.channels

    def forward(
        self, source: Tensor, num_samples: Sequence[int] | Tensor | None = None, past: Past | None = None
    ) -> Tensor:
        """Return features (B x C x T) of ``source`` (B x samples); the other arguments as of the first block."""
        first, *others = self.conv_layers
        x = first(source.unsqueeze(1), num_samples, past)
        for block in others:
            x = block(x)
        return x
