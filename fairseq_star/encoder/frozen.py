"""A speech encoder that is not trained: a teacher, or a student that is looked at."""

from typing import Collection, Sequence

import torch
from torch import Tensor, nn

from fairseq_star.encoder.frames import Frames
from fairseq_star.encoder.modules import Encoding, SpeechEncoder


class FrozenEncoder(nn.Module):
    """A frozen speech encoder, always in eval mode: no dropout, no layer drop, no masking, no gradient.

    A teacher belongs to the task, not to model or criterion, so that no checkpoint, optimizer or DDP wrapper ever sees
    it. It makes the batch's one frame padding mask, which student and loss use too.
    """

    def __init__(
        self,
        model: SpeechEncoder,
        *,
        sample_rate: int,
        normalize: bool,
        family: str = "",
    ):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.config, self.geometry = model.config, model.geometry
        self.sample_rate = sample_rate  # Hz
        self.normalize = normalize  # whether it was trained on audio of zero mean and unit variance
        self.family = family  # for people, such as "HuBERT (fairseq)"
        self.eval()

    @property
    def num_layers(self) -> int:
        return self.config.num_layers

    @property
    def embed_dim(self) -> int:
        return self.config.embed_dim

    @property
    def num_heads(self) -> int:
        return self.config.num_heads

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def train(self, mode: bool = True) -> "FrozenEncoder":
        return super().train(False)

    def follow(self, source: Tensor, dtype: torch.dtype | None = None) -> None:
        """Move to the device of ``source``, and to its precision unless ``dtype`` says otherwise."""
        dtype = dtype or source.dtype
        parameter = next(self.parameters())
        if parameter.device != source.device or parameter.dtype != dtype:
            self.to(device=source.device, dtype=dtype)

    @torch.no_grad()
    def forward(
        self,
        source: Tensor,
        num_samples: Sequence[int],
        *,
        last_layer: int | None = None,
        attention_layers: Collection[int] = (),
    ) -> Encoding:
        """Hidden states of ``source`` (B x samples, ``num_samples[b]`` valid); see :meth:`SpeechEncoder.encode`."""
        frames = Frames.of(self.geometry, num_samples, source)
        dtype = next(self.parameters()).dtype
        return self.model.encode(source.to(dtype), frames, last_layer=last_layer, attention_layers=attention_layers)
