"""Names of weights in HuggingFace's wav2vec 2.0-like encoders and in fairseq's: one invertible table.

``{n}`` is a layer's number, ``{p}`` what follows (``weight``, ``bias``). WavLM's right-hand side is Microsoft's.
"""

import re

import torch
from torch import Tensor

from fairseq_star.errors import StarError
from fairseq_star.formats.student import Student

COMMON = (
    ("feature_extractor.conv_layers.{n}.conv.{p}", "feature_extractor.conv_layers.{n}.0.{p}"),
    ("feature_projection.layer_norm.{p}", "layer_norm.{p}"),
    ("feature_projection.projection.{p}", "post_extract_proj.{p}"),
    ("encoder.layer_norm.{p}", "encoder.layer_norm.{p}"),
    ("encoder.layers.{n}.attention.q_proj.{p}", "encoder.layers.{n}.self_attn.q_proj.{p}"),
    ("encoder.layers.{n}.attention.k_proj.{p}", "encoder.layers.{n}.self_attn.k_proj.{p}"),
    ("encoder.layers.{n}.attention.v_proj.{p}", "encoder.layers.{n}.self_attn.v_proj.{p}"),
    ("encoder.layers.{n}.attention.out_proj.{p}", "encoder.layers.{n}.self_attn.out_proj.{p}"),
    ("encoder.layers.{n}.layer_norm.{p}", "encoder.layers.{n}.self_attn_layer_norm.{p}"),
    ("encoder.layers.{n}.feed_forward.intermediate_dense.{p}", "encoder.layers.{n}.fc1.{p}"),
    ("encoder.layers.{n}.feed_forward.output_dense.{p}", "encoder.layers.{n}.fc2.{p}"),
    ("encoder.layers.{n}.final_layer_norm.{p}", "encoder.layers.{n}.final_layer_norm.{p}"),
)
GROUP_NORM = (("feature_extractor.conv_layers.{n}.layer_norm.{p}", "feature_extractor.conv_layers.{n}.2.{p}"),)
LAYER_NORM = (("feature_extractor.conv_layers.{n}.layer_norm.{p}", "feature_extractor.conv_layers.{n}.2.1.{p}"),)
POSITIONAL = (
    ("encoder.pos_conv_embed.conv.bias", "encoder.pos_conv.0.bias"),
    ("encoder.pos_conv_embed.conv.weight_g", "encoder.pos_conv.0.weight_g"),
    ("encoder.pos_conv_embed.conv.weight_v", "encoder.pos_conv.0.weight_v"),
)
POSITIONAL_STACK = (("encoder.pos_conv_embed.layers.{n}.conv.{p}", "encoder.pos_conv.{n}.0.{p}"),)
WAVLM = (
    ("encoder.layers.{n}.attention.gru_rel_pos_const", "encoder.layers.{n}.self_attn.grep_a"),
    ("encoder.layers.{n}.attention.gru_rel_pos_linear.{p}", "encoder.layers.{n}.self_attn.grep_linear.{p}"),
    ("encoder.layers.{n}.attention.rel_attn_embed.{p}", "encoder.layers.{n}.self_attn.relative_attention_bias.{p}"),
)
# Names that torch's newer weight norm, which newer transformers use, gives to the two parts of the same weight.
PARAMETRIZED = {
    "encoder.pos_conv_embed.conv.parametrizations.weight.original0": "encoder.pos_conv_embed.conv.weight_g",
    "encoder.pos_conv_embed.conv.parametrizations.weight.original1": "encoder.pos_conv_embed.conv.weight_v",
}
TO_PARAMETRIZED = {old: new for new, old in PARAMETRIZED.items()}
Table = tuple[tuple[str, str], ...]


def table(*, layer_norm_extractor: bool, positional_stack: bool = False, wavlm: bool = False) -> Table:
    """Return the pairs (HuggingFace, fairseq) of one kind of encoder."""
    extractor = LAYER_NORM if layer_norm_extractor else GROUP_NORM
    positional = POSITIONAL_STACK if positional_stack else POSITIONAL
    return COMMON + extractor + positional + (WAVLM if wavlm else ())


def to_fairseq(key: str, pairs: Table) -> str | None:
    """Return fairseq's name of HuggingFace's ``key``; None where the table has none."""
    return _translate(PARAMETRIZED.get(key, key), pairs)


def to_huggingface(key: str, pairs: Table) -> str | None:
    """Return HuggingFace's name of fairseq's ``key``; None where the table has none."""
    return _translate(key, tuple((right, left) for left, right in pairs))


def huggingface_weights(student: Student) -> dict[str, Tensor]:
    """Return a student's weights under HuggingFace's names; its projection is the identity where it has none.

    Raises:
        StarError: a weight that the table has no name for.
    """
    pairs = table(layer_norm_extractor=student.config.extractor_mode == "layer_norm")
    width, renamed = student.config.embed_dim, {}
    for key, value in student.weights().items():
        name = to_huggingface(key, pairs)
        if name is None:
            raise StarError(f"export: HuggingFace's HuBERT has no name for {key} of {student.origin}; please report it")
        renamed[name] = value
    if not student.config.projection:
        renamed["feature_projection.projection.weight"] = torch.eye(width)
        renamed["feature_projection.projection.bias"] = torch.zeros(width)
    return renamed


def _translate(key: str, pairs: Table) -> str | None:
    for left, right in pairs:
        pattern = re.escape(left).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\{p\}", r"(?P<p>weight|bias)")
        if match := re.fullmatch(pattern, key):
            return right.format(**match.groupdict())
    return None
