"""WavLM in Microsoft's format, ``{'cfg': dict, 'model': weights}``, as ``WavLM-Base+.pt`` is.

Source: microsoft/unilm, ``wavlm/WavLM.py`` (``WavLMConfig``); its names are fairseq's, its ``cfg`` is one flat dict.
"""

from dataclasses import replace

from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.formats import config
from fairseq_star.formats.building import build_frozen
from fairseq_star.formats.config import Section, encoder_config
from fairseq_star.manifest import SAMPLE_RATE

PRETRAINING_ONLY = ("mask_emb", "label_embs_concat", "final_proj.", "target_glu.")


def recognises(state: dict) -> bool:
    """Return whether ``cfg`` is flat, a model's settings themselves, as in no fairseq checkpoint."""
    cfg = state.get("cfg")
    return isinstance(cfg, dict) and "encoder_layers" in cfg and "model" not in cfg


def read_encoder(state: dict, *, name: str, valid_group_norm: bool = True) -> FrozenEncoder:
    """Return the WavLM in ``state``, frozen.

    Raises:
        StarError: a model without gated relative positions (UniSpeech-SAT has the same layout), or config and weights
            do not fit each other.
    """
    cfg, weights = Section(state["cfg"], name), state.get("model")
    if not isinstance(weights, dict):
        raise StarError(f"{name} lacks the weights 'model'; get the file from its authors")
    if not (cfg.flag("relative_position_embedding", False) and cfg.flag("gru_rel_pos", False)):
        raise StarError(f"{name} is laid out as WavLM but has no gated relative positions; give a WavLM checkpoint")
    return build_frozen(
        replace(encoder_config(cfg), relative_position=cfg.relative_position("num_buckets", "max_distance", 1280)),
        weights,
        family="WavLM (Microsoft)",
        name=name,
        sample_rate=SAMPLE_RATE,
        normalize=cfg.flag("normalize", False),
        ignored=PRETRAINING_ONLY,
        valid_group_norm=valid_group_norm,
    )


def dropouts(state: dict, name: str) -> dict[str, float]:
    """Return the dropouts of its config, as :func:`config.dropouts` does."""
    return config.dropouts(Section(state["cfg"], name))
