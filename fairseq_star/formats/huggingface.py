"""HuggingFace folders: HuBERT, wav2vec 2.0, WavLM and data2vec-audio to read, a HuBERT to write.

A folder is read key by key into fairseq's modules, which compute the same under other names (``hf_keys.py``), so that
neither transformers nor code from the folder is needed. transformers is not used even where it is installed: its config
classes act on values of the file (a large ``num_labels`` takes all memory) and take a second to import. Its defaults
for missing values are written here, and tests compare them with the installed release.

``AutoModel.from_pretrained(FOLDER)`` makes a ``HubertModel`` with the student's hidden states of a written folder.
HuBERT always has a projection there: where the student has none, the identity is written, and dropped when the folder
is imported. ``masked_spec_embed``, put in place of frames that SpecAugment masks in fine-tuning, is zeros for a student
that was trained without masked frames. Where audio is normalized, transformers adds 1e-7 to its variance and fairseq
1e-5: very quiet audio differs.

Source: transformers, ``models/{hubert,wav2vec2,wavlm,data2vec}/``.
"""

import json
import logging
import os
import shlex
from pathlib import Path
from typing import Any, ClassVar, Iterator, Sequence

import torch
from torch import Tensor, nn

from fairseq_star.encoder.config import HUBERT_BASE, EncoderConfig
from fairseq_star.encoder.frames import ConvLayer
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.formats.building import build_frozen, misfit
from fairseq_star.formats.config import ACTIVATIONS, Section, check_divides
from fairseq_star.formats.ctc import BOUNDARY, LETTER, SPACE, CtcHead, Tokens
from fairseq_star.formats.hf_folder import (
    CONFIG,
    EXTRACTOR_TYPE,
    PREPROCESSOR,
    WEIGHT_FILES,
    audio_format,
    read_json,
    read_weights,
)
from fairseq_star.formats.hf_keys import TO_PARAMETRIZED, Table, huggingface_weights, table, to_fairseq
from fairseq_star.formats.student import Student
from fairseq_star.formats.target import Target, in_batches, valid_frames
from fairseq_star.runtime.provenance import __version__

logger = logging.getLogger(__name__)

TASK = "automatic-speech-recognition"
# Defaults of all four families.
CONV_DIM, CONV_KERNEL, CONV_STRIDE = zip(*HUBERT_BASE.conv_layers, strict=True)


# transformers' ``model_type`` -> the family, for people.
FAMILIES = {"hubert": "HuBERT", "wav2vec2": "wav2vec 2.0", "wavlm": "WavLM", "data2vec-audio": "data2vec-audio"}
# Fields of EncoderConfig and fairseq's dropouts -> transformers' names.
SIZES = {
    "embed_dim": "hidden_size",
    "ffn_embed_dim": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "conv_pos_groups": "num_conv_pos_embedding_groups",
}
DROPOUTS = {
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "dropout_input": "feat_proj_dropout",
}
# Parts that are of use after the last layer or in pretraining only.
IGNORED = ("masked_spec_embed", "adapter.")
# Modules of an encoder: each of their keys must be known, whatever else is in the file.
ENCODER = ("feature_extractor.", "feature_projection.", "encoder.")
# Modules next to an encoder: transformers' (classifiers, CTC, pretraining, x-vectors) and contentvec's.
HEADS = (
    *("lm_head.", "classifier.", "projector.", "layer_weights", "tdnn.", "objective."),
    *("quantizer.", "project_hid.", "project_q.", "final_proj.", "label_embs_concat"),
)
XVECTOR_HEAD = ("feature_extractor.weight", "feature_extractor.bias")  # a linear layer under the convolutions' name


