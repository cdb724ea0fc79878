"""A frozen speech encoder: a teacher, or a trained student."""

from typing import Collection, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_star.encoder.frames import Frames
from fairseq_star.encoder.modules import Encoding, SpeechEncoder
from fairseq_star.encoder.unit_head import UnitHead
from fairseq_star.errors import StarError


class SpeechModel:
    """A speech encoder, ``model``, with its audio format: a frozen encoder, or a student."""

    model: SpeechEncoder
    sample_rate: int  # Hz
    normalize: bool  # whether it takes audio of zero mean and unit variance

    def use_chunks(self, chunk_frames: int) -> None:
        """Process audio in chunks of ``chunk_frames`` from now on; 0: whole utterances at once.

        Raises:
            StarError: a number below 0, or an encoder that processes whole utterances only.
        """
        self.model.use_chunks(chunk_frames)

    @property
    def num_parameters(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def hidden_states(self, audio: Sequence[Tensor | np.ndarray], sample_rate: int) -> list[list[Tensor]]:
        """Return all hidden states of whole utterances; the audio is normalized where the model requires it.

        Args:
            audio: mono utterances of any lengths, each 1-D and of floating point numbers, as they were recorded.
            sample_rate: theirs, in Hz.

        Returns:
            For each utterance L+1 states of n_b x D, its own n_b frames alone (50 a second for HuBERT), the same
            whatever else is in ``audio``: the first layer's input, then every layer's output, that of the last layer
            after a pre-norm encoder's final norm. On the model's device and in its precision.

        Raises:
            StarError: another sample rate than the model's, audio of another form, or shorter than one frame.
        """
        if sample_rate != self.sample_rate:
            raise StarError(
                f"the audio has {sample_rate} Hz and this encoder takes {self.sample_rate} Hz; resample it, for "
                "example with torchaudio.functional.resample"
            )
        parameter, geometry = next(self.model.parameters()), self.model.geometry
        sources = []
        for number, utterance in enumerate(audio):
            source = as_samples(utterance, f"audio[{number}]")
            if len(source) < geometry.receptive_field:
                raise StarError(
                    f"audio[{number}] has {len(source)} samples, fewer than the {geometry.receptive_field} of one frame"
                )
            source = source.to(parameter.device, torch.float32)
            sources.append(F.layer_norm(source, source.shape) if self.normalize else source)
        if not sources:
            return []
        batch = nn.utils.rnn.pad_sequence(sources, batch_first=True).to(parameter.dtype)  # B x samples
        return utterance_states(self.model, batch, Frames.of(geometry, [len(source) for source in sources], batch))


LARGEST = 2.0**31
"""Largest magnitude of a sample: above 1, so that unscaled integers pass."""


def as_samples(audio: Tensor | np.ndarray, name: str) -> Tensor:
    """Return mono audio as a tensor; ``name`` is for messages.

    Raises:
        StarError: it is not 1-D, not of floating point numbers, or has samples that no recording has: one NaN would
            stay in a stream's statistics for good.
    """
    given = audio if isinstance(audio, Tensor) else np.asarray(audio)
    numbers = given.is_floating_point() if isinstance(given, Tensor) else np.issubdtype(given.dtype, np.floating)
    if given.ndim != 1 or not numbers:
        raise StarError(
            f"{name} has shape {tuple(given.shape)} and type {given.dtype}; give a sequence of mono utterances, each "
            "1-D and of floating point numbers from -1 to 1"
        )
    largest = abs(given).max() if len(given) else 0.0
    if not largest <= LARGEST:  # nan is neither
        raise StarError(
            f"{name} has a sample of {float(largest):g}, which no recording has; give finite numbers from -1 to 1"
        )
    # Copied: torch refuses arrays of negative strides or foreign byte order, and warns of read-only ones.
    return given if isinstance(given, Tensor) else torch.from_numpy(np.array(given, np.float32, order="C"))


class FrozenEncoder(SpeechModel, nn.Module):
    """A frozen speech encoder, always in eval mode: no dropout, no layer drop, no masking, no gradient.

    A teacher belongs to the task, not to model or criterion, so that no checkpoint, optimizer or DDP wrapper contains
    it. It makes the batch's one frame padding mask, which student and loss use too.
    """

    def __init__(
        self,
        model: SpeechEncoder,
        *,
        sample_rate: int,
        normalize: bool,
        family: str = "",
        unit_heads: Sequence[UnitHead] = (),
    ):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.config, self.geometry = model.config, model.geometry
        self.sample_rate, self.normalize = sample_rate, normalize
        self.family = family  # for people, such as "HuBERT (fairseq)"
        # A pretrained HuBERT's heads that predict units, one for each set of them.
        self.unit_heads = nn.ModuleList(unit_heads).requires_grad_(False)
        self.eval()

    @property
    def num_layers(self) -> int:
        """Return L, the number of Transformer layers."""
        return self.config.num_layers

    @property
    def embed_dim(self) -> int:
        """Return D, the width of its states."""
        return self.config.embed_dim

    @property
    def num_heads(self) -> int | tuple[int, ...]:
        """Return the attention heads of a layer, one number a layer where they differ."""
        return self.config.num_heads

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stay in eval mode, also as a part of a module in training mode."""
        return super().train(False)

    def follow(self, source: Tensor, dtype: torch.dtype | None = None) -> None:
        """Move to the device of ``source``, and to its precision or, where given, ``dtype``."""
        dtype = dtype or source.dtype
        parameter = next(self.parameters())
        if parameter.device != source.device or parameter.dtype != dtype:
            self.to(device=source.device, dtype=dtype)

    def encode_one(self, samples: Tensor, **wanted) -> Encoding:
        """Return the encoding of one utterance's samples (1-D, as they were recorded), without padding; ``wanted``: see
        :meth:`forward`."""
        source = F.layer_norm(samples, samples.shape) if self.normalize else samples
        return self(source[None].to(next(self.parameters()).device), [len(samples)], **wanted)

    @torch.no_grad()
    def unit_logits(self, states: Tensor, number: int = 0) -> Tensor:
        """Return the logits (N x K, float32) of one of ``unit_heads`` for the last layer's states (N x D)."""
        return self.unit_heads[number](self.model.finished(states))

    @torch.no_grad()
    def forward(
        self,
        source: Tensor,
        num_samples: Sequence[int],
        *,
        last_layer: int | None = None,
        attention_layers: Collection[int] = (),
    ) -> Encoding:
        """Encode ``source`` (B x samples, ``num_samples[b]`` valid); see :meth:`SpeechEncoder.encode`."""
        frames = Frames.of(self.geometry, num_samples, source)
        dtype = next(self.parameters()).dtype
        return self.model.encode(source.to(dtype), frames, last_layer=last_layer, attention_layers=attention_layers)


@torch.no_grad()
def utterance_states(model: SpeechEncoder, source: Tensor, frames: Frames) -> list[list[Tensor]]:
    """Return the L+1 hidden states of each utterance of ``source`` (B x samples), each n_b x D: valid frames alone, the
    last layer's after the final norm of a pre-norm encoder."""
    states = list(model.encode(source, frames).hidden_states)
    states[-1] = model.finished(states[-1])
    return [[state[number, :length] for state in states] for number, length in enumerate(frames.frame_lengths)]
