"""DPHuBERT's files: ``{'state_dict': weights, 'config': arguments}``, weights and arguments named as in torchaudio.

Its arguments are torchaudio's with one number a layer, because pruning leaves each layer its own heads and width. What
is not read is a layer without attention or without a feed-forward part, and a WavLM whose heads were pruned.

Source: pyf98/DPHuBERT, ``save_final_ckpt.py``, ``convert_*.py``, ``wav2vec2/{model,components}.py``.
"""

from dataclasses import replace
from typing import Mapping

from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.formats import torchaudio
from fairseq_star.formats.config import MAX_LAYERS, Section

# Lists of one entry a layer -> the type of their entries, and their meaning in messages.
PER_LAYER = {
    "encoder_use_attention": (bool, "attention"),
    "encoder_use_feed_forward": (bool, "feed-forward parts"),
    "encoder_num_heads": (int, "attention heads"),
    "encoder_total_num_heads": (int, "attention heads before pruning"),  # this and the next are WavLM's
    "encoder_remaining_heads": (list, "attention heads"),
    "encoder_ff_interm_features": (int, "feed-forward units"),
}


SIZES = ("encoder_num_heads", "encoder_ff_interm_features")  # of these, which may differ


def recognises(state: Mapping) -> bool:
    """Return whether a checkpoint has DPHuBERT's layout."""
    return isinstance(state.get("config"), dict) and torchaudio.has_torchaudio_keys(state.get("state_dict"))


def read_encoder(state: Mapping, *, name: str, valid_group_norm: bool = True) -> FrozenEncoder:
    """Return the encoder in a file of DPHuBERT's, frozen.

    Raises:
        StarError: a layer that pruning took a part of, or arguments and weights do not fit each other.
    """
    config, weights = Section(state["config"], name), state["state_dict"]
    if not config.values:
        return torchaudio.published(weights, name=name, valid_group_norm=valid_group_norm)
    return torchaudio.frozen_of(
        _encoder_config(config),
        weights,
        name=name,
        family="DPHuBERT",
        sample_rate=torchaudio.SAMPLE_RATE,
        normalize=config.flag("normalize_waveform", False),
        valid_group_norm=valid_group_norm,
    )


def dropouts(state: Mapping, name: str) -> dict[str, float]:
    """Return the dropouts among its arguments, as :func:`torchaudio.dropouts` does."""
    return torchaudio.dropouts({"arguments": state["config"]}, name)


def _encoder_config(config: Section) -> EncoderConfig:
    num_layers = config.whole("encoder_num_layers", at_most=MAX_LAYERS)
    alike = {key: _by_layer(config, key, num_layers) for key in PER_LAYER if key in config.values}
    for key in ("encoder_use_attention", "encoder_use_feed_forward"):
        if alike.get(key) is False:
            raise _pruned(config, f"no {PER_LAYER[key][1]}")
    relative_position = None
    if "encoder_remaining_heads" in alike:
        remaining, total = alike["encoder_remaining_heads"], alike.get("encoder_total_num_heads", 0)
        if remaining != list(range(total)):
            raise _pruned(config, f"{len(remaining)} of {total} attention heads")
        alike["encoder_num_heads"] = total
        relative_position = config.relative_position("encoder_num_buckets", "encoder_max_distance", 800)
    encoder = torchaudio.encoder_config(Section({**config.values, **alike}, config.name))
    return replace(encoder, relative_position=relative_position)


def _by_layer(config: Section, key: str, num_layers: int) -> bool | int | list[int]:
    """Return what all entries of a list of one entry a layer are, or the list, where a number of them may differ.

    Raises:
        StarError: no such list, or its entries differ where they must not.
    """
    value, (kind, what) = config.values[key], PER_LAYER[key]
    right = isinstance(value, list | tuple) and len(value) == num_layers
    if not right or any(type(entry) is not kind for entry in value):
        raise config.refuse(key, value, f"a list of {num_layers} entries, one a layer,")
    if all(entry == value[0] for entry in value):
        return value[0]
    if key in SIZES:
        return list(value)
    sizes = sorted(len(entry) if kind is list else int(entry) for entry in value)
    raise _pruned(config, f"{what} in {sum(sizes)} of them" if kind is bool else f"{sizes[0]} to {sizes[-1]} {what}")


def _pruned(config: Section, what: str) -> StarError:
    return StarError(
        f"{config.name} is a model of DPHuBERT's that pruning left layers of their own sizes ({what}); layers here "
        "have all of their parts, and a WavLM's have equal heads: give the model it was pruned from"
    )
