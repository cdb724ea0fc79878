"""A HuggingFace folder: ``AutoModel.from_pretrained(FOLDER)`` gives a ``HubertModel`` with the student's hidden states.

Names are translated by the table the teachers are read with (``teachers/hf_keys.py``). HuBERT always has a projection
there: where the student has none, the identity is written, and taken off again when the folder is imported.
``masked_spec_embed``, put in place of frames that SpecAugment masks in fine-tuning, is zeros: the student has none.

Where audio is normalized, transformers adds 1e-7 to its variance and fairseq 1e-5: very quiet audio differs.

Source: transformers, ``models/hubert/{configuration,modeling}_hubert.py``.
"""

import json
import shlex
from pathlib import Path
from typing import ClassVar, Sequence

import torch
from torch import Tensor

from fairseq_star.convert.student import Student
from fairseq_star.convert.target import Target
from fairseq_star.errors import StarError
from fairseq_star.teachers.config import Section
from fairseq_star.teachers.hf_folder import CONFIG, PREPROCESSOR, WEIGHT_FILES
from fairseq_star.teachers.hf_keys import TO_PARAMETRIZED, table, to_huggingface
from fairseq_star.version import __version__

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
    renamed["masked_spec_embed"] = torch.zeros(width)
    return renamed


def _config(student: Student) -> dict:
    config = student.config
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

{padding}{projection}* `masked_spec_embed`, of use in fine-tuning with SpecAugment only, is zeros.
"""