def read_encoder(folder: str, *, option: str, valid_group_norm: bool = True) -> FrozenEncoder:
    """Return the encoder in a HuggingFace folder, frozen, every key accounted for.

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
    encoder = _encoder_config(config, model_type)
    layer_norm_extractor = encoder.extractor_mode == "layer_norm"
    pairs = table(
        layer_norm_extractor=layer_norm_extractor,
        positional_stack=encoder.pos_conv_depth > 1,
        wavlm=encoder.relative_position is not None,
    )
    sample_rate, normalize = audio_format(folder, option, layer_norm_extractor=layer_norm_extractor)
    prefix = model_type.replace("-", "_") + "."  # of the encoder's keys in models with a head
    return build_frozen(
        encoder,
        _renamed(read_weights(folder, option), prefix, pairs, name),
        family=f"{FAMILIES[model_type]} (HuggingFace)",
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
    # data2vec's extractor always has layer norms, and its number of positional embeddings is a depth.
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
        relative_position = config.relative_position("num_buckets", "max_bucket_distance", 800)
    encoder = EncoderConfig(
        conv_layers=[ConvLayer(*layer) for layer in zip(widths, kernels, strides, strict=True)],
        **config.sizes(SIZES, HUBERT_BASE),
        conv_pos=conv_pos,
        extractor_mode="layer_norm" if norm == "layer" else "default",
        conv_bias=config.flag("conv_bias", False),
        activation_fn=config.choice("hidden_act", "gelu", ACTIVATIONS),
        layer_norm_first=not data2vec and config.flag("do_stable_layer_norm", False),
        input_norm=model_type != "hubert" or config.flag("feat_proj_layer_norm", True),
        pos_conv_depth=depth,
        layer_norm_eps=config.epsilon("layer_norm_eps", 1e-5),
        relative_position=relative_position,
    )
    return check_divides(encoder, config.name)


def _renamed(weights: dict[str, Tensor], prefix: str, pairs: Table, name: str) -> dict[str, Tensor]:
    """Return the encoder's weights under fairseq's names, without heads, as when transformers loads the encoder alone.

    Next to an encoder under its family's prefix, other modules are heads, whatever their names. Without a prefix only
    known heads are, because a key of another name might belong to the encoder.
    """
    if not all(isinstance(key, str) for key in weights):
        raise StarError(f"{name}: its weights are not named; download it again")
    headed = any(key.startswith(prefix) for key in weights)
    renamed, heads = {}, set()
    for key, value in weights.items():
        own = key.removeprefix(prefix)
        if own.startswith(IGNORED):
            continue
        if own.startswith(HEADS) or own in XVECTOR_HEAD or (headed and own == key and not own.startswith(ENCODER)):
            heads.add(own.partition(".")[0])
            continue
        target = to_fairseq(own, pairs)
        if target is None or target in renamed:
            raise misfit(name, f"{key[:80]!a} {'is unknown' if target is None else 'comes twice'}")
        renamed[target] = value
    if heads:
        logger.info(f"{name}: its heads are not used ({', '.join(sorted(heads))[:80]!a})")
    return renamed


def dropouts(config: Section) -> dict[str, float]:
    """Return the dropouts of a ``config.json`` under fairseq's names, with transformers' defaults."""
    defaults = {"dropout_input": 0.0}
    return {name: config.share(theirs, defaults.get(name, 0.1)) for name, theirs in DROPOUTS.items()}


class HuggingFace(Target):
    """A folder of config, safetensors, preprocessor and model card; of a fine-tuned student with a tokenizer.

    That is a ``HubertForCTC``, which ``transformers.pipeline("automatic-speech-recognition")`` runs.
    """

    title = "HuggingFace folder"
    is_folder = True
    heads: ClassVar = (CtcHead,)
    requires: ClassVar = {"transformers": "pip install 'fairseq-star[hf]'"}

    def write(self, student: Student, path: Path) -> None:
        from safetensors.torch import save

        path.mkdir()
        weights = huggingface_weights(student) | {"masked_spec_embed": student.mask_or_zeros()}
        weights = {TO_PARAMETRIZED.get(key, key): value.contiguous() for key, value in weights.items()}
        if student.head is not None:
            weights = {f"hubert.{key}": value for key, value in weights.items()}
            weights |= {f"lm_head.{key}": value for key, value in student.head.proj.state_dict().items()}
            for name, values in _tokenizer(student.head.tokens).items():
                (path / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (path / WEIGHT_FILES[0]).write_bytes(save(weights, metadata={"format": "pt"}))
        (path / CONFIG).write_text(json.dumps(_config(student), indent=2) + "\n")
        preprocessor = {
            "feature_extractor_type": EXTRACTOR_TYPE,
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
        from transformers import AutoModel

        model, utterances = _load(AutoModel, path), []
        for inputs in _inputs(path, sources, padded):
            output = model(**inputs, output_hidden_states=True)
            states = [*output.hidden_states[:-1], output.last_hidden_state]
            lengths = model._get_feat_extract_output_lengths(inputs["attention_mask"].sum(1))
            utterances += valid_frames(states, lengths)
        return utterances

    @torch.no_grad()
    def head_outputs(self, path: Path, sources: Sequence[Tensor], *, padded: bool) -> list[list[Tensor]]:
        from transformers import AutoModelForCTC

        model, utterances = _load(AutoModelForCTC, path), []
        for inputs in _inputs(path, sources, padded):
            log_probs = torch.log_softmax(model(**inputs).logits, dim=-1)
            lengths = model._get_feat_extract_output_lengths(inputs["attention_mask"].sum(1))
            utterances += self.head.split([log_probs], lengths)
        return utterances

    def texts(self, path: Path, sources: Sequence[Tensor]) -> dict[str, list[str]]:
        from transformers import pipeline

        recognizer = pipeline("automatic-speech-recognition", model=str(path))
        rate = recognizer.feature_extractor.sampling_rate
        given = [{"raw": source.numpy(), "sampling_rate": rate} for source in sources]
        return {"transformers' pipeline": [recognizer(utterance)["text"] for utterance in given]}

    def next_step(self, path: Path) -> str:
        if self.head is not None:
            program = (
                f"from transformers import pipeline; print(pipeline({TASK!r}, {str(path)!r})('speech.wav')['text'])"
            )
            return f"python -c {shlex.quote(program)}"
        folder = shlex.quote(str(path.resolve()))
        program = f"from transformers import AutoModel; print(AutoModel.from_pretrained({str(path)!r}))"
        return (
            f"python -c {shlex.quote(program)}\n"
            "or in the folder s3prl/s3prl of a clone:\n"
            f"  python run_downstream.py -m train -n NAME -u hf_hubert_custom -k {folder} -d speech_commands"
        )


def _load(kind: Any, path: Path) -> nn.Module:
    """Load a written folder as one of transformers' ``Auto`` classes, every key accounted for."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading takes a tenth of a second
    model, loading = kind.from_pretrained(path, output_loading_info=True)
    if unmatched := [key for keys in loading.values() for key in keys]:
        raise StarError(f"export: transformers does not match {unmatched[0]!a} of the written folder")
    return model.eval()


