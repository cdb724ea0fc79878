"""HuggingFace folders of HuBERT, wav2vec 2.0, WavLM and data2vec-audio, loaded into fairseq's modules key by key.

Source: transformers, ``models/{hubert,wav2vec2,wavlm,data2vec}/``. Its modules compute what fairseq's do under other
names (``hf_keys.py``), so neither transformers nor code from the folder is needed.

transformers is not asked even where it is installed: its config classes act on what a stranger's file says (a large
``num_labels`` takes all memory) and take a second to import. What it takes for a value left out stands here, and tests
hold it to the installed release.
"""

import logging
import os
from dataclasses import dataclass

from torch import Tensor

from fairseq_star.errors import StarError
from fairseq_star.frames import ConvLayer
from fairseq_star.teachers.config import ACTIVATIONS, MAX_LAYERS, EncoderConfig, Section, check_divides
from fairseq_star.teachers.hf_audio import audio_format
from fairseq_star.teachers.hf_folder import CONFIG, read_json, read_weights
from fairseq_star.teachers.hf_keys import Table, table, to_fairseq
from fairseq_star.teachers.speech_encoder import make_teacher
from fairseq_star.teachers.teacher import Teacher
from fairseq_star.teachers.wavlm import check_buckets

logger = logging.getLogger(__name__)

