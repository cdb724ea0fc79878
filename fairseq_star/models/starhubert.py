"""The student: fairseq's wav2vec 2.0 modules, narrow and as deep as the teacher (STaRHuBERT, paper section 3.1)."""

from dataclasses import dataclass, field
from typing import Collection, List, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from fairseq.utils import get_available_activation_fns
from omegaconf import II
from torch import Tensor

from fairseq_star.encoder.config import DROPOUTS, EncoderConfig
from fairseq_star.encoder.fake_quant import BITS
from fairseq_star.encoder.frames import Frames
from fairseq_star.encoder.front_end import NORMS
from fairseq_star.encoder.modules import Encoding, SpeechEncoder
from fairseq_star.encoder.running_norm import RUNNING
from fairseq_star.errors import StarError, exit_on_star_error

# fairseq has the first two of these choices.
EXTRACTOR_MODES = ChoiceEnum(list(NORMS))


@dataclass
class StarHubertConfig(FairseqDataclass):
    """``starhubert``: 22,308,592 parameters."""

    encoder_embed_dim: int = field(default=432, metadata={"help": "width D of the Transformer"})
    encoder_ffn_embed_dim: int = field(default=976, metadata={"help": "inner width of the feed-forward blocks"})
    encoder_layers: int = field(default=12, metadata={"help": "Transformer layers"})
    encoder_attention_heads: int = field(default=8, metadata={"help": "attention heads"})
    layer_attention_heads: Optional[List[int]] = field(
        default=None, metadata={"help": "attention heads of each layer, if they differ; with model.head_dim"}
    )
    layer_ffn_embed_dims: Optional[List[int]] = field(
        default=None, metadata={"help": "inner width of the feed-forward block of each layer, if they differ"}
    )
    head_dim: Optional[int] = field(
        default=None,
        metadata={"help": "width of a head, if heads together are not as wide as the encoder; in all layers the same"},
    )
    conv_feature_layers: str = field(
        default="[(128,10,5)] + [(256,1,1)] + [(256,3,2)]*4 + [(D,1,1)] + [(D,2,2)]*2",
        metadata={"help": "feature extractor as (channels, kernel, stride); D stands for encoder_embed_dim"},
    )
    extractor_mode: EXTRACTOR_MODES = field(
        default="default",
        metadata={
            "help": "default: group norm on the first convolution; layer_norm: on every one; running_norm: as default, "
            "of what was received so far, for streaming students"
        },
    )
    conv_bias: bool = field(default=False, metadata={"help": "bias in the feature extractor"})
    conv_pos: int = field(default=128, metadata={"help": "width of the positional convolution in frames"})
    conv_pos_groups: int = field(default=16, metadata={"help": "groups of the positional convolution"})
    layer_norm_first: bool = field(default=False, metadata={"help": "pre-norm Transformer layers"})
    activation_fn: ChoiceEnum(get_available_activation_fns()) = field(
        default="gelu", metadata={"help": "activation of the feed-forward blocks"}
    )
    dropout: float = field(default=0.1, metadata={"help": "dropout of the Transformer"})
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout of attention weights"})
    activation_dropout: float = field(default=0.1, metadata={"help": "dropout within the feed-forward blocks"})
    dropout_input: float = field(default=0.05, metadata={"help": "dropout of the encoder's input"})
    checkpoint_activations: bool = field(
        default=False, metadata={"help": "recompute activations in backward to save memory"}
    )
    init: ChoiceEnum(["random", "sliced"]) = field(
        default="random",
        metadata={
            "help": "first weights: random, or sliced out of the teacher, whose convolution kernels, heads and kind "
            "of norms the student then must have (docs/slicing.md)"
        },
    )
    init_utterances: int = field(
        default=64, metadata={"help": "with init=sliced: utterances of the training set, by seed, to compute them from"}
    )
    target_params: Optional[float] = field(
        default=None,
        metadata={
            "help": "sizes by a budget: the largest student of the teacher's kernels and heads with at most so "
            "many parameters, such as 22.3e6, and model.encoder_layers layers; its sizes replace those given"
        },
    )
    target_macs: Optional[float] = field(
        default=None,
        metadata={
            "help": "likewise, with at most so many multiply-accumulates over SUPERB's 32 utterances, such as 463.5e9"
        },
    )
    init_layers: Optional[List[int]] = field(
        default=None, metadata={"help": "teacher layers (1-based) that the first layers begin as; default: at random"}
    )
    init_feature_extractor: bool = field(
        default=False, metadata={"help": "begin with the teacher's feature extractor; off: at random"}
    )
    chunk_frames: Optional[List[int]] = field(
        default=None,
        metadata={
            "help": "streaming: process audio in chunks of so many frames (0: whole utterances); of several an "
            "update draws one, and the first is the one in use later; default: the architecture's"
        },
    )
    left_context_frames: int = field(default=128, metadata={"help": "frames before its chunk that a frame sees"})
    right_context_frames: int = field(default=0, metadata={"help": "frames after its chunk that a frame sees"})
    norm_context_frames: int = field(
        default=0,
        metadata={
            "help": "streaming: frames after which the first norm forgets, loud ones counting for more, and silence is "
            "padding; 0: all audio so far alike, so that speech after a long pause is not recognized"
        },
    )
    weight_bits: Optional[int] = field(
        default=None,
        metadata={
            "help": "8 or 4: compute as a file of --int8 or --int4 will, weights and inputs of linear layers rounded, "
            "while the weights are trained; for the last updates of a finished student"
        },
    )
    padded_group_norm: bool = II("task.padded_group_norm")


