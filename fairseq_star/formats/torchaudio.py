"""torchaudio's wav2vec 2.0 models: its own state dicts and the exports of this project to read, an export to write.

    saved = torch.load("student.pt", weights_only=True)
    model = torchaudio.models.wav2vec2_model(**saved["arguments"]).eval()
    model.load_state_dict(saved["state_dict"])
    layers, frame_lengths = model.extract_features(waveforms, num_samples)      # B x samples, B

``layers`` are the L layers' outputs; torchaudio does not return the first layer's input. Its group norm runs over the
padded batch, so utterances of one batch should be of similar length. ``saved["sample_rate"]`` is in Hz; where
``saved["normalize"]`` is true, each waveform must be brought to zero mean and unit variance first. Where the student
has no projection, torchaudio's is the identity. Names are HuggingFace's under other parents.

A state dict alone, as torchaudio's pipelines download it, states neither strides nor heads; it is read if its width and
depth are those of a model that torchaudio publishes, all of which share their convolutions.

A student whose layers differ has a list of heads and of feed-forward units, one a layer, and ``encoder_head_dim`` among
its arguments, as DPHuBERT's files have. torchaudio's function takes no lists: :func:`build_model` builds its layers one
by one.

Source: torchaudio, ``models/wav2vec2/model.py``, ``pipelines/_wav2vec2/impl.py``.
"""

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Mapping, Sequence

import torch
from torch import Tensor

from fairseq_star.encoder.config import BY_LAYER, HUBERT_BASE, EncoderConfig
from fairseq_star.encoder.frames import ConvLayer
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.formats.building import build_frozen
from fairseq_star.formats.config import Section, check_divides
from fairseq_star.formats.ctc import CtcHead
from fairseq_star.formats.hf_keys import huggingface_weights, table, to_fairseq
from fairseq_star.formats.student import Student
from fairseq_star.formats.target import Target, batches, model_file, valid_frames
from fairseq_star.manifest import SAMPLE_RATE
from fairseq_star.runtime.torchaudio_import import import_torchaudio

logger = logging.getLogger(__name__)

INSTALL = "pip install the torchaudio of your torch release"
# HuggingFace's parents of a weight -> torchaudio's.
PARENTS = (("feature_projection.", "encoder.feature_projection."), ("encoder.", "encoder.transformer."))
TO_HUGGINGFACE = tuple((theirs, own) for own, theirs in PARENTS)
LAYER = re.compile(r"encoder\.transformer\.layers\.(\d+)\.")
FILE = "model.pt"  # in the folder of a fine-tuned student
HEAD = "aux."  # of a model that was fine-tuned with CTC
EXTRACTOR_MODES = {"group_norm": "default", "layer_norm": "layer_norm"}
# Fields of EncoderConfig and fairseq's dropouts -> torchaudio's names.
SIZES = {
    "embed_dim": "encoder_embed_dim",
    "ffn_embed_dim": "encoder_ff_interm_features",
    "num_layers": "encoder_num_layers",
    "num_heads": "encoder_num_heads",
    "conv_pos": "encoder_pos_conv_kernel",
    "conv_pos_groups": "encoder_pos_conv_groups",
}
HEAD_DIM = "encoder_head_dim"
FLAGS = {"conv_bias": "extractor_conv_bias", "layer_norm_first": "encoder_layer_norm_first"}
DROPOUTS = {
    "dropout": "encoder_dropout",
    "attention_dropout": "encoder_attention_dropout",
    "activation_dropout": "encoder_ff_interm_dropout",
    "dropout_input": "encoder_projection_dropout",
}
# (width, layers) of torchaudio's published models -> heads, feed-forward width.
PUBLISHED = {(768, 12): (12, 3072), (1024, 24): (16, 4096), (1280, 48): (16, 5120), (1920, 48): (16, 7680)}


def has_torchaudio_keys(weights: Any) -> bool:
    """Return whether ``weights`` have torchaudio's names."""
    return isinstance(weights, dict) and any(isinstance(key, str) and LAYER.match(key) for key in weights)


