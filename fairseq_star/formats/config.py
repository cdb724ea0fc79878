"""Values of configs in files that may come from anyone, every one checked and none evaluated; and fairseq's configs.

fairseq saves a config as ``cfg`` or, before hydra, ``args``; s3prl's and Microsoft's files contain such a config too.

Sources: ``fairseq/models/hubert/hubert.py``, ``fairseq/models/wav2vec/wav2vec2.py``.
"""

import argparse
from typing import Any, Mapping, Sequence

from omegaconf import OmegaConf

from fairseq_star.encoder.config import DROPOUTS, FAIRSEQ_NAMES, HUBERT_BASE, HUBERT_CONVOLUTIONS, EncoderConfig
from fairseq_star.encoder.frames import parse_conv_layers
from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE

_SIZES = ("embed_dim", "ffn_embed_dim", "num_layers", "num_heads", "conv_pos", "conv_pos_groups")
ACTIVATIONS = ("gelu", "relu")
EXTRACTOR_MODES = ("default", "layer_norm")
# Far above HuBERT X-Large (48 layers of 1280); a wrong number must not take all memory before it is refused.
MAX_LAYERS, MAX_WIDTH = 256, 65_536


class Section:
    """One mapping of a config, with getters that check a value and name it when it cannot be used.

    Raises (all getters):
        StarError: a value of another kind or out of its range; it begins with ``name``.
    """

    def __init__(self, values: Mapping[str, Any], name: str):
        self.values = values
        self.name = name

    def whole(self, key: str, default: int | None = None, *, at_least: int = 1, at_most: int = MAX_WIDTH) -> int:
        """Return a whole number from ``at_least`` to ``at_most``."""
        value = self._get(key, default)
        if type(value) is not int or not at_least <= value <= at_most:
            raise self.refuse(key, value, f"a whole number from {at_least} to {at_most}")
        return value

    def wholes(self, key: str, default: Sequence[int] | None = None, *, at_least: int = 1) -> list[int]:
        """Return a list of 1 to 64 whole numbers."""
        value = self._get(key, default)
        right = isinstance(value, list | tuple) and 0 < len(value) <= 64
        if not right or not all(type(item) is int and at_least <= item <= MAX_WIDTH for item in value):
            raise self.refuse(key, value, "a list of whole numbers")
        return list(value)

    def sizes(self, names: Mapping[str, str], defaults: EncoderConfig | None = None) -> dict[str, int]:
        """Return fields of EncoderConfig that are whole numbers; ``names`` are their keys in this section."""
        most = {"num_layers": MAX_LAYERS}
        return {
            own: self.whole(key, defaults and getattr(defaults, own), at_most=most.get(own, MAX_WIDTH))
            for own, key in names.items()
        }

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return true or false; old configs write None for false."""
        value = self._get(key, default)
        if value is not None and type(value) is not bool:
            raise self.refuse(key, value, "true or false")
        return bool(value)

    def choice(self, key: str, default: str | None, choices: Sequence[str]) -> str:
        """Return one of ``choices``; the saved value may be an enumeration member printed as ``Choices.name``."""
        value = self._get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.refuse(key, value, " or ".join(choices))
        return str(value)

    def epsilon(self, key: str, default: float) -> float:
        """Return a number above 0 and below 1."""
        value = self._get(key, default)
        if type(value) is not float or not 0 < value < 1:
            raise self.refuse(key, value, "a number between 0 and 1")
        return value

    def share(self, key: str, default: float) -> float:
        """Return a number from 0 on and below 1, such as a dropout."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise self.refuse(key, value, "a number from 0 to below 1")
        return float(value)

    def audio(self, normalize: bool | None = None) -> dict[str, Any]:
        """Return ``sample_rate`` (Hz) and ``normalize``; 16 kHz and the given value where they are not stated."""
        return {
            "sample_rate": self.whole("sample_rate", SAMPLE_RATE, at_most=1_000_000),
            "normalize": self.flag("normalize", normalize),
        }

    def relative_position(self, buckets: str, distance: str, default_distance: int) -> tuple[int, int]:
        """Return the number of buckets (320 by default) and the greatest distance of WavLM's relative positions.

        A quarter of the buckets are single distances in each direction, so fewer than 4 buckets, or a greatest distance
        within the single ones, have no meaning in the bucket formula and raise a StarError.
        """
        num_buckets, max_distance = self.whole(buckets, 320), self.whole(distance, default_distance)
        if num_buckets < 4 or max_distance <= num_buckets // 4:
            raise self.error(f"has {num_buckets} buckets of distances up to {max_distance}, which cannot be")
        return num_buckets, max_distance

    def none_of(self, key: str, why: str, harmless: Any = False) -> None:
        """Raise a StarError if a setting is switched on that no encoder here has."""
        value = self.values.get(key)
        if value is not None and value != harmless:
            raise StarError(f"{self.name}: {key}={_short(value)} {why}; take another teacher")

    def refuse(self, key: str, value: Any, expected: str) -> StarError:
        """Return the error that ``key`` should have been ``expected``."""
        return self.error(f"has {key}={_short(value)} where {expected} is needed")

    def error(self, fault: str) -> StarError:
        """Return the error that the config has a ``fault``, from its verb on."""
        return StarError(f"{self.name}: its config {fault}; get the file from its authors")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None and default is None and key not in self.values:
            raise self.error(f"lacks {key}")
        return default if value is None else value


