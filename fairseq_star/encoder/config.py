"""What a speech encoder is built from, whatever family it is of."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from fairseq_star.encoder.frames import ConvLayer, FrameGeometry, parse_conv_layers

# Field of EncoderConfig -> what fairseq's configs, and this project's student's, call it.
FAIRSEQ_NAMES = {
    "embed_dim": "encoder_embed_dim",
    "ffn_embed_dim": "encoder_ffn_embed_dim",
    "num_layers": "encoder_layers",
    "num_heads": "encoder_attention_heads",
    **{name: name for name in ("extractor_mode", "conv_bias", "conv_pos", "conv_pos_groups")},
    **{name: name for name in ("layer_norm_first", "activation_fn")},
}
STREAMING = ("chunk_frames", "left_context_frames", "right_context_frames")
"""Fields of :class:`EncoderConfig`, under the same names in a student's settings, that no other library has."""
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "dropout_input")
"""The four places where a student drops units in training, under fairseq's names."""


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of a wav2vec 2.0-like encoder."""

    conv_layers: Sequence[ConvLayer]
    embed_dim: int
    ffn_embed_dim: int
    num_layers: int
    num_heads: int
    conv_pos: int  # width of the positional convolution in frames (of all of its layers together)
    conv_pos_groups: int
    # default: group norm on the first convolution; layer_norm: on every one; running_norm: encoder/running_norm.py
    extractor_mode: str = "default"
    conv_bias: bool = False
    activation_fn: str = "gelu"
    layer_norm_first: bool = False  # pre-norm
    projection: bool = True  # post_extract_proj
    input_norm: bool = True  # LayerNorm of the convolutional features
    pos_conv_depth: int = 1  # more than 1: data2vec's stack instead of one weight-normed convolution
    layer_norm_eps: float = 1e-5
    relative_position: tuple[int, int] | None = None  # WavLM: buckets, greatest distance in frames
    # Sizes of the chunks it hears in (0: the whole utterance at once), that in use first; none: never in chunks.
    chunk_frames: tuple[int, ...] = ()
    left_context_frames: int = 0  # frames before its chunk that a frame attends to
    right_context_frames: int = 0  # frames after its chunk, likewise

    @classmethod
    def of_student(cls, settings: Any) -> "EncoderConfig":
        """The encoder of a student's settings (``models.starhubert.StarHubertConfig``, or what hydra makes of it).

        Raises:
            StarError: its convolutions are not understood.
        """
        width = settings.encoder_embed_dim
        conv_layers = parse_conv_layers(settings.conv_feature_layers, width=width)
        values = {own: getattr(settings, theirs) for own, theirs in FAIRSEQ_NAMES.items()}
        plain = {own: value.value if isinstance(value, Enum) else value for own, value in values.items()}
        if settings.chunk_frames:
            plain |= {name: getattr(settings, name) for name in STREAMING}
            plain["chunk_frames"] = tuple(settings.chunk_frames)
        return cls(conv_layers=conv_layers, projection=conv_layers[-1].channels != width, **plain)

    @property
    def geometry(self) -> FrameGeometry:
        """From samples to frames."""
        return FrameGeometry.of(self.conv_layers)

    def fairseq_settings(self) -> dict[str, Any]:
        """What fairseq's configs say of an encoder, and this project's student's; plain values."""
        named = {theirs: getattr(self, own) for own, theirs in FAIRSEQ_NAMES.items()}
        return {**named, "conv_feature_layers": str([tuple(layer) for layer in self.conv_layers])}

    def student_settings(self) -> dict[str, Any]:
        """What this project's student's settings say of an encoder; plain values."""
        streaming = {name: getattr(self, name) for name in STREAMING}
        return {**self.fairseq_settings(), **streaming, "chunk_frames": list(self.chunk_frames) or None}


# Convolutions of all models of fairseq's, transformers' and torchaudio's, where a config does not say them.
HUBERT_CONVOLUTIONS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] * 2"
HUBERT_BASE = EncoderConfig(
    conv_layers=parse_conv_layers(HUBERT_CONVOLUTIONS),
    embed_dim=768,
    ffn_embed_dim=3072,
    num_layers=12,
    num_heads=12,
    conv_pos=128,
    conv_pos_groups=16,
)