def recognises(state: Mapping) -> bool:
    """Return whether a checkpoint is an export for torchaudio, or a state dict of torchaudio's."""
    exported = isinstance(state.get("arguments"), dict) and has_torchaudio_keys(state.get("state_dict"))
    return exported or has_torchaudio_keys(state)


def read_encoder(state: Mapping, *, name: str, valid_group_norm: bool = True) -> FrozenEncoder:
    """Return the encoder in a file of torchaudio's layout, frozen.

    Raises:
        StarError: arguments and weights do not fit each other, or weights alone are of no published size.
    """
    if "arguments" not in state:
        return published(state, name=name, valid_group_norm=valid_group_norm)
    config, audio = encoder_config(Section(state["arguments"], name)), Section(state, name).audio()
    return frozen_of(config, state["state_dict"], name=name, valid_group_norm=valid_group_norm, **audio)


def dropouts(state: Mapping, name: str) -> dict[str, float]:
    """Return the dropouts among torchaudio's arguments under fairseq's names, 0 where there are none."""
    values = Section(state.get("arguments", {}), name)
    return {own: values.share(theirs, 0.0) for own, theirs in DROPOUTS.items()}


def encoder_config(arguments: Section) -> EncoderConfig:
    """Return the encoder that torchaudio's ``wav2vec2_model`` builds of ``arguments``.

    Raises:
        StarError: a missing or impossible value.
    """
    by_layer = {
        own: tuple(arguments.wholes(theirs))
        for own, theirs in SIZES.items()
        if own in BY_LAYER and isinstance(arguments.values.get(theirs), list | tuple)
    }
    try:
        config = EncoderConfig(
            conv_layers=_conv_layers(arguments),
            extractor_mode=EXTRACTOR_MODES[arguments.choice("extractor_mode", None, tuple(EXTRACTOR_MODES))],
            **arguments.sizes({own: theirs for own, theirs in SIZES.items() if own not in by_layer}),
            **by_layer,
            head_dim=None if arguments.values.get(HEAD_DIM) is None else arguments.whole(HEAD_DIM),
            **{own: arguments.flag(theirs) for own, theirs in FLAGS.items()},
        )
    except StarError as error:
        raise error if str(error).startswith(arguments.name) else StarError(f"{arguments.name}: {error}") from error
    return check_divides(config, arguments.name)


def _conv_layers(arguments: Section) -> list[ConvLayer]:
    """Return the triples of channels, kernel and stride in the arguments; None there stands for HuBERT's own."""
    key = "extractor_conv_layer_config"
    value = arguments.values.get(key)
    if value is None:
        return list(HUBERT_BASE.conv_layers)
    if not isinstance(value, list | tuple) or not 0 < len(value) <= 64:
        raise arguments.refuse(key, value, "a list of (channels, kernel, stride)")
    layers = []
    for layer in value:
        numbers = Section({key: layer}, arguments.name).wholes(key)
        if len(numbers) != 3:
            raise arguments.refuse(key, layer, "(channels, kernel, stride)")
        layers.append(ConvLayer(*numbers))
    return layers


