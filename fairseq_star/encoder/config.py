"""The configuration of a speech encoder of any family."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from fairseq_star.encoder.frames import ConvLayer, FrameGeometry, parse_conv_layers
from fairseq_star.errors import StarError

# Field of EncoderConfig -> its name in fairseq's configs and in this project's student's.
FAIRSEQ_NAMES = {
    "embed_dim": "encoder_embed_dim",
    "ffn_embed_dim": "encoder_ffn_embed_dim",
    "num_layers": "encoder_layers",
    "num_heads": "encoder_attention_heads",
    **{name: name for name in ("extractor_mode", "conv_bias", "conv_pos", "conv_pos_groups")},
    **{name: name for name in ("layer_norm_first", "activation_fn")},
}
STREAMING = ("chunk_frames", "left_context_frames", "right_context_frames", "norm_context_frames")
"""Fields of :class:`EncoderConfig`, under the same names in a student's settings, that no other library has."""
BY_LAYER = {"num_heads": "layer_attention_heads", "ffn_embed_dim": "layer_ffn_embed_dims"}
"""Fields of :class:`EncoderConfig` that may differ by layer -> options of a student's settings."""
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "dropout_input")
"""The four places where a student drops units in training, under fairseq's names."""


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of a wav2vec 2.0-like encoder.

    Raises:
        StarError: sizes by layer that do not go with each other or with the rest.
    """

    conv_layers: Sequence[ConvLayer]
    embed_dim: int
    ffn_embed_dim: int | tuple[int, ...]  # one number, or one a layer
    num_layers: int
    num_heads: int | tuple[int, ...]  # likewise
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
    # Sizes of the chunks it processes (0: the whole utterance at once), the present one first; none: never in chunks.
    chunk_frames: tuple[int, ...] = ()
    left_context_frames: int = 0  # frames before its chunk that a frame attends to
    right_context_frames: int = 0  # frames after its chunk, likewise
    norm_context_frames: int = 0  # of a running norm, K of encoder/running_norm.py's RecentNorm; 0: RunningNorm
    head_dim: int | None = None  # width of a head; None: embed_dim / num_heads

    def __post_init__(self):
        for name, option in BY_LAYER.items():
            sizes = getattr(self, name)
            if isinstance(sizes, int):
                continue
            if len(sizes) != self.num_layers or min(sizes) < 1:
                raise StarError(
                    f"model.{option}={list(sizes)} must be {self.num_layers} numbers from 1 on, one a layer"
                )
            alike = len(set(sizes)) == 1  # one spelling for one shape
            object.__setattr__(self, name, sizes[0] if alike else tuple(sizes))
        one_number = isinstance(self.num_heads, int)
        if one_number and self.head_dim is not None and self.head_dim * self.num_heads == self.embed_dim:
            object.__setattr__(self, "head_dim", None)
        if self.head_dim is None and not one_number:
            raise StarError("model.layer_attention_heads needs model.head_dim, the width of a head in all layers")
        if self.head_dim is not None and (self.chunk_frames or (self.relative_position and not one_number)):
            raise StarError(
                "model.head_dim and model.layer_attention_heads cannot be of a student of model.chunk_frames, nor "
                "different heads of a WavLM: streams keep, and a WavLM's layers share, tensors of equal heads"
            )

    @property
    def head_width(self) -> int:
        """Return W, the width of a head, in all layers."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def layer_heads(self) -> tuple[int, ...]:
        """Return the attention heads of each layer."""
        return self._by_layer(self.num_heads)

    @property
    def layer_ffn_dims(self) -> tuple[int, ...]:
        """Return the feed-forward units of each layer."""
        return self._by_layer(self.ffn_embed_dim)

    def _by_layer(self, sizes: int | tuple[int, ...]) -> tuple[int, ...]:
        return (sizes,) * self.num_layers if isinstance(sizes, int) else sizes

    def check_uniform(self, holder: str) -> None:
        """Check that all layers are alike, and heads together as wide as the encoder.

        Args:
            holder: the format that requires it, for the message.

        Raises:
            StarError: they are not; the message names the option.
        """
        differing = {option: list(getattr(self, name)) for name, option in BY_LAYER.items()
                     if not isinstance(getattr(self, name), int)}  # fmt: skip
        differing |= {} if self.head_dim is None else {"head_dim": self.head_dim}
        for option, value in differing.items():
            raise StarError(
                f"{holder}: its layers are alike, with heads as wide as all together, and this student has "
                f"model.{option}={value}; torchaudio, TorchScript, ONNX and pt2 files hold it"
            )

    @classmethod
    def of_student(cls, settings: Any) -> "EncoderConfig":
        """Build from a student's settings (``models.starhubert.StarHubertConfig``, or hydra's form of it).

        Raises:
            StarError: its convolutions are not understood, or its sizes do not go with each other.
        """
        width = settings.encoder_embed_dim
        conv_layers = parse_conv_layers(settings.conv_feature_layers, width=width)
        values = {own: getattr(settings, theirs) for own, theirs in FAIRSEQ_NAMES.items()}
        plain = {own: value.value if isinstance(value, Enum) else value for own, value in values.items()}
        by_layer = {name: getattr(settings, option) for name, option in BY_LAYER.items()}
        plain |= {name: tuple(sizes) for name, sizes in by_layer.items() if sizes}
        plain["head_dim"] = settings.head_dim
        if settings.chunk_frames:
            plain |= {name: getattr(settings, name) for name in STREAMING}
            plain["chunk_frames"] = tuple(settings.chunk_frames)
        return cls(conv_layers=conv_layers, projection=conv_layers[-1].channels != width, **plain)

    @property
    def geometry(self) -> FrameGeometry:
        """Return the geometry from samples to frames."""
        return FrameGeometry.of(self.conv_layers)

    def fairseq_settings(self) -> dict[str, Any]:
        """Return the options of fairseq's configs for an encoder whose layers are alike; plain values."""
        named = {theirs: getattr(self, own) for own, theirs in FAIRSEQ_NAMES.items()}
        return {**named, "conv_feature_layers": str([tuple(layer) for layer in self.conv_layers])}

    def student_settings(self) -> dict[str, Any]:
        """Return the options of this project's student for an encoder; plain values."""
        settings = {**self.fairseq_settings(), **{name: getattr(self, name) for name in STREAMING}}
        for name, option in BY_LAYER.items():
            sizes = getattr(self, name)
            settings[option] = None if isinstance(sizes, int) else list(sizes)
            settings[FAIRSEQ_NAMES[name]] = sizes if isinstance(sizes, int) else max(sizes)
        return {**settings, "head_dim": self.head_dim, "chunk_frames": list(self.chunk_frames) or None}


# Convolutions of all models of fairseq's, transformers' and torchaudio's, where a config does not list them.
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
