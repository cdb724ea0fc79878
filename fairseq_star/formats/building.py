"""Build a frozen encoder of config and weights that anyone may have written: checked first, every key accounted for."""

from typing import Collection, Mapping, Sequence

import torch
from torch import Tensor

from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.encoder.unit_head import UnitHead
from fairseq_star.errors import StarError


def build_frozen(
    config: EncoderConfig,
    weights: Mapping[str, Tensor],
    *,
    family: str,
    name: str,
    sample_rate: int,
    normalize: bool,
    ignored: Collection[str] = (),
    valid_group_norm: bool = True,
    unit_heads: Sequence[UnitHead] = (),
) -> FrozenEncoder:
    """Build the encoder of ``config`` and load ``weights`` into it, every key accounted for.

    Args:
        weights: under fairseq's names (WavLM's gates under Microsoft's).
        family: its kind, for people, such as ``HuBERT (fairseq)``.
        name: the file in messages.
        sample_rate: Hz.
        normalize: whether it was trained on audio of zero mean and unit variance.
        ignored: beginnings of keys that are of use in pretraining or fine-tuning only.
        valid_group_norm: ``valid_statistics`` of :class:`SpeechEncoder`.
        unit_heads: the heads it predicts units with, one for each set of units, where known.

    Raises:
        StarError: weights and config do not fit each other.
    """
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()):
        raise StarError(f"{name}: its weights are not named tensors; get the file from its authors")
    used = {key: value for key, value in weights.items() if not key.startswith(tuple(ignored))}
    # Before anything is built: a wrong number in a config must not take all memory.
    if problems := _mismatches(used, _decisive_shapes(config)):
        raise misfit(name, *problems)

    # The first weights of a student must not depend on the teacher's size.
    with torch.random.fork_rng(devices=[]):
        model = SpeechEncoder(config, valid_statistics=valid_group_norm)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    unknown = [f"{key[:80]!a} is unknown" for key in used if key not in expected]
    if problems := _mismatches(used, expected) + unknown:
        raise misfit(name, *problems)
    model.load_state_dict(used)
    return FrozenEncoder(model, sample_rate=sample_rate, normalize=normalize, family=family, unit_heads=unit_heads)


def _decisive_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of those weights that decide how much memory the encoder takes."""
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
        for number in range(depth):
            shapes[f"encoder.pos_conv.{number}.0.weight"] = (width, per_group, config.conv_pos // depth)
    for number in range(config.num_layers):
        shapes[f"encoder.layers.{number}.fc1.weight"] = (config.layer_ffn_dims[number], width)
        shapes[f"encoder.layers.{number}.self_attn.q_proj.weight"] = (
            config.layer_heads[number] * config.head_width,
            width,
        )
    if config.relative_position is not None:
        buckets = config.relative_position[0]
        shapes["encoder.layers.0.self_attn.relative_attention_bias.weight"] = (buckets, config.num_heads)
    return shapes


def _mismatches(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [problem for key, shape in shapes.items() if (problem := _mismatch(weights.get(key), key, shape))]


def _mismatch(value: Tensor | None, key: str, shape: tuple[int, ...]) -> str | None:
    if value is None:
        return f"{key} is missing"
    if tuple(value.shape) != shape:
        return f"{key} is {tuple(value.shape)} instead of {shape}"
    if not value.is_floating_point() or value.layout != torch.strided or value.device.type != "cpu":
        return f"{key} holds {value.dtype} ({value.layout}, {value.device}) instead of plain floating point numbers"
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        return f"{key} has fewer numbers than its shape says"  # one number repeated can claim any size
    return None


def misfit(name: str, problem: str, *others: str) -> StarError:
    """Return the error that weights and config of the file ``name`` do not fit each other."""
    more = f" and {len(others)} more" if others else ""
    return StarError(f"{name}: weights and config do not fit each other ({problem}{more}); take both from one release")
