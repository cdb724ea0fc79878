"""WavLM in Microsoft's format, ``{'cfg': dict, 'model': weights}``, as ``WavLM-Base+.pt`` is.

Source: microsoft/unilm, ``wavlm/WavLM.py`` (``WavLMConfig``); its names are fairseq's, its ``cfg`` is one flat dict.
"""

from dataclasses import replace

from fairseq_star.errors import StarError
from fairseq_star.teachers.config import Section
from fairseq_star.teachers.fairseq_checkpoint import encoder_config
from fairseq_star.teachers.speech_encoder import make_teacher
from fairseq_star.teachers.teacher import Teacher

PRETRAINING_ONLY = ("mask_emb", "label_embs_concat", "final_proj.", "target_glu.")
SAMPLE_RATE = 16_000  # Hz; Microsoft's cfg does not say it, and all of its models have it


def is_microsoft_wavlm(state: dict) -> bool:
    """Whether ``cfg`` is flat, a model's settings themselves, as in no fairseq checkpoint."""
    config = state.get("cfg")
    return isinstance(config, dict) and "encoder_layers" in config and "model" not in config


def build_teacher(state: dict, *, name: str, valid_group_norm: bool = True) -> Teacher:
    """The WavLM in ``state`` as a teacher.

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
    return make_teacher(
        replace(encoder_config(config), relative_position=relative_position),
        weights,
        family="WavLM (Microsoft)",
        name=name,
        sample_rate=SAMPLE_RATE,
        normalize=config.flag("normalize", False),
        ignored=PRETRAINING_ONLY,
        valid_group_norm=valid_group_norm,
    )


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
