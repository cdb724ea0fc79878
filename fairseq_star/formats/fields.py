"""Values of a stranger's config: every one checked, none evaluated."""

from typing import Any, Mapping, Sequence

from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.errors import StarError

ACTIVATIONS = ("gelu", "relu")
EXTRACTOR_MODES = ("default", "layer_norm")
# Far above HuBERT X-Large (48 layers of 1280); a wrong number must not take all memory before it is found wrong.
MAX_LAYERS, MAX_WIDTH = 256, 65_536


class Section:
    """One mapping of a config. Each getter checks the value and names it when it cannot be used.

    Raises (all getters):
        StarError: a value of another kind or out of its range; it begins with ``name``.
    """

    def __init__(self, values: Mapping[str, Any], name: str):
        self.values = values
        self.name = name

    def whole(self, key: str, default: int | None = None, *, at_most: int = MAX_WIDTH) -> int:
        """A whole number from 1 to ``at_most``."""
        value = self._get(key, default)
        if type(value) is not int or not 1 <= value <= at_most:
            raise self.refuse(key, value, f"a whole number from 1 to {at_most}")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """A yes or no; old configs write None for no."""
        value = self._get(key, default)
        if value is not None and type(value) is not bool:
            raise self.refuse(key, value, "true or false")
        return bool(value)

    def choice(self, key: str, default: str | None, choices: Sequence[str]) -> str:
        """One of ``choices``; what is saved may be an enumeration member printed as ``Choices.name``."""
        value = self._get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.refuse(key, value, " or ".join(choices))
        return str(value)

    def small_number(self, key: str, default: float) -> float:
        """A number above 0 and below 1, such as a norm's epsilon."""
        value = self._get(key, default)
        if type(value) is not float or not 0 < value < 1:
            raise self.refuse(key, value, "a number between 0 and 1")
        return value

    def share(self, key: str, default: float) -> float:
        """A number from 0 on and below 1, such as a dropout."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise self.refuse(key, value, "a number from 0 to below 1")
        return float(value)

    def wholes(self, key: str, default: Sequence[int] | None = None) -> list[int]:
        """A list of whole numbers from 1 on, at most 64."""
        value = self._get(key, default)
        right = isinstance(value, list | tuple) and 0 < len(value) <= 64
        if not right or not all(type(item) is int and 1 <= item <= MAX_WIDTH for item in value):
            raise self.refuse(key, value, "a list of whole numbers")
        return list(value)

    def count(self, key: str) -> int:
        """A whole number from 0 on."""
        value = self._get(key, None)
        if type(value) is not int or not 0 <= value <= MAX_WIDTH:
            raise self.refuse(key, value, f"a whole number from 0 to {MAX_WIDTH}")
        return value

    def counts(self, key: str) -> list[int]:
        """A list of whole numbers from 0 on, at most 64."""
        value = self._get(key, None)
        if not isinstance(value, list | tuple) or not 0 < len(value) <= 64:
            raise self.refuse(key, value, "a list of whole numbers")
        return [Section({key: item}, self.name).count(key) for item in value]

    def none_of(self, key: str, why: str, harmless: Any = False) -> None:
        """Refuse a setting that is switched on and that no encoder here has.

        Raises:
            StarError: it is.
        """
        value = self.values.get(key)
        if value is not None and value != harmless:
            raise StarError(f"{self.name}: {key}={_short(value)} {why}; take another teacher")

    def refuse(self, key: str, value: Any, expected: str) -> StarError:
        """The error that ``key`` should have been ``expected``."""
        return StarError(
            f"{self.name}: its config says {key}={_short(value)} where {expected} is needed; "
            "get the file from its authors"
        )

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None and default is None and key not in self.values:
            raise StarError(f"{self.name}: its config lacks {key}; get the file from its authors")
        return default if value is None else value


def check_divides(config: EncoderConfig, name: str) -> EncoderConfig:
    """Refuse widths that attention heads or convolution groups do not divide.

    Raises:
        StarError: ``config`` has one; ``name`` is the file in the message.
    """
    numbers = {"groups of its positional convolution": config.conv_pos_groups}
    if config.head_dim is None:
        numbers = {"attention heads": config.num_heads, **numbers}
    for what, number in numbers.items():
        if config.embed_dim % number:
            raise StarError(
                f"{name}: its config says width {config.embed_dim} and {number} {what}, which do not divide it; "
                "get the file from its authors"
            )
    return config


def _short(value: Any) -> str:
    """``value`` on one line of at most 60 characters: it comes from a stranger's file."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
