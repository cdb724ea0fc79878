"""fairseq checkpoints of HuBERT, wav2vec 2.0 and their fine-tuned forms, with ``cfg`` or, as before hydra, ``args``.

Sources: ``fairseq/models/hubert/{hubert,hubert_asr}.py``, ``fairseq/models/wav2vec/{wav2vec2,wav2vec2_asr}.py``.
"""

import argparse
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from fairseq_star.errors import StarError
from fairseq_star.frames import parse_conv_layers
from fairseq_star.teachers.config import (
    ACTIVATIONS,
    EXTRACTOR_MODES,
    MAX_LAYERS,
    EncoderConfig,
    Section,
    check_divides,
)
from fairseq_star.teachers.speech_encoder import make_teacher
from fairseq_star.teachers.teacher import Teacher

DEFAULT_CONV = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] * 2"  # of all of fairseq's configs
# Of use in pretraining only: to mask, to quantize, to predict.
HUBERT_ONLY = ("mask_emb", "label_embs_concat", "final_proj.", "target_glu.")
WAV2VEC2_ONLY = (
    "mask_emb",
    "quantizer.",
    "input_quantizer.",
    "project_q.",
    "project_inp.",
    "final_proj.",
    "target_glu.",
)


@dataclass(frozen=True)
class Family:
    """One name fairseq registers such models by."""

    title: str
    ignored: tuple[str, ...]
    prefix: str = ""  # where a fine-tuned model keeps its encoder


FAMILIES = {
    "hubert": Family("HuBERT (fairseq)", HUBERT_ONLY),
    "wav2vec2": Family("wav2vec 2.0 (fairseq)", WAV2VEC2_ONLY),
    "hubert_ctc": Family("fine-tuned HuBERT (fairseq)", HUBERT_ONLY, "w2v_encoder.w2v_model."),
    "wav2vec_ctc": Family("fine-tuned wav2vec 2.0 (fairseq)", WAV2VEC2_ONLY, "w2v_encoder.w2v_model."),
    "hubert_seq2seq": Family("fine-tuned HuBERT (fairseq)", HUBERT_ONLY, "encoder.w2v_model."),
    "wav2vec_seq2seq": Family("fine-tuned wav2vec 2.0 (fairseq)", WAV2VEC2_ONLY, "encoder.w2v_model."),
}


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


def build_teacher(state: dict, *, name: str, valid_group_norm: bool = True) -> Teacher:
    """Build the encoder of a fairseq checkpoint and load its weights, every key accounted for.

    Args:
        state: the checkpoint.
        name: option and file in messages.
        valid_group_norm: see :func:`fairseq_star.teachers.load_teacher`.

    Raises:
        StarError: the checkpoint is of another model, or its config and weights do not fit each other.
    """
    model, task = sections(state["cfg"] if state.get("cfg") is not None else state.get("args"))
    weights, registered = state.get("model"), model.get("_name")
    if not isinstance(weights, dict) or not isinstance(registered, str):
        held = ", ".join(f"{str(key)[:40]!a}" for key in list(state)[:4]) or "nothing"
        raise StarError(
            f"{name} is no fairseq speech checkpoint: it lacks 'cfg' (or 'args') with a model, or the weights 'model' "
            f"(it holds {held}); give a whole checkpoint of HuBERT, wav2vec 2.0 or WavLM, or a HuggingFace folder"
        )
    if registered not in FAMILIES:
        raise StarError(
            f"{name} holds a {registered[:60]!a} model; a teacher is one of {', '.join(FAMILIES)}, starhubert, "
            "Microsoft's WavLM or a HuggingFace folder"
        )
    family = FAMILIES[registered]
    if family.prefix:
        outer, (model, task) = model, sections(model.get("w2v_args"))
        if model.get("_name") not in ("hubert", "wav2vec2"):
            raise StarError(
                f"{name} was fine-tuned, but its encoder's config (w2v_args) is no HuBERT's or wav2vec 2.0's; "
                "give the pretrained checkpoint"
            )
        if task.get("normalize") is None:  # older pretraining did not say
            task["normalize"] = outer.get("normalize")
        # Its heads are of no use here, but an encoder key must never be lost with them.
        weights = {key.removeprefix(family.prefix): value for key, value in weights.items()
                   if isinstance(key, str) and key.startswith(family.prefix)}  # fmt: skip
    audio = Section(task, name)
    return make_teacher(
        encoder_config(Section(model, name)),
        weights,
        family=family.title,
        name=name,
        sample_rate=audio.whole("sample_rate", 16_000, at_most=1_000_000),
        normalize=audio.flag("normalize", False),
        ignored=family.ignored,
        valid_group_norm=valid_group_norm,
    )


def encoder_config(model: Section) -> EncoderConfig:
    """The encoder of fairseq's ``HubertConfig`` or ``Wav2Vec2Config``; a value an old checkpoint lacks is its default.

    Raises:
        StarError: a value that cannot be, or a kind of layer that no teacher here has.
    """
    model.none_of("layer_type", "is not the plain Transformer", harmless="transformer")
    model.none_of("conv_pos_batch_norm", "makes features depend on the batch")
    model.none_of("quantize_input", "feeds quantized audio to its layers")
    width = model.whole("encoder_embed_dim", 768)
    try:
        conv_layers = parse_conv_layers(model.values.get("conv_feature_layers", DEFAULT_CONV), width)
    except StarError as error:
        raise StarError(f"{model.name}: {error}") from error
    config = EncoderConfig(
        conv_layers=conv_layers,
        embed_dim=width,
        ffn_embed_dim=model.whole("encoder_ffn_embed_dim", 3072),
        num_layers=model.whole("encoder_layers", 12, at_most=MAX_LAYERS),
        num_heads=model.whole("encoder_attention_heads", 12),
        conv_pos=model.whole("conv_pos", 128),
        conv_pos_groups=model.whole("conv_pos_groups", 16),
        extractor_mode=model.choice("extractor_mode", "default", EXTRACTOR_MODES),
        conv_bias=model.flag("conv_bias", False),
        activation_fn=model.choice("activation_fn", "gelu", ACTIVATIONS),
        layer_norm_first=model.flag("layer_norm_first", False),
        projection=conv_layers[-1].channels != width,
        pos_conv_depth=model.whole("pos_conv_depth", 1, at_most=16),
    )
    return check_divides(config, model.name)