def _short(value: Any) -> str:
    """Return ``value`` on one line of at most 60 characters, because anyone may have written it."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_divides(config: EncoderConfig, name: str) -> EncoderConfig:
    """Return ``config``, if attention heads and convolution groups divide its width.

    Raises:
        StarError: one does not; ``name`` is the file in the message.
    """
    numbers = {"groups of its positional convolution": config.conv_pos_groups}
    if config.head_dim is None:
        numbers = {"attention heads": config.num_heads, **numbers}
    for what, number in numbers.items():
        if config.embed_dim % number:
            raise StarError(
                f"{name}: its config has width {config.embed_dim} and {number} {what}, which do not divide it; "
                "get the file from its authors"
            )
    return config


def config_of(state: dict) -> Any:
    """Return ``cfg``, or ``args`` where that is lacking."""
    return state["cfg"] if state.get("cfg") is not None else state.get("args")


def sections(config: Any) -> tuple[dict, dict]:
    """Split a saved ``cfg`` or ``args`` into the model's and the task's part, empty where lacking; ``args`` is both."""
    if isinstance(config, argparse.Namespace):
        flat = vars(config)
        return {**flat, "_name": flat.get("arch")}, flat
    config = plain(config)
    model, task = (plain(config.get(part)) for part in ("model", "task"))
    return {"_name": model.get("arch"), **model}, task


def plain(config: Any) -> dict:
    """Return a config of any kind as a dict of plain values, empty for anything that is none."""
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=False)
    if isinstance(config, argparse.Namespace):  # cfg.model, where a model has no dataclass of its own
        config = vars(config)
    return dict(config) if isinstance(config, dict) else {}


def encoder_config(model: Section, extractor_modes: Sequence[str] = EXTRACTOR_MODES) -> EncoderConfig:
    """Return the encoder of fairseq's ``HubertConfig`` or ``Wav2Vec2Config``, with its defaults for missing values.

    Args:
        model: the config.
        extractor_modes: the accepted ones.

    Raises:
        StarError: an impossible value, or a kind of layer that no teacher here has.
    """
    model.none_of("layer_type", "is not the plain Transformer", harmless="transformer")
    model.none_of("conv_pos_batch_norm", "makes features depend on the batch")
    model.none_of("quantize_input", "feeds quantized audio to its layers")
    sizes = model.sizes({own: FAIRSEQ_NAMES[own] for own in _SIZES}, HUBERT_BASE)
    width, convolutions = sizes["embed_dim"], model.values.get("conv_feature_layers", HUBERT_CONVOLUTIONS)
    try:
        conv_layers = parse_conv_layers(convolutions, width)
    except StarError as error:
        raise StarError(f"{model.name}: {error}") from error
    config = EncoderConfig(
        conv_layers=conv_layers,
        **sizes,
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
    """Return the dropouts of a model's config, 0 where it states none; raise StarError for a value that cannot be."""
    return {name: model.share(name, 0.0) for name in DROPOUTS}
