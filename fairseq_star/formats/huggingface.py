"""HuggingFace folders: HuBERT, wav2vec 2.0, WavLM and data2vec-audio to read, a HuBERT to write.

Read key by key into fairseq's modules, which compute the same under other names (``hf_keys.py``), so neither
transformers nor code from the folder is needed. transformers is not asked even where it is installed: its config
classes act on what a stranger's file says (a large ``num_labels`` takes all memory) and take a second to import. What
it takes for a value left out stands here, and tests hold it to the installed release.

Of what is written ``AutoModel.from_pretrained(FOLDER)`` makes a ``HubertModel`` with the student's hidden states.
HuBERT always has a projection there: where the student has none, the identity is written, and taken off again when the
folder is imported. ``masked_spec_embed``, put in place of frames that SpecAugment masks in fine-tuning, is zeros for a
student that was trained without hidden frames. Where audio is normalized, transformers adds 1e-7 to its variance and
fairseq 1e-5: very quiet audio differs.

Source: transformers, ``models/{hubert,wav2vec2,wavlm,data2vec}/``.
"""

import json
import logging
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Sequence

import torch
from torch import Tensor

from fairseq_star.encoder.config import HUBERT_BASE, EncoderConfig
from fairseq_star.encoder.frames import ConvLayer
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.formats.building import build_frozen
from fairseq_star.formats.fields import ACTIVATIONS, MAX_LAYERS, Section, check_divides
from fairseq_star.formats.hf_audio import audio_format
from fairseq_star.formats.hf_folder import CONFIG, PREPROCESSOR, WEIGHT_FILES, read_json, read_weights
from fairseq_star.formats.hf_keys import TO_PARAMETRIZED, Table, table, to_fairseq, to_huggingface
from fairseq_star.formats.microsoft import check_buckets
from fairseq_star.formats.student import Student
from fairseq_star.formats.target import Target
from fairseq_star.runtime.provenance import __version__

logger = logging.getLogger(__name__)

# Of all four families, where a config does not say them.
CONV_DIM, CONV_KERNEL, CONV_STRIDE = zip(*HUBERT_BASE.conv_layers, strict=True)


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


