"""Group norm over time that sees an utterance's own samples only.

The first convolution of HuBERT Base, wav2vec 2.0 Base and the student is followed by a group norm whose statistics run
over the whole time axis. In a padded batch that mixes the padding into every frame: an utterance's features then
depend on its neighbours. Here the statistics are taken over the valid frames, so that they are the utterance's own.
"""

from typing import Callable, Sequence

import torch
from fairseq.models.wav2vec.wav2vec2 import ConvFeatureExtractionModel
from fairseq.modules import Fp32GroupNorm
from torch import Tensor, nn

from fairseq_star.encoder.frames import FrameGeometry


class ValidGroupNorm(Fp32GroupNorm):
    """fairseq's ``Fp32GroupNorm`` (one group a channel, same weights) with statistics over valid frames only."""

    @classmethod
    def wrap(cls, norm: nn.GroupNorm) -> "ValidGroupNorm":
        """Take over ``norm``'s parameters themselves, so that state dicts and optimizers see no difference."""
        wrapped = cls(norm.num_groups, norm.num_channels, eps=norm.eps, affine=norm.affine)
        wrapped.weight, wrapped.bias = norm.weight, norm.bias
        return wrapped

    def forward(self, x: Tensor, frame_lengths: Sequence[int] | None = None) -> Tensor:
        """Normalize ``x`` (B x C x T) over its first ``frame_lengths[b]`` frames; None = over all, as fairseq does.

        Frames beyond are set to zero. Statistics are float32 whatever the input's precision.
        """
        if frame_lengths is None or min(frame_lengths) == x.size(-1):
            return super().forward(x)
        # One native kernel an utterance: no masked temporaries of this, the largest activation of the network.
        return torch.cat([self._one(x, b, n) for b, n in enumerate(frame_lengths)])

    def _one(self, x: Tensor, utterance: int, num_frames: int) -> Tensor:
        valid = super().forward(x[utterance : utterance + 1, :, :num_frames])
        return nn.functional.pad(valid, (0, x.size(-1) - num_frames))


def replace_group_norms(extractor: ConvFeatureExtractionModel, wrap: Callable[[nn.GroupNorm], nn.Module]) -> None:
    """Replace every group norm of a fairseq feature extractor, in place, by what ``wrap`` makes of it."""
    for block in extractor.conv_layers:
        for name, module in block.named_children():
            if isinstance(module, nn.GroupNorm):
                setattr(block, name, wrap(module))


def use_valid_group_norm(extractor: ConvFeatureExtractionModel) -> None:
    """Replace every group norm of a fairseq feature extractor, in place, by one over valid frames."""
    replace_group_norms(extractor, ValidGroupNorm.wrap)


def extract_features(extractor: ConvFeatureExtractionModel, source: Tensor, num_samples: Sequence[int]) -> Tensor:
    """Run a feature extractor over ``source`` (B x samples) and give its features (B x C x T).

    The same as ``extractor(source)``, but telling each ``ValidGroupNorm`` how many of its frames are valid.
    """
    x = source.unsqueeze(1)  # B x 1 x samples
    frame_lengths = list(num_samples)
    for block in extractor.conv_layers:
        for module in block:
            if isinstance(module, ValidGroupNorm):
                x = module(x, frame_lengths)
            else:
                x = module(x)
            if isinstance(module, nn.Conv1d):
                geometry = FrameGeometry(receptive_field=module.kernel_size[0], downsample_rate=module.stride[0])
                frame_lengths = [geometry.num_frames(n) for n in frame_lengths]
    return x
