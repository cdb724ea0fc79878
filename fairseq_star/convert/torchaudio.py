"""torchaudio: the arguments of ``torchaudio.models.wav2vec2_model`` and the weights of the model it builds.

    saved = torch.load("student.pt", weights_only=True)
    model = torchaudio.models.wav2vec2_model(**saved["arguments"]).eval()
    model.load_state_dict(saved["state_dict"])
    layers, frame_lengths = model.extract_features(waveforms, num_samples)      # B x samples, B

``layers`` are the L layers' outputs; torchaudio does not give out what enters the first layer. Its group norm runs over
the padded batch, so utterances of one batch should be of like length. ``saved["sample_rate"]`` is in Hz; where
``saved["normalize"]`` is true, each waveform must be brought to zero mean and unit variance first.

Where the student has no projection, torchaudio's is the identity. Names are HuggingFace's under other parents.
"""

from pathlib import Path
from typing import ClassVar, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_star.convert.student import Student
from fairseq_star.convert.target import Target
from fairseq_star.errors import StarError
from fairseq_star.teachers import hf_keys
from fairseq_star.teachers.torchaudio import PARENTS
from fairseq_star.torchaudio_import import import_torchaudio

INSTALL = "pip install the torchaudio of your torch release"


class Torchaudio(Target):
    """A dict of ``arguments``, ``state_dict``, ``sample_rate`` and ``normalize``; plain values and tensors."""

    title = "torchaudio file"
    requires: ClassVar = {"torchaudio": INSTALL}

    def write(self, student: Student, path: Path) -> None:
        torch.save(torchaudio_state(student), path)

    @torch.no_grad()
    def hidden_states(self, path: Path, sources: Sequence[Tensor], *, padded: bool) -> list[list[Tensor]]:
        saved = torch.load(path, weights_only=True)
        model = build(saved)
        first = []  # torchaudio keeps the first layer's input to itself
        model.encoder.transformer.layers[0].register_forward_pre_hook(lambda _, inputs: first.append(inputs[0]))
        utterances = []
        for source, num_samples in batches(sources, padded=padded, normalize=saved["normalize"]):
            layers, frame_lengths = model.extract_features(source, num_samples)
            states = [first.pop(), *layers]
            if saved["arguments"]["encoder_layer_norm_first"]:
                states[-1] = model(source, num_samples)[0]
            utterances += valid_frames(states, frame_lengths)
        return utterances

    def next_step(self, path: Path) -> str:
        return (
            f"saved = torch.load({str(path)!r}, weights_only=True)\n"
            'model = torchaudio.models.wav2vec2_model(**saved["arguments"]).eval()\n'
            'model.load_state_dict(saved["state_dict"])'
        )


def torchaudio_state(student: Student) -> dict:
    """``student`` as :class:`Torchaudio` writes it.

    Raises:
        StarError: an activation other than GELU, which torchaudio does not have, or a weight of unknown name.
    """
    config = student.config
    if config.activation_fn != "gelu":
        raise StarError(
            f"export: torchaudio's model has GELU alone, this student activation_fn={config.activation_fn}; "
            "export it for fairseq, s3prl or HuggingFace"
        )
    arguments = {
        "extractor_mode": "group_norm" if config.extractor_mode == "default" else "layer_norm",
        "extractor_conv_layer_config": [tuple(layer) for layer in config.conv_layers],
        "extractor_conv_bias": config.conv_bias,
        "encoder_embed_dim": config.embed_dim,
        "encoder_projection_dropout": student.dropouts["dropout_input"],
        "encoder_pos_conv_kernel": config.conv_pos,
        "encoder_pos_conv_groups": config.conv_pos_groups,
        "encoder_num_layers": config.num_layers,
        "encoder_num_heads": config.num_heads,
        "encoder_attention_dropout": student.dropouts["attention_dropout"],
        "encoder_ff_interm_features": config.ffn_embed_dim,
        "encoder_ff_interm_dropout": student.dropouts["activation_dropout"],
        "encoder_dropout": student.dropouts["dropout"],
        "encoder_layer_norm_first": config.layer_norm_first,
        "encoder_layer_drop": 0.0,
        "aux_num_out": None,
    }
    pairs = hf_keys.table(layer_norm_extractor=config.extractor_mode == "layer_norm")
    weights = {_name(key, pairs): value.clone() for key, value in student.weights().items()}
    if not config.projection:
        weights["encoder.feature_projection.projection.weight"] = torch.eye(config.embed_dim)
        weights["encoder.feature_projection.projection.bias"] = torch.zeros(config.embed_dim)
    return {
        "arguments": arguments,
        "state_dict": weights,
        "sample_rate": student.sample_rate,
        "normalize": student.normalize,
    }


def _name(key: str, pairs: hf_keys.Table) -> str:
    """torchaudio's name of fairseq's ``key``."""
    name = hf_keys.to_huggingface(key, pairs)
    if name is None:
        raise StarError(f"export: torchaudio's model has no place for the weight {key}; please report it")
    for parent, other in PARENTS:
        if name.startswith(parent):
            return other + name.removeprefix(parent)
    return name


def build(saved: dict) -> torch.nn.Module:
    """torchaudio's ``Wav2Vec2Model`` from what :func:`torchaudio_state` gives, in eval mode; strict about its keys."""
    wav2vec2_model = import_torchaudio().models.wav2vec2_model
    with torch.random.fork_rng(devices=[]):
        model = wav2vec2_model(**saved["arguments"]).eval()
    model.load_state_dict(saved["state_dict"])
    return model.requires_grad_(False)


def batches(sources: Sequence[Tensor], *, padded: bool, normalize: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """(B x samples, num_samples) of all ``sources`` in one zero-padded batch, or of each by itself."""
    if normalize:
        sources = [F.layer_norm(source, source.shape) for source in sources]
    for batch in [list(sources)] if padded else [[source] for source in sources]:
        num_samples = torch.tensor([len(source) for source in batch])
        yield torch.nn.utils.rnn.pad_sequence(batch, batch_first=True), num_samples


def valid_frames(states: Sequence[Tensor], frame_lengths: Tensor) -> list[list[Tensor]]:
    """The L+1 ``states`` (each B x T x D) by utterance, each n_b x D."""
    return [[state[number, :length] for state in states] for number, length in enumerate(frame_lengths.tolist())]