def published(weights: Mapping, *, name: str, valid_group_norm: bool = True) -> FrozenEncoder:
    """Return the encoder of a state dict without arguments, with those of torchaudio's published model of its size.

    Raises:
        StarError: it is WavLM's, or of no width and depth that torchaudio publishes.
    """
    if any("attention.attention.in_proj" in str(key) for key in weights):
        raise StarError(
            f"{name} is a state dict of torchaudio's WavLM, which is not read; give Microsoft's checkpoint of that "
            "WavLM, or its HuggingFace folder"
        )
    norm = weights.get("encoder.transformer.layer_norm.weight")
    width = norm.numel() if isinstance(norm, Tensor) else 0
    layers = {layer[1] for key in weights if isinstance(key, str) and (layer := LAYER.match(key))}
    if (width, len(layers)) not in PUBLISHED:
        raise StarError(
            f"{name} has torchaudio's weights alone ({len(layers)} layers of {width}), which state neither strides nor "
            "heads, and is of no size that torchaudio publishes; save it as {'arguments': ..., 'state_dict': ..., "
            "'normalize': ...} with the arguments that torchaudio.models.wav2vec2_model got"
        )
    heads, inner = PUBLISHED[width, len(layers)]
    layer_norm = "feature_extractor.conv_layers.1.layer_norm.weight" in weights
    logger.warning(
        f"{name} has torchaudio's weights alone: taking the strides and {heads} heads of its published model of "
        f"{len(layers)} layers of {width}, {SAMPLE_RATE} Hz, normalize={layer_norm} after its extractor's kind"
    )
    config = replace(
        HUBERT_BASE,
        embed_dim=width,
        ffn_embed_dim=inner,
        num_layers=len(layers),
        num_heads=heads,
        extractor_mode="layer_norm" if layer_norm else "default",
        conv_bias="feature_extractor.conv_layers.0.conv.bias" in weights,
        layer_norm_first=layer_norm,  # as in all published models
    )
    return frozen_of(
        config, weights, name=name, sample_rate=SAMPLE_RATE, normalize=layer_norm, valid_group_norm=valid_group_norm
    )


def frozen_of(config: EncoderConfig, weights: Mapping, *, name: str, family="torchaudio", **audio) -> FrozenEncoder:
    """Build the encoder of weights under torchaudio's names, as :func:`build_frozen` does; a CTC head is dropped."""
    pairs = table(
        layer_norm_extractor=config.extractor_mode == "layer_norm", wavlm=config.relative_position is not None
    )
    renamed: dict[Any, Any] = {}
    for key, value in weights.items():
        if isinstance(key, str) and key.startswith(HEAD):
            continue
        own = to_fairseq(_moved(key, TO_HUGGINGFACE), pairs) if isinstance(key, str) else None
        # An unknown or repeated key stays under its name, so that build_frozen refuses it.
        renamed[key if own is None or own in renamed else own] = value
    kind = "WavLM" if config.relative_position is not None else "HuBERT or wav2vec 2.0"
    return build_frozen(config, renamed, family=f"{kind} ({family})", name=name, **audio)


def _moved(key: str, parents: tuple[tuple[str, str], ...]) -> str:
    """Return ``key`` under its new parent, where its parent is one of the pairs (old, new)."""
    for old, new in parents:
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


class Torchaudio(Target):
    """A file with a dict of ``arguments``, ``state_dict``, ``sample_rate`` and ``normalize``.

    Of a fine-tuned student a folder with that file, whose model's output are scores of tokens, and the tokens.
    """

    title = "torchaudio file"
    requires: ClassVar = {"torchaudio": INSTALL}
    heads: ClassVar = (CtcHead,)

    def write(self, student: Student, path: Path) -> None:
        torch.save(torchaudio_state(student), model_file(path, student.head, FILE))

    @torch.no_grad()
    def hidden_states(self, path: Path, sources: Sequence[Tensor], *, padded: bool) -> list[list[Tensor]]:
        saved = torch.load(path, weights_only=True)
        model = build_model(saved)
        first = []  # the first layer's input, which torchaudio does not return
        model.encoder.transformer.layers[0].register_forward_pre_hook(lambda _, inputs: first.append(inputs[0]))
        utterances = []
        for source, num_samples in batches(sources, padded=padded, normalize=saved["normalize"]):
            layers, frame_lengths = model.extract_features(source, num_samples)
            states = [first.pop(), *layers]
            if saved["arguments"]["encoder_layer_norm_first"]:
                states[-1] = model(source, num_samples)[0]
            utterances += valid_frames(states, frame_lengths)
        return utterances

    @torch.no_grad()
    def head_outputs(self, path: Path, sources: Sequence[Tensor], *, padded: bool) -> list[list[Tensor]]:
        saved = torch.load(path / FILE, weights_only=True)
        model, utterances = build_model(saved), []
        for source, num_samples in batches(sources, padded=padded, normalize=saved["normalize"]):
            scores, frame_lengths = model(source, num_samples)
            utterances += self.head.split([torch.log_softmax(scores, dim=-1)], frame_lengths)
        return utterances

    def next_step(self, path: Path) -> str:
        file = path if self.head is None else path / FILE
        run = "" if self.head is None else "\nlog_probs = torch.log_softmax(model(waveforms)[0], dim=-1)"
        return (
            f"saved = torch.load({str(file)!r}, weights_only=True)\n"
            'model = torchaudio.models.wav2vec2_model(**saved["arguments"]).eval()\n'
            f'model.load_state_dict(saved["state_dict"]){run}'
        )


