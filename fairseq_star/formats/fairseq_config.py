"""The configs that fairseq saves, as ``cfg`` or, before hydra, ``args``; s3prl's and Microsoft's files hold them too.

Sources: ``fairseq/models/hubert/hubert.py``, ``fairseq/models/wav2vec/wav2vec2.py``.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from fairseq_star.encoder.config import DROPOUTS, HUBERT_BASE, HUBERT_CONVOLUTIONS, EncoderConfig
from fairseq_star.encoder.frames import parse_conv_layers
from fairseq_star.errors import StarError
from fairseq_star.formats.fields import ACTIVATIONS, EXTRACTOR_MODES, MAX_LAYERS, Section, check_divides


def config_of(state: dict) -> Any:
    """``cfg``, or ``args`` where that is lacking."""
    return state["cfg"] if state.get("cfg") is not None else state.get("args")


def sections(config: Any) -> tuple[dict, dict]:
    """The model's and the task's part of a saved ``cfg`` or ``args``; in ``args`` they are one. Empty where lacking."""
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=False)
    if isinstance(config, argparse.Namespace):
        flat = vars(config)
        return {**flat, "_name": flat.get("arch")}, flat
    if not isinstance(config, dict):
        return {}, {}
    parts = []
    for name in ("model", "task"):
        part = config.get(name)
        # cfg.model is a Namespace where a model has no dataclass of its own.
        part = vars(part) if isinstance(part, argparse.Namespace) else part
        part = OmegaConf.to_container(part, resolve=False) if OmegaConf.is_config(part) else part
        parts.append(dict(part) if isinstance(part, dict) else {})
    if "_name" not in parts[0]:
        parts[0]["_name"] = parts[0].get("arch")
    return parts[0], parts[1]


def encoder_config(model: Section, extractor_modes: Sequence[str] = EXTRACTOR_MODES) -> EncoderConfig:
    """The encoder of fairseq's ``HubertConfig`` or ``Wav2Vec2Config``; a value an old checkpoint lacks is its default.

    Args:
        model: the config.
        extractor_modes: that may be.

    Raises:
        StarError: a value that cannot be, or a kind of layer that no teacher here has.
    """
    model.none_of("layer_type", "is not the plain Transformer", harmless="transformer")
    model.none_of("conv_pos_batch_norm", "makes features depend on the batch")
    model.none_of("quantize_input", "feeds quantized audio to its layers")
    width = model.whole("encoder_embed_dim", HUBERT_BASE.embed_dim)
    try:
        conv_layers = parse_conv_layers(model.values.get("conv_feature_layers", HUBERT_CONVOLUTIONS), width)
    except StarError as error:
        raise StarError(f"{model.name}: {error}") from error
    config = EncoderConfig(
        conv_layers=conv_layers,
        embed_dim=width,
        ffn_embed_dim=model.whole("encoder_ffn_embed_dim", HUBERT_BASE.ffn_embed_dim),
        num_layers=model.whole("encoder_layers", HUBERT_BASE.num_layers, at_most=MAX_LAYERS),
        num_heads=model.whole("encoder_attention_heads", HUBERT_BASE.num_heads),
        conv_pos=model.whole("conv_pos", HUBERT_BASE.conv_pos),
        conv_pos_groups=model.whole("conv_pos_groups", HUBERT_BASE.conv_pos_groups),
        extractor_mode=model.choice("extractor_mode", "default", extractor_modes),
        conv_bias=model.flag("conv_bias", False),
        activation_fn=model.choice("activation_fn", "gelu", ACTIVATIONS),
        layer_norm_first=model.flag("layer_norm_first", False),
        projection=conv_layers[-1].channels != width,
        pos_conv_depth=model.whole("pos_conv_depth", 1, at_most=16),
        head_dim=model.whole("head_dim") if model.values.get("head_dim") is not None else None,
    )
    return check_divides(config, model.name)


def dropouts(model: Section) -> dict[str, float]:
    """The dropouts of a model's config, 0 where it says none.

    Raises:
        StarError: a value that is no share.
    """
    return {name: model.share(name, 0.0) for name in DROPOUTS}