# Convolutions of all four families, where a config does not say them.
CONV_DIM, CONV_KERNEL, CONV_STRIDE = (512,) * 7, (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


@dataclass(frozen=True)
class Family:
    """One ``model_type`` of transformers."""

    title: str
    prefix: str  # before the encoder's keys in models with a head


FAMILIES = {
    "hubert": Family("HuBERT (HuggingFace)", "hubert."),
    "wav2vec2": Family("wav2vec 2.0 (HuggingFace)", "wav2vec2."),
    "wavlm": Family("WavLM (HuggingFace)", "wavlm."),
    "data2vec-audio": Family("data2vec-audio (HuggingFace)", "data2vec_audio."),
}
# Of use after the last layer or in pretraining only.
IGNORED = ("masked_spec_embed", "adapter.")
# Modules of an encoder: a key of one of these must have a place, whatever else is in the file.
ENCODER = ("feature_extractor.", "feature_projection.", "encoder.")
# What models put beside an encoder: transformers' own (classifiers, CTC, pretraining, x-vectors) and contentvec's.
HEADS = (
    *("lm_head.", "classifier.", "projector.", "layer_weights", "tdnn.", "objective."),
    *("quantizer.", "project_hid.", "project_q.", "final_proj.", "label_embs_concat"),
)
XVECTOR_HEAD = ("feature_extractor.weight", "feature_extractor.bias")  # a linear layer, called as the convolutions are


def build_teacher(folder: str, *, option: str, valid_group_norm: bool = True) -> Teacher:
    """The encoder in a HuggingFace folder as a teacher, every key accounted for.

    Raises:
        StarError: a file of the folder is missing, unreadable or unsafe, or it is of another kind of model.
    """
    name = f"{option}: {folder}"
    config = Section(read_json(os.path.join(folder, CONFIG), option), name)
    model_type = config.values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise StarError(
            f"{name} holds a {str(model_type)[:60]!a} model; a teacher's model_type is one of {', '.join(FAMILIES)}"
        )
    family = FAMILIES[model_type]
    encoder = _encoder_config(config, model_type)
    pairs = table(
        layer_norm_extractor=encoder.extractor_mode == "layer_norm",
        positional_stack=encoder.pos_conv_depth > 1,
        wavlm=encoder.relative_position is not None,
    )
    sample_rate, normalize = audio_format(folder, option, layer_norm_extractor=encoder.extractor_mode == "layer_norm")
    return make_teacher(
        encoder,
        _renamed(read_weights(folder, option), family.prefix, pairs, name),
        family=family.title,
        name=name,
        sample_rate=sample_rate,
        normalize=normalize,
        valid_group_norm=valid_group_norm,
    )


def _encoder_config(config: Section, model_type: str) -> EncoderConfig:
    config.none_of("conv_pos_batch_norm", "makes features depend on the batch")
    config.none_of("adapter_attn_dim", "puts adapters into its layers")
    config.choice("feat_extract_activation", "gelu", ("gelu",))
    widths = config.wholes("conv_dim", CONV_DIM)
    kernels, strides = config.wholes("conv_kernel", CONV_KERNEL), config.wholes("conv_stride", CONV_STRIDE)
    if not len(widths) == len(kernels) == len(strides):
        raise StarError(f"{config.name}: conv_dim, conv_kernel and conv_stride differ in length; download it again")
    data2vec = model_type == "data2vec-audio"
    # data2vec's extractor is always of the layer-norm kind, and its number of positional embeddings a depth.
    norm = "layer" if data2vec else config.choice("feat_extract_norm", "group", ("group", "layer"))
    conv_pos, depth = config.whole("num_conv_pos_embeddings", 5 if data2vec else 128), 1
    if data2vec:
        depth, kernel = conv_pos, config.whole("conv_pos_kernel_size", 19)
        if not 2 <= depth <= 16 or kernel < 3:
            raise StarError(f"{config.name}: {depth} positional convolutions of width {kernel} are not supported; "
                            "give 2 to 16 of width 3 or more")  # fmt: skip
        conv_pos = kernel * depth
    relative_position = None
    if model_type == "wavlm":
        relative_position = (config.whole("num_buckets", 320), config.whole("max_bucket_distance", 800))
        check_buckets(*relative_position, config.name)
    encoder = EncoderConfig(
        conv_layers=[ConvLayer(*layer) for layer in zip(widths, kernels, strides, strict=True)],
        embed_dim=config.whole("hidden_size", 768),
        ffn_embed_dim=config.whole("intermediate_size", 3072),
        num_layers=config.whole("num_hidden_layers", 12, at_most=MAX_LAYERS),
        num_heads=config.whole("num_attention_heads", 12),
        conv_pos=conv_pos,
        conv_pos_groups=config.whole("num_conv_pos_embedding_groups", 16),
        extractor_mode="layer_norm" if norm == "layer" else "default",
        conv_bias=config.flag("conv_bias", False),
        activation_fn=config.choice("hidden_act", "gelu", ACTIVATIONS),
        layer_norm_first=not data2vec and config.flag("do_stable_layer_norm", False),
        input_norm=model_type != "hubert" or config.flag("feat_proj_layer_norm", True),
        pos_conv_depth=depth,
        layer_norm_eps=config.small_number("layer_norm_eps", 1e-5),
        relative_position=relative_position,
    )
    return check_divides(encoder, config.name)


def _renamed(weights: dict[str, Tensor], prefix: str, pairs: Table, name: str) -> dict[str, Tensor]:
    """The encoder's weights under fairseq's names. A model's heads go, as when transformers loads the encoder alone.

    Beside an encoder under its family's prefix, other modules are heads, whatever they are called. Without a prefix
    only known heads are, because a key of another name might belong to the encoder.
    """
    if not all(isinstance(key, str) for key in weights):
        raise StarError(f"{name}: its weights are not named; download it again")
    headed = any(key.startswith(prefix) for key in weights)
    renamed, heads = {}, set()
    for key, value in weights.items():
        own = key.removeprefix(prefix)
        if own.startswith(IGNORED):
            continue
        if _is_head(own) or (headed and own == key and not own.startswith(ENCODER)):
            heads.add(own.partition(".")[0])
            continue
        target = to_fairseq(own, pairs)
        if target is None or target in renamed:
            what = "is unknown" if target is None else "comes twice"
            raise StarError(
                f"{name}: weights and model config do not fit each other ({key[:80]!a} {what}); "
                "get both from the same release"
            )
        renamed[target] = value
    if heads:
        logger.info(f"{name}: its heads are not used ({', '.join(sorted(heads))[:80]!a})")
    return renamed


def _is_head(key: str) -> bool:
    return key.startswith(HEADS) or key in XVECTOR_HEAD
