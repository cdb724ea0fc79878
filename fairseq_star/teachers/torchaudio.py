"""torchaudio's wav2vec 2.0 models: what ``export --to torchaudio`` writes, and torchaudio's own state dicts.

The export says all that ``torchaudio.models.wav2vec2_model`` was built with. A state dict alone, as torchaudio's
pipelines download it, says neither strides nor heads; it is read where its width and depth are of a model that
torchaudio publishes, all of which share their convolutions. Names are HuggingFace's under other parents.

Source: torchaudio, ``models/wav2vec2/model.py``, ``pipelines/_wav2vec2/impl.py``.
"""

import logging
import re
from typing import Any, Mapping

from torch import Tensor

from fairseq_star.errors import StarError
from fairseq_star.frames import ConvLayer, parse_conv_layers
from fairseq_star.teachers.config import MAX_LAYERS, EncoderConfig, Section, check_divides
from fairseq_star.teachers.fairseq_checkpoint import DEFAULT_CONV
from fairseq_star.teachers.hf_keys import table, to_fairseq
from fairseq_star.teachers.speech_encoder import make_teacher
from fairseq_star.teachers.teacher import Teacher

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16_000  # Hz, of all that torchaudio publishes
# HuggingFace's parents of a weight -> torchaudio's.
PARENTS = (("feature_projection.", "encoder.feature_projection."), ("encoder.", "encoder.transformer."))
LAYER = re.compile(r"encoder\.transformer\.layers\.(\d+)\.")
HEAD = "aux."  # of a model fine-tuned with CTC
EXTRACTOR_MODES = {"group_norm": "default", "layer_norm": "layer_norm"}
# fairseq's dropouts under torchaudio's names.
DROPOUTS = {
    "dropout": "encoder_dropout",
    "attention_dropout": "encoder_attention_dropout",
    "activation_dropout": "encoder_ff_interm_dropout",
    "dropout_input": "encoder_projection_dropout",
}
# (width, layers) of torchaudio's published models -> heads, width of the feed-forward layers.
PUBLISHED = {(768, 12): (12, 3072), (1024, 24): (16, 4096), (1280, 48): (16, 5120), (1920, 48): (16, 7680)}


def has_torchaudio_keys(weights: Any) -> bool:
    """Whether ``weights`` are named as torchaudio names them."""
    return isinstance(weights, dict) and any(isinstance(key, str) and LAYER.match(key) for key in weights)


def is_torchaudio(state: Mapping) -> bool:
    """Whether a checkpoint is an export for torchaudio, or a state dict of torchaudio's."""
    exported = isinstance(state.get("arguments"), dict) and has_torchaudio_keys(state.get("state_dict"))
    return exported or has_torchaudio_keys(state)


def build_teacher(state: Mapping, *, name: str, valid_group_norm: bool = True) -> Teacher:
    """The encoder in a file of torchaudio's layout as a teacher, every key accounted for.

    Raises:
        StarError: arguments and weights do not fit each other, or the weights alone do not tell their architecture.
    """
    if "arguments" not in state:
        return published_teacher(state, name=name, valid_group_norm=valid_group_norm)
    audio = Section(state, name)
    return teacher_of(
        encoder_config(Section(state["arguments"], name)),
        state["state_dict"],
        name=name,
        sample_rate=audio.whole("sample_rate", SAMPLE_RATE, at_most=1_000_000),
        normalize=audio.flag("normalize"),
        valid_group_norm=valid_group_norm,
    )


def dropouts(arguments: Mapping, name: str) -> dict[str, float]:
    """The dropouts among torchaudio's ``arguments`` under fairseq's names.

    Raises:
        StarError: a value that is no share.
    """
    values = Section(arguments, name)
    return {own: values.share(theirs, 0.0) for own, theirs in DROPOUTS.items()}


def encoder_config(arguments: Section) -> EncoderConfig:
    """What torchaudio's ``wav2vec2_model`` builds of ``arguments``.

    Raises:
        StarError: a value that is lacking or cannot be.
    """
    mode = arguments.choice("extractor_mode", None, tuple(EXTRACTOR_MODES))
    config = EncoderConfig(
        conv_layers=conv_layers(arguments),
        embed_dim=arguments.whole("encoder_embed_dim"),
        ffn_embed_dim=arguments.whole("encoder_ff_interm_features"),
        num_layers=arguments.whole("encoder_num_layers", at_most=MAX_LAYERS),
        num_heads=arguments.whole("encoder_num_heads"),
        conv_pos=arguments.whole("encoder_pos_conv_kernel"),
        conv_pos_groups=arguments.whole("encoder_pos_conv_groups"),
        extractor_mode=EXTRACTOR_MODES[mode],
        conv_bias=arguments.flag("extractor_conv_bias"),
        layer_norm_first=arguments.flag("encoder_layer_norm_first"),
    )
    return check_divides(config, arguments.name)