@dataclass
class StarHubertLargeConfig(StarHubertConfig):
    """``starhubert_l``: 26,630,752 parameters."""

    encoder_embed_dim: int = field(default=480, metadata={"help": "width D of the Transformer"})
    encoder_ffn_embed_dim: int = field(default=1024, metadata={"help": "inner width of the feed-forward blocks"})


@dataclass
class StarHubertSmallConfig(StarHubertConfig):
    """``starhubert_s``: about 14.1 M parameters; the widths are ours, the paper publishes the count alone."""

    encoder_embed_dim: int = field(default=336, metadata={"help": "width D of the Transformer"})
    encoder_ffn_embed_dim: int = field(default=792, metadata={"help": "inner width of the feed-forward blocks"})


@dataclass
class StarHubertXSmallConfig(StarHubertConfig):
    """``starhubert_xs``: about 9.39 M parameters; the widths are ours, likewise."""

    encoder_embed_dim: int = field(default=272, metadata={"help": "width D of the Transformer"})
    encoder_ffn_embed_dim: int = field(default=616, metadata={"help": "inner width of the feed-forward blocks"})


@dataclass
class StarHubertStreamConfig(StarHubertConfig):
    """``starhubert_stream``: 22,308,592 parameters; streams, at 80, 160, 320, 640 ms or all at once."""

    extractor_mode: EXTRACTOR_MODES = field(
        default=RUNNING, metadata={"help": "running_norm: a norm that needs no later frame"}
    )
    chunk_frames: Optional[List[int]] = field(
        default_factory=lambda: [16, 4, 8, 32, 0],
        metadata={"help": "frames of a chunk (0: all at once); of several an update draws one, the first is in use"},
    )


def _check(cfg: StarHubertConfig) -> None:
    sizes = (
        "encoder_embed_dim",
        "encoder_ffn_embed_dim",
        "encoder_layers",
        "encoder_attention_heads",
        "conv_pos",
        "conv_pos_groups",
    )
    for name in sizes:
        if getattr(cfg, name) < 1:
            raise StarError(f"model.{name}={getattr(cfg, name)} must be 1 or more")
    if cfg.head_dim is not None and cfg.head_dim < 1:
        raise StarError(f"model.head_dim={cfg.head_dim} must be 1 or more")
    for name in ("encoder_attention_heads", "conv_pos_groups") if cfg.head_dim is None else ("conv_pos_groups",):
        if cfg.encoder_embed_dim % getattr(cfg, name):
            raise StarError(
                f"model.{name}={getattr(cfg, name)} must divide model.encoder_embed_dim={cfg.encoder_embed_dim}"
            )
    if cfg.init_utterances < 1:
        raise StarError(f"model.init_utterances={cfg.init_utterances} must be 1 or more")
    if cfg.init == "sliced" and (cfg.init_layers is not None or cfg.init_feature_extractor):
        raise StarError(
            "model.init=sliced slices all parts out of the teacher; leave model.init_layers and "
            "model.init_feature_extractor out"
        )
    for name in DROPOUTS:
        if not 0 <= getattr(cfg, name) < 1:
            raise StarError(f"model.{name}={getattr(cfg, name)} must be at least 0 and below 1")
    if cfg.weight_bits not in (None, *BITS):
        raise StarError(f"model.weight_bits={cfg.weight_bits} must be {' or '.join(map(str, BITS))}, or left out")
    if bool(cfg.chunk_frames) != (cfg.extractor_mode == RUNNING):
        raise StarError(
            "model.chunk_frames and model.extractor_mode=running_norm go together: no other norm streams, "
            "and a student of whole utterances needs none that does; give both, or neither"
        )
    if cfg.chunk_frames:
        _check_streaming(cfg)


