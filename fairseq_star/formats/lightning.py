"""The release format of STaRHuBERT's authors and of the re-implementation: a Lightning ``.ckpt`` and a ``.yaml``.

The ``.ckpt`` has a ``state_dict`` of ``student_model.`` and ``teacher_model.`` keys, the ``.yaml`` a section
``distiller`` with the student's config. Its modules have fairseq's names. Both recipes leave the audio as it is. The
authors' files also contain the optimizer's scheduler, an object of s3prl's, which :func:`read_inert` reads as empty.

Source: sungnyun/ARMHuBERT, ``models/{starhubert,maskhubert}/model.py``, ``utils/utils.py`` (``dump_yaml``).
"""

import os
from typing import Any, Mapping

import yaml
from torch import Tensor

from fairseq_star.encoder.config import DROPOUTS
from fairseq_star.errors import StarError
from fairseq_star.formats.building import build_frozen
from fairseq_star.formats.config import Section, encoder_config
from fairseq_star.formats.student import Student, student_of
from fairseq_star.manifest import SAMPLE_RATE

STUDENT, TEACHER = "student_model.", "teacher_model."
# Parts of the student that are of use in distillation only.
HEADS = ("final_proj.", "proj_head.", "mask_emb")
# Settings of `distiller` that define the student's architecture, under the names of fairseq's configs.
ARCHITECTURE = {
    *("conv_feature_layers", "extractor_mode", "conv_bias", "activation_fn", "layer_norm_first", "layer_type"),
    *("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"),
    *("conv_pos", "conv_pos_groups", "pos_conv_depth"),
}
# Settings that change nothing at this value and that no student here has at another.
HARMLESS_AT = {"crop_seq_to_multiple": 1, "enable_tr_layer": False}
# Settings that no hidden state of the trained student depends on.
TRAINING = {
    *("feature_grad_mult", "encoder_layerdrop", "layer_grad_scale", "checkpoint_activations", "fp16"),
    *("required_seq_len_multiple", "max_positions", "final_dim", "pred_head_final_dim", "pred_head_inter_dim"),
    *("layerwise_proj", "pred_layer_id", "init_conv_layers", "init_encoder_layers", "freeze_student_mask"),
    *("update_teacher_mask", "_teacher_task_agnostic", "_cnn_weight"),
    # Settings of conformers and of time reduction, which are switched on by layer_type and enable_tr_layer.
    *("depthwise_conv_kernel_size", "attn_type", "pos_enc_type"),
    *("tr_conv1d_kernel", "tr_layer_index", "tr_reduce_factor", "tr_layer_type"),
}
# The defaults of the authors' config class, which are not all this project's.
DROPOUT_DEFAULTS = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.0, "dropout_input": 0.0}
MAX_YAML_BYTES = 2**20


def recognises(state: Mapping) -> bool:
    """Return whether a checkpoint has Lightning's layout."""
    return isinstance(state.get("state_dict"), dict)


def read_student(state: Mapping, *, path: str, config_path: str) -> Student:
    """Return the student in a Lightning checkpoint, every key and setting accounted for; the teacher's weights go.

    Raises:
        StarError: the ``.yaml`` cannot be read, a setting changes what is computed and has no counterpart here or is
            unknown, or weights and config do not fit each other.
    """
    config = Section(_read_distiller(config_path), f"--config {config_path}")
    _check_settings(config)
    encoder = build_frozen(
        encoder_config(config),
        _student_weights(state["state_dict"], path),
        family="Lightning",
        name=f"import: {path}",
        sample_rate=SAMPLE_RATE,
        normalize=False,
        ignored=HEADS,
    )
    dropouts = {name: config.share(name, DROPOUT_DEFAULTS[name]) for name in DROPOUTS}
    return student_of(encoder, dropouts=dropouts, name="starhubert", origin=path)


def _read_distiller(path: str) -> dict:
    """Return the section ``distiller`` of a ``.yaml``."""
    try:
        if os.path.getsize(path) > MAX_YAML_BYTES:
            raise StarError(f"--config {path} is too large for a config; give the .yaml released with the .ckpt")
        with open(path, encoding="utf-8") as file:
            config = yaml.safe_load(file)
    except StarError:
        raise
    except OSError as error:
        raise StarError(f"--config {path} cannot be read ({error.strerror}); give the released .yaml") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise StarError(f"--config {path} is no YAML; give the .yaml released with the .ckpt") from error
    section = config.get("distiller") if isinstance(config, dict) else None
    if not isinstance(section, dict) or not all(isinstance(key, str) for key in section):
        raise StarError(f"--config {path} has no section 'distiller'; give the .yaml released with the .ckpt")
    return section


def _check_settings(config: Section) -> None:
    """Refuse settings that would compute something else here, and those not known to be harmless."""
    for key, harmless in HARMLESS_AT.items():
        config.none_of(key, "is nothing that a student of this project does", harmless)
    if "True" in str(config.values.get("reuse_pattern")):
        raise StarError(
            f"{config.name}: reuse_pattern makes layers share attention maps (ARMHuBERT), which no student of this "
            "project does; import a STaRHuBERT or MaskHuBERT checkpoint"
        )
    known = {*ARCHITECTURE, *DROPOUTS, *HARMLESS_AT, *TRAINING, "reuse_pattern"}
    if unknown := sorted(config.values.keys() - known):
        raise StarError(
            f"{config.name}: the setting distiller.{unknown[0][:60]} is unknown and may change what the student "
            "computes; take it out if it does not"
        )


def _student_weights(state: Mapping[Any, Tensor], path: str) -> dict[str, Tensor]:
    weights = {}
    for key, value in state.items():
        if isinstance(key, str) and key.startswith(STUDENT):
            weights[key.removeprefix(STUDENT)] = value
        elif not isinstance(key, str) or not key.startswith(TEACHER):
            raise StarError(
                f"import: {path} has the key {str(key)[:80]!a}, which is neither the student's ({STUDENT}) nor the "
                f"teacher's ({TEACHER}); give the .ckpt as released"
            )
    if not weights:
        raise StarError(f"import: {path} has no weights of a student ({STUDENT}...); give the .ckpt as released")
    return weights