def _inputs(path: Path, sources: Sequence[Tensor], padded: bool) -> Iterator[dict[str, Tensor]]:
    from transformers import AutoFeatureExtractor

    extractor = AutoFeatureExtractor.from_pretrained(path)
    for batch in in_batches(sources, padded):
        yield extractor(
            [source.numpy() for source in batch],
            sampling_rate=extractor.sampling_rate,
            padding=True,
            return_tensors="pt",
        )


def _tokenizer(tokens: Tokens) -> dict[str, dict]:
    """Return the files of a ``Wav2Vec2CTCTokenizer``, as far as decoding needs it.

    transformers calls CTC's blank ``<pad>``; fairseq's own ``<pad>``, which no label has, gets the name of fairseq's
    blank. Subwords bring their spaces along.
    """
    letters = tokens.post_process == LETTER
    symbols = list(tokens.symbols if letters else (piece.replace(SPACE, " ") for piece in tokens.pieces))
    blank, padding = symbols[tokens.blank], "<pad>"
    if padding in symbols:
        symbols[symbols.index(padding)] = blank
    symbols[tokens.blank] = padding
    return {
        "vocab.json": {symbol: number for number, symbol in enumerate(symbols)},
        "tokenizer_config.json": {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "pad_token": padding,
            "unk_token": "<unk>",
            "bos_token": None,
            "eos_token": None,
            "word_delimiter_token": BOUNDARY if letters else " ",
            "do_lower_case": False,
            "clean_up_tokenization_spaces": False,
        },
    }


def _config(student: Student) -> dict:
    config = student.config
    config.check_uniform("transformers' HuBERT")
    channels, kernels, strides = zip(*config.conv_layers, strict=True)
    head = {}
    if student.head is not None:
        tokens = student.head.tokens
        head = {
            "vocab_size": len(tokens.symbols),
            "pad_token_id": tokens.blank,
            "bos_token_id": None,
            "eos_token_id": None,
        }
    return {
        "architectures": ["HubertModel" if student.head is None else "HubertForCTC"],
        "model_type": "hubert",
        "dtype": "float32",
        **{theirs: getattr(config, own) for own, theirs in SIZES.items()},
        "hidden_act": config.activation_fn,
        "conv_dim": channels,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "conv_bias": config.conv_bias,
        "feat_extract_norm": "layer" if config.extractor_mode == "layer_norm" else "group",
        "feat_extract_activation": "gelu",
        "feat_proj_layer_norm": True,
        "num_conv_pos_embeddings": config.conv_pos,
        "do_stable_layer_norm": config.layer_norm_first,
        "layer_norm_eps": config.layer_norm_eps,
        "layerdrop": 0.0,
        "mask_time_prob": 0.05,
        **{theirs: student.dropouts[name] for name, theirs in DROPOUTS.items()},
        **head,
    }


_USE = """```python
import torch
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained("THIS_FOLDER")
model = AutoModel.from_pretrained("THIS_FOLDER").eval()
inputs = extractor([audio], sampling_rate={rate}, padding=True, return_tensors="pt")
with torch.no_grad():
    states = model(**inputs, output_hidden_states=True).hidden_states
```
"""
_RECOGNIZE = """```python
from transformers import pipeline

print(pipeline("automatic-speech-recognition", "THIS_FOLDER")("speech.wav")["text"])
```
"""


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
    normalize = "zero mean and unit variance (the preprocessor does it)" if student.normalize else "as it is"
    task, what, use = ("feature-extraction", "speech encoder", _USE.format(rate=student.sample_rate))
    if student.head is not None:
        task, what, use = TASK, "speech recognizer, fine-tuned with CTC, whose encoder was", _RECOGNIZE
    return f"""---
library_name: transformers
pipeline_tag: {task}
tags: [audio, speech, hubert, distillation]
---
# {student.name}

A {what} distilled by STaR (arXiv 2312.09040) with fairseq-star {__version__}: {student.num_parameters:,}
parameters, {config.num_layers} layers of {config.embed_dim}, {student.sample_rate:,} Hz mono audio, taken {normalize},
{student.sample_rate / student.model.geometry.downsample_rate:g} frames a second.

{use}
{padding}{projection}* `masked_spec_embed`, of use in fine-tuning with SpecAugment only, is zeros if none was learned.
"""