def _check_streaming(cfg: StarHubertConfig) -> None:
    sizes = list(cfg.chunk_frames)
    if min(*sizes, cfg.left_context_frames, cfg.right_context_frames, cfg.norm_context_frames) < 0:
        raise StarError(
            f"model.chunk_frames={sizes}, model.left_context_frames={cfg.left_context_frames}, "
            f"model.right_context_frames={cfg.right_context_frames} and "
            f"model.norm_context_frames={cfg.norm_context_frames} must be 0 or more"
        )


@register_model("starhubert", dataclass=StarHubertConfig)
class StarHubertModel(SpeechEncoder, BaseFairseqModel):
    """A :class:`SpeechEncoder` that fairseq trains.

    It has no unit predictor, no projection where the last convolution already has D channels, and a mask embedding only
    where a task masks frames.
    """

    def __init__(self, cfg: StarHubertConfig):
        _check(cfg)
        super().__init__(
            EncoderConfig.of_student(cfg),
            dropouts={name: getattr(cfg, name) for name in DROPOUTS},
            checkpoint_activations=cfg.checkpoint_activations,
            valid_statistics=not cfg.padded_group_norm,
            weight_bits=cfg.weight_bits,
        )
        self.cfg = cfg

    @classmethod
    def build_model(cls, cfg: StarHubertConfig, task=None) -> "StarHubertModel":
        """Build a student for fairseq; an invalid value ends the program in one line."""
        with exit_on_star_error():
            return cls(cfg)

    def forward(
        self,
        source: Tensor,
        frames: Frames | None = None,
        padding_mask: Tensor | None = None,
        attention_layers: Collection[int] = (),
        mask_indices: Tensor | None = None,
        mask_channels: Tensor | None = None,
        chunk_frames: int | None = None,
    ) -> Encoding:
        """Encode ``source`` (B x samples), masked where masks are given; see :meth:`SpeechEncoder.encode`.

        Args:
            frames: the valid frames, from the teacher; when None they follow from ``padding_mask``.
            padding_mask: B x samples, True = padded, as in fairseq's datasets; None = nothing is padded.
        """
        if frames is None:
            num_samples = [source.size(1)] * len(source) if padding_mask is None else (~padding_mask).sum(1).tolist()
            frames = Frames.of(self.geometry, num_samples, source)
        return self.encode(
            source,
            frames,
            attention_layers=attention_layers,
            mask_indices=mask_indices,
            mask_channels=mask_channels,
            chunk_frames=chunk_frames,
        )

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Accept a state dict with or without a mask embedding; ``resuming`` decides whether a run may resume so."""
        super().upgrade_state_dict_named(state_dict, name)
        key = f"{name}.mask_emb" if name else "mask_emb"
        if self.mask_emb is None:
            state_dict.pop(key, None)
        else:
            state_dict.setdefault(key, self.mask_emb.detach())

    def extract_features(
        self,
        source: Tensor,
        padding_mask: Tensor | None = None,
        mask: bool = False,
        ret_conv: bool = False,
        output_layer: Optional[int] = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return one layer's states and the frame mask: fairseq's interface, ``HubertModel.extract_features``.

        Args:
            mask: must be False; a student's masks come from its task.
            ret_conv: return the convolutional features instead.
            output_layer: 1-based; the last layer (after the final norm of a pre-norm encoder) when None.

        Raises:
            StarError: ``mask`` is True.
        """
        if mask:
            raise StarError("starhubert draws no mask by itself: call extract_features with mask=False")
        encoding = self(source, padding_mask=padding_mask)
        if ret_conv:
            features = encoding.projected_features
        elif output_layer is not None:
            features = encoding.hidden_states[output_layer]
        else:
            features = self.finished(encoding.hidden_states[-1])
        return features, encoding.frames.padding_mask


@register_model("starhubert_l", dataclass=StarHubertLargeConfig)
class StarHubertLargeModel(StarHubertModel):
    """``starhubert`` with D = 480."""


@register_model("starhubert_s", dataclass=StarHubertSmallConfig)
class StarHubertSmallModel(StarHubertModel):
    """``starhubert`` with D = 336."""


@register_model("starhubert_xs", dataclass=StarHubertXSmallConfig)
class StarHubertXSmallModel(StarHubertModel):
    """``starhubert`` with D = 272."""


@register_model("starhubert_stream", dataclass=StarHubertStreamConfig)
class StarHubertStreamModel(StarHubertModel):
    """``starhubert`` with chunked attention and running statistics in its first norm."""

    def __init__(self, cfg: StarHubertStreamConfig):
        if cfg.chunk_frames is None:  # a recipe's null: the architecture's own, which the run's config then keeps
            cfg.chunk_frames = StarHubertStreamConfig().chunk_frames
        super().__init__(cfg)