def read_encoder(folder: str, *, option: str, valid_group_norm: bool = True) -> FrozenEncoder:
    """The encoder in a HuggingFace folder frozen, every key accounted for.

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
    return build_frozen(
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
    conv_pos, depth = config.whole("num_conv_pos_embeddings", 5 if data2vec else HUBERT_BASE.conv_pos), 1
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
        embed_dim=config.whole("hidden_size", HUBERT_BASE.embed_dim),
        ffn_embed_dim=config.whole("intermediate_size", HUBERT_BASE.ffn_embed_dim),
        num_layers=config.whole("num_hidden_layers", HUBERT_BASE.num_layers, at_most=MAX_LAYERS),
        num_heads=config.whole("num_attention_heads", HUBERT_BASE.num_heads),
        conv_pos=conv_pos,
        conv_pos_groups=config.whole("num_conv_pos_embedding_groups", HUBERT_BASE.conv_pos_groups),
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


# fairseq's dropouts under HuggingFace's names.
DROPOUTS = {
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "dropout_input": "feat_proj_dropout",
}


def dropouts(config: Section) -> dict[str, float]:
    """The dropouts of a ``config.json`` under fairseq's names; transformers' defaults where it says nothing."""
    defaults = {"dropout_input": 0.0}
    return {name: config.share(theirs, defaults.get(name, 0.1)) for name, theirs in DROPOUTS.items()}


class HuggingFace(Target):
    """A folder of config, safetensors, preprocessor and model card."""

    title = "HuggingFace folder"
    is_folder = True
    requires: ClassVar = {"transformers": "pip install 'fairseq-star[hf]'"}

    def write(self, student: Student, path: Path) -> None:
        from safetensors.torch import save

        path.mkdir()
        (path / WEIGHT_FILES[0]).write_bytes(save(_weights(student), metadata={"format": "pt"}))
        (path / CONFIG).write_text(json.dumps(_config(student), indent=2) + "\n")
        preprocessor = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "do_normalize": student.normalize,
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": True,
            "sampling_rate": student.sample_rate,
        }
        (path / PREPROCESSOR).write_text(json.dumps(preprocessor, indent=2) + "\n")
        (path / "README.md").write_text(_card(student))

    @torch.no_grad()
    def hidden_states(self, path: Path, sources: Sequence[Tensor], *, padded: bool) -> list[list[Tensor]]:
        from transformers import AutoFeatureExtractor, AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # of a load that takes a tenth of a second
        model, loading = AutoModel.from_pretrained(path, output_loading_info=True)
        if unmatched := [key for keys in loading.values() for key in keys]:
            raise StarError(f"export: transformers does not match {unmatched[0]!a} of the folder it was given")
        model.eval()
        extractor = AutoFeatureExtractor.from_pretrained(path)
        utterances = []
        for batch in [list(sources)] if padded else [[source] for source in sources]:
            inputs = extractor(
                [source.numpy() for source in batch],
                sampling_rate=extractor.sampling_rate,
                padding=True,
                return_tensors="pt",
            )
            output = model(**inputs, output_hidden_states=True)
            states = [*output.hidden_states[:-1], output.last_hidden_state]
            lengths = model._get_feat_extract_output_lengths(inputs["attention_mask"].sum(1))
            utterances += [[state[number, :length] for state in states] for number, length in enumerate(lengths)]
        return utterances

    def next_step(self, path: Path) -> str:
        folder = shlex.quote(str(path.resolve()))
        program = f"from transformers import AutoModel; print(AutoModel.from_pretrained({str(path)!r}))"
        return (
            f"python -c {shlex.quote(program)}\n"
            "or in the folder s3prl/s3prl of a clone:\n"
            f"  python run_downstream.py -m train -n NAME -u hf_hubert_custom -k {folder} -d speech_commands"
        )


def _weights(student: Student) -> dict[str, Tensor]:
    """All weights under HuggingFace's names.

    Raises:
        StarError: a weight that the table has no name for.
    """
    pairs = table(layer_norm_extractor=student.config.extractor_mode == "layer_norm")
    width, renamed = student.config.embed_dim, {}
    for key, value in student.weights().items():
        target = to_huggingface(key, pairs)
        if target is None:
            raise StarError(f"export: {key} of {student.origin} has no name in HuggingFace's HuBERT")
        renamed[TO_PARAMETRIZED.get(target, target)] = value.contiguous()
    if not student.config.projection:
        renamed["feature_projection.projection.weight"] = torch.eye(width)
        renamed["feature_projection.projection.bias"] = torch.zeros(width)
    renamed["masked_spec_embed"] = student.mask_or_zeros()
    return renamed


def _config(student: Student) -> dict:
    config = student.config
    config.check_uniform("transformers' HuBERT")
    channels, kernels, strides = zip(*config.conv_layers, strict=True)
    return {
        "architectures": ["HubertModel"],
        "model_type": "hubert",
        "dtype": "float32",
        "hidden_size": config.embed_dim,
        "intermediate_size": config.ffn_embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": config.activation_fn,
        "conv_dim": channels,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "conv_bias": config.conv_bias,
        "feat_extract_norm": "layer" if config.extractor_mode == "layer_norm" else "group",
        "feat_extract_activation": "gelu",
        "feat_proj_layer_norm": True,
        "num_conv_pos_embeddings": config.conv_pos,
        "num_conv_pos_embedding_groups": config.conv_pos_groups,
        "do_stable_layer_norm": config.layer_norm_first,
        "layer_norm_eps": config.layer_norm_eps,
        "layerdrop": 0.0,
        "mask_time_prob": 0.05,
        **{theirs: student.dropouts[name] for name, theirs in DROPOUTS.items()},
    }


def _card(student: Student) -> str:
    config = student.config
    group_norm = config.extractor_mode != "layer_norm"
    projection = "" if config.projection else (
        "* The last convolution already has the width of the Transformer, so the projection that HuBERT has here is "
        "the identity.\n"
    )  # fmt: skip
    padding = (
        "* Give the `attention_mask`, as the preprocessor does: the model was trained with padded frames masked out of "
        "attention.\n"
    )
    if group_norm:
        padding += (
            "* The group norm of the first convolution takes its statistics over the whole padded batch here, as in "
            "all of transformers' models of this kind, so the features of a shorter utterance depend on what it is "
            "batched with. Run utterances one by one, or batch equal lengths, for the features the model was trained "
            "with.\n"
        )
    normalize = "zero mean and unit variance (the preprocessor sees to it)" if student.normalize else "as it is"
    return f"""---
library_name: transformers
pipeline_tag: feature-extraction
tags: [audio, speech, hubert, distillation]
---
# {student.name}

A speech encoder distilled by STaR (arXiv 2312.09040) with fairseq-star {__version__}: {student.num_parameters:,}
parameters, {config.num_layers} layers of {config.embed_dim}, {student.sample_rate:,} Hz mono audio, taken {normalize},
{student.sample_rate / student.model.geometry.downsample_rate:g} frames a second.

```python
import torch
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained("THIS_FOLDER")
model = AutoModel.from_pretrained("THIS_FOLDER").eval()
inputs = extractor([audio], sampling_rate={student.sample_rate}, padding=True, return_tensors="pt")
with torch.no_grad():
    states = model(**inputs, output_hidden_states=True).hidden_states
```

{padding}{projection}* `masked_spec_embed`, of use in fine-tuning with SpecAugment only, is zeros if none was learned.
"""
