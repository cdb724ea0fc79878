"""The one module all families are loaded into: fairseq's wav2vec 2.0 blocks under fairseq's names.

HuBERT, wav2vec 2.0, data2vec-audio, WavLM and ``starhubert`` differ in a few switches and in WavLM's attention, so
``encode()``, padding, attention maps and compilation are written once.
"""

import warnings
from types import SimpleNamespace
from typing import Collection, Mapping

import torch
from fairseq.models.wav2vec.wav2vec2 import ConvFeatureExtractionModel, TransformerEncoder
from fairseq.modules import LayerNorm
from torch import Tensor, nn

from fairseq_star.errors import StarError
from fairseq_star.frames import FrameGeometry
from fairseq_star.group_norm import use_valid_group_norm
from fairseq_star.positional import use_valid_positions
from fairseq_star.teachers.config import EncoderConfig
from fairseq_star.teachers.teacher import Teacher


class FairseqSpeechEncoder(nn.Module):
    """An encoder of ``config``, no more: no mask embedding, no quantizer, no head. See ``encoder.SpeechEncoder``."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        channels = config.conv_layers[-1].channels
        self.feature_extractor = ConvFeatureExtractionModel(
            list(config.conv_layers), dropout=0.0, mode=config.extractor_mode, conv_bias=config.conv_bias
        )
        self.layer_norm = LayerNorm(channels) if config.input_norm else nn.Identity()
        self.post_extract_proj = nn.Linear(channels, config.embed_dim) if config.projection else None
        self.dropout_input = nn.Dropout(0.0)
        transformer = TransformerEncoder
        if config.relative_position is not None:
            # Not at the top: torchaudio takes a second to import, and WavLM alone needs it.
            from fairseq_star.teachers.wavlm_attention import WavLMTransformerEncoder as transformer  # noqa: N813
        self.encoder = transformer(_transformer_settings(config))
        # The extractor's norms and the positional stack's keep torch's own epsilon in every library.
        for part in (self.layer_norm, self.encoder.layer_norm, *self.encoder.layers.modules()):
            if isinstance(part, nn.LayerNorm):
                part.eps = config.layer_norm_eps


def _transformer_settings(config: EncoderConfig) -> SimpleNamespace:
    """``config`` in the form fairseq's ``TransformerEncoder`` reads. No dropout: a teacher is always in eval mode."""
    return SimpleNamespace(
        encoder_embed_dim=config.embed_dim,
        encoder_ffn_embed_dim=config.ffn_embed_dim,
        encoder_layers=config.num_layers,
        encoder_attention_heads=config.num_heads,
        activation_fn=config.activation_fn,
        layer_norm_first=config.layer_norm_first,
        conv_pos=config.conv_pos,
        conv_pos_groups=config.conv_pos_groups,
        pos_conv_depth=config.pos_conv_depth,
        relative_position=config.relative_position,
        layer_type="transformer",
        required_seq_len_multiple=1,
        checkpoint_activations=False,
        **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop"), 0.0),
    )


def make_teacher(
    config: EncoderConfig,
    weights: Mapping[str, Tensor],
    *,
    family: str,
    name: str,
    sample_rate: int,
    normalize: bool,
    ignored: Collection[str] = (),
    valid_group_norm: bool = True,
) -> Teacher:
    """Build the encoder of ``config`` and load ``weights`` into it, every key accounted for.

    Args:
        weights: under fairseq's names (WavLM's under Microsoft's).
        family: what it is, for people, such as ``HuBERT (fairseq)``.
        name: the file in messages.
        sample_rate: Hz.
        normalize: whether it was trained on audio of zero mean and unit variance.
        ignored: beginnings of keys that are of use in pretraining or fine-tuning only.
        valid_group_norm: features at valid frames are those of the utterance alone; off: as the libraries do.

    Raises:
        StarError: weights and config do not fit each other.
    """
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()):
        raise StarError(f"{name}: its weights are not named tensors; get the file from its authors")
    wanted = {key: value for key, value in weights.items() if not key.startswith(tuple(ignored))}
    # Before anything is built: a wrong number in a config must not take all memory.
    _refuse([problem for key, shape in _decisive(config).items() if (problem := _differs(wanted, key, shape))], name)

    # The student's first weights shall not depend on the teacher's size.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fairseq uses torch's older weight_norm
        try:
            model = FairseqSpeechEncoder(config)
        except (ImportError, OSError) as error:
            raise StarError(
                f"{name}: WavLM's attention comes from torchaudio, which cannot be imported; install the torchaudio of "
                f"your torch {torch.__version__}"
            ) from error
    if config.relative_position is not None:
        from fairseq_star.teachers.wavlm_attention import to_torchaudio

        wanted = to_torchaudio(wanted, name)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    problems = [problem for key, shape in expected.items() if (problem := _differs(wanted, key, shape))]
    _refuse(problems + [f"{key[:80]!a} is unknown" for key in wanted if key not in expected], name)
    model.load_state_dict(wanted)

    if valid_group_norm:
        use_valid_group_norm(model.feature_extractor)
        use_valid_positions(model.encoder)
    geometry = FrameGeometry.of(config.conv_layers)
    return Teacher(model, config=config, geometry=geometry, sample_rate=sample_rate, normalize=normalize, family=family)


def _decisive(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """The weights whose shapes say how large the whole is."""
    width, shapes, channels = config.embed_dim, {}, 1
    for number, layer in enumerate(config.conv_layers):
        shapes[f"feature_extractor.conv_layers.{number}.0.weight"] = (layer.channels, channels, layer.kernel)
        channels = layer.channels
    if config.projection:
        shapes["post_extract_proj.weight"] = (width, channels)
    per_group, depth = width // config.conv_pos_groups, config.pos_conv_depth
    if depth == 1:
        shapes["encoder.pos_conv.0.weight_v"] = (width, per_group, config.conv_pos)
    else:
        shapes |= {
            f"encoder.pos_conv.{number}.0.weight": (width, per_group, config.conv_pos // depth)
            for number in range(depth)
        }
    for number in range(config.num_layers):
        shapes[f"encoder.layers.{number}.fc1.weight"] = (config.ffn_embed_dim, width)
        shapes[f"encoder.layers.{number}.self_attn.q_proj.weight"] = (width, width)
    if config.relative_position is not None:
        buckets = config.relative_position[0]
        shapes["encoder.layers.0.self_attn.relative_attention_bias.weight"] = (buckets, config.num_heads)
    return shapes


def _differs(weights: Mapping[str, Tensor], key: str, shape: tuple[int, ...]) -> str | None:
    if key not in weights:
        return f"{key} is missing"
    value = weights[key]
    if tuple(value.shape) != shape:
        return f"{key} is {tuple(value.shape)} instead of {shape}"
    if not value.is_floating_point() or value.layout != torch.strided or value.device.type != "cpu":
        return f"{key} holds {value.dtype} ({value.layout}, {value.device}) instead of plain floating point numbers"
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        return f"{key} has fewer numbers than its shape says"  # one number repeated can claim any size
    return None


def _refuse(problems: list[str], name: str) -> None:
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise StarError(
            f"{name}: weights and model config do not fit each other ({problems[0]}{more}); "
            "get both from the same release"
        )
