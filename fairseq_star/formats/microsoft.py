"""WavLM in Microsoft's format, ``{'cfg': dict, 'model': weights}``, as ``WavLM-Base+.pt`` is.

Source: microsoft/unilm, ``wavlm/WavLM.py`` (``WavLMConfig``); its names are fairseq's, its ``cfg`` is one flat dict.
"""

from dataclasses import replace

from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.formats import fairseq_config
from fairseq_star.formats.building import build_frozen
from fairseq_star.formats.fairseq_config import encoder_config
from fairseq_star.formats.fields import Section
from fairseq_star.manifest import SAMPLE_RATE

PRETRAINING_ONLY = ("mask_emb", "label_embs_concat", "final_proj.", "target_glu.")


def recognises(state: dict) -> bool:
    """Whether ``cfg`` is flat, a model's settings themselves, as in no fairseq checkpoint."""
    config = state.get("cfg")
    return isinstance(config, dict) and "encoder_layers" in config and "model" not in config


def read_encoder(state: dict, *, name: str, valid_group_norm: bool = True) -> FrozenEncoder:
    """The WavLM in ``state``, frozen.

    Raises:
        StarError: a model without gated relative positions (UniSpeech-SAT has the same layout), or config and weights
            do not fit each other.
    """
    config, weights = Section(state["cfg"], name), state.get("model")
    if not isinstance(weights, dict):
        raise StarError(f"{name} lacks the weights 'model'; get the file from its authors")
    if not (config.flag("relative_position_embedding", False) and config.flag("gru_rel_pos", False)):
        raise StarError(f"{name} is laid out as WavLM but has no gated relative positions; give a WavLM checkpoint")
    relative_position = (config.whole("num_buckets", 320), config.whole("max_distance", 1280))
    check_buckets(*relative_position, name)
    return build_frozen(
        replace(encoder_config(config), relative_position=relative_position),
        weights,
        family="WavLM (Microsoft)",
        name=name,
        sample_rate=SAMPLE_RATE,
        normalize=config.flag("normalize", False),
        ignored=PRETRAINING_ONLY,
        valid_group_norm=valid_group_norm,
    )


def dropouts(state: dict, name: str) -> dict[str, float]:
    """The dropouts of its config, 0 where it says none; raises StarError for a value that is no share."""
    return fairseq_config.dropouts(Section(state["cfg"], name))


def check_buckets(num_buckets: int, max_distance: int, name: str) -> None:
    """Refuse numbers the bucket formula has no meaning for: a quarter of the buckets are single distances each way.

    Raises:
        StarError: fewer than 4 buckets, or a greatest distance within the single ones.
    """
    if num_buckets < 4 or max_distance <= num_buckets // 4:
        raise StarError(
            f"{name}: its config says {num_buckets} buckets of distances up to {max_distance}, which cannot be; "
            "get the file from its authors"
        )