def conv_layers(arguments: Section) -> list[ConvLayer]:
    """``extractor_conv_layer_config``: triples of channels, kernel and stride; None for HuBERT's own."""
    key = "extractor_conv_layer_config"
    value = arguments.values.get(key)
    if value is None:
        return parse_conv_layers(DEFAULT_CONV)
    if not isinstance(value, list | tuple) or not 0 < len(value) <= 64:
        raise arguments.refuse(key, value, "a list of (channels, kernel, stride)")
    layers = []
    for layer in value:
        numbers = Section({key: layer}, arguments.name).wholes(key)
        if len(numbers) != 3:
            raise arguments.refuse(key, layer, "(channels, kernel, stride)")
        layers.append(ConvLayer(*numbers))
    return layers


def published_teacher(weights: Mapping, *, name: str, valid_group_norm: bool = True) -> Teacher:
    """The encoder of a state dict that says no more than its weights.

    Raises:
        StarError: it is WavLM's, or of no width and depth that torchaudio publishes.
    """
    if any("attention.attention.in_proj" in str(key) for key in weights):
        raise StarError(
            f"{name} is a state dict of torchaudio's WavLM, which is not read; give Microsoft's checkpoint of that "
            "WavLM, or its HuggingFace folder"
        )
    norm = weights.get("encoder.transformer.layer_norm.weight")
    width = norm.numel() if isinstance(norm, Tensor) else 0
    layers = {found[1] for key in weights if isinstance(key, str) and (found := LAYER.match(key))}
    if (width, len(layers)) not in PUBLISHED:
        raise StarError(
            f"{name} has torchaudio's weights alone ({len(layers)} layers of {width}), which say neither strides nor "
            "heads, and is of no size that torchaudio publishes; save it as {'arguments': ..., 'state_dict': ..., "
            "'normalize': ...} with the arguments that torchaudio.models.wav2vec2_model got"
        )
    heads, inner = PUBLISHED[width, len(layers)]
    layer_norm = "feature_extractor.conv_layers.1.layer_norm.weight" in weights
    logger.warning(
        f"{name} has torchaudio's weights alone: taking the strides and {heads} heads of its published model of "
        f"{len(layers)} layers of {width}, {SAMPLE_RATE} Hz, normalize={layer_norm} after its extractor's kind"
    )
    config = EncoderConfig(
        conv_layers=parse_conv_layers(DEFAULT_CONV),
        embed_dim=width,
        ffn_embed_dim=inner,
        num_layers=len(layers),
        num_heads=heads,
        conv_pos=128,
        conv_pos_groups=16,
        extractor_mode="layer_norm" if layer_norm else "default",
        conv_bias="feature_extractor.conv_layers.0.conv.bias" in weights,
        layer_norm_first=layer_norm,  # so in each of them
    )
    return teacher_of(
        config, weights, name=name, sample_rate=SAMPLE_RATE, normalize=layer_norm, valid_group_norm=valid_group_norm
    )


def teacher_of(config: EncoderConfig, weights: Mapping, *, name: str, family="torchaudio", **audio) -> Teacher:
    """:func:`make_teacher` of weights under torchaudio's names; a CTC head goes.

    Raises:
        StarError: weights and config do not fit each other.
    """
    pairs = table(
        layer_norm_extractor=config.extractor_mode == "layer_norm", wavlm=config.relative_position is not None
    )
    renamed: dict[Any, Any] = {}
    for key, value in weights.items():
        if isinstance(key, str) and key.startswith(HEAD):
            continue
        own = to_fairseq(_huggingface_name(key), pairs) if isinstance(key, str) else None
        # What is unknown or comes twice keeps its name, under which make_teacher refuses it.
        renamed[key if own is None or own in renamed else own] = value
    kind = "WavLM" if config.relative_position is not None else "HuBERT or wav2vec 2.0"
    return make_teacher(config, renamed, family=f"{kind} ({family})", name=name, **audio)


def _huggingface_name(key: str) -> str:
    """HuggingFace's name of torchaudio's ``key``."""
    for parent, other in PARENTS:
        if key.startswith(other):
            return parent + key.removeprefix(other)
    return key