def torchaudio_state(student: Student) -> dict:
    """Return ``student`` as :class:`Torchaudio` writes it.

    Raises:
        StarError: an activation other than GELU, which torchaudio does not have, or a weight of unknown name.
    """
    config = student.config
    if config.activation_fn != "gelu":
        raise StarError(
            f"export: torchaudio's model has GELU alone, this student activation_fn={config.activation_fn}; "
            "export it for fairseq, s3prl or HuggingFace"
        )
    modes = {own: theirs for theirs, own in EXTRACTOR_MODES.items()}
    arguments = {
        "extractor_mode": modes[config.extractor_mode],
        "extractor_conv_layer_config": [tuple(layer) for layer in config.conv_layers],
        **{theirs: getattr(config, own) for own, theirs in (SIZES | FLAGS).items()},
        **({} if isinstance(config.num_heads, int) else {SIZES["num_heads"]: list(config.num_heads)}),
        **({} if isinstance(config.ffn_embed_dim, int) else {SIZES["ffn_embed_dim"]: list(config.ffn_embed_dim)}),
        **({} if config.head_dim is None else {HEAD_DIM: config.head_dim}),
        **{theirs: student.dropouts[own] for own, theirs in DROPOUTS.items()},
        "encoder_layer_drop": 0.0,
        "aux_num_out": None if student.head is None else student.head.proj.out_features,
    }
    weights = {_moved(key, PARENTS): value.clone() for key, value in huggingface_weights(student).items()}
    if student.head is not None:
        weights |= {f"{HEAD}{key}": value for key, value in student.head.proj.state_dict().items()}
    return {
        "arguments": arguments,
        "state_dict": weights,
        "sample_rate": student.sample_rate,
        "normalize": student.normalize,
    }


def build_model(saved: dict) -> torch.nn.Module:
    """Return torchaudio's ``Wav2Vec2Model`` of a :func:`torchaudio_state`, frozen and in eval mode."""
    wav2vec2 = import_torchaudio().models.wav2vec2
    arguments = dict(saved["arguments"])
    width, num_layers = arguments["encoder_embed_dim"], arguments["encoder_num_layers"]
    heads, units = (
        sizes if isinstance(sizes, list) else [sizes] * num_layers
        for sizes in (arguments[SIZES["num_heads"]], arguments[SIZES["ffn_embed_dim"]])
    )
    head_dim = arguments.pop(HEAD_DIM, None) or width // heads[0]
    arguments |= {SIZES["num_heads"]: 1, SIZES["ffn_embed_dim"]: 1}
    parts = wav2vec2.components
    with torch.random.fork_rng(devices=[]):
        model = wav2vec2.wav2vec2_model(**arguments)
        for layer, layer_heads, layer_units in zip(model.encoder.transformer.layers, heads, units, strict=True):
            layer.attention = _attention(parts.SelfAttention(width, 1), layer_heads, head_dim)
            layer.feed_forward = parts.FeedForward(width, layer_units, 0.0, 0.0)
    model.eval()
    model.load_state_dict(saved["state_dict"])
    return model.requires_grad_(False)


def _attention(attention: torch.nn.Module, num_heads: int, head_dim: int) -> torch.nn.Module:
    """torchaudio's attention, whose constructor wants heads together as wide as the encoder, of any heads."""
    width, inner = attention.embed_dim, num_heads * head_dim
    attention.num_heads, attention.head_dim, attention.scaling = num_heads, head_dim, head_dim**-0.5
    for name in ("k_proj", "v_proj", "q_proj"):
        setattr(attention, name, torch.nn.Linear(width, inner))
    attention.out_proj = torch.nn.Linear(inner, width)
    return attention
