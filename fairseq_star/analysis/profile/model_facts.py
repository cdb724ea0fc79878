"""What can be profiled: architectures by name, checkpoints and folders, exported programs."""

import os
import zipfile
from dataclasses import dataclass

from fairseq_star.encoder import config as encoder_config
from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.errors import StarError
from fairseq_star.formats import hub, load_encoder
from fairseq_star.formats.checkpoint import read_checkpoint
from fairseq_star.formats.hf_folder import read_weights
from fairseq_star.formats.student import ARCHITECTURES, student_config
from fairseq_star.runtime.names import HUBERT_BASE

# HuBERT Base's published 94.7 M: mask embedding, final_proj (768 to 256) and label_embs_concat (504 units) counted.
HUBERT_BASE_PRETRAINING = 768 + (768 * 256 + 256) + 504 * 256


@dataclass
class ModelFacts:
    """One model, its weights not kept."""

    family: str
    config: EncoderConfig | None  # None: an exported program
    num_parameters: int | None  # of the encoder; None where an exported program does not tell
    num_parameters_published: int | None  # with mask embedding and heads, where the file has them


def model_facts(name: str) -> ModelFacts:
    """What ``name`` is: see :func:`fairseq_star.analysis.profile.profile`.

    Raises:
        StarError: no such architecture or file, or one that cannot be loaded.
    """
    if (config := architecture(name)) is not None:
        counted = count_parameters(config)
        extra = HUBERT_BASE_PRETRAINING if name == HUBERT_BASE else 0
        return ModelFacts(f"{name} (architecture)", config, counted, counted + extra)
    if (kind := exported_kind(name)) is not None:
        return ModelFacts(kind, None, None, None)
    name = hub.locate(name, "profile").path
    if not os.path.exists(name):
        known = ", ".join([HUBERT_BASE, *ARCHITECTURES])
        raise StarError(f"profile: there is no file or folder {name}, and no such architecture; they are {known}")
    teacher = load_encoder(name, option="profile")
    weights = read_weights(name, "profile") if os.path.isdir(name) else read_checkpoint(name, "profile")["model"]
    return ModelFacts(teacher.family, teacher.config, teacher.num_parameters, sum(w.numel() for w in weights.values()))


def architecture(name: str) -> EncoderConfig | None:
    """The encoder of a student's architecture or of HuBERT Base; None for any other name."""
    if name == HUBERT_BASE:
        return encoder_config.HUBERT_BASE
    if name in ARCHITECTURES:
        return student_config({"_name": name}, name)
    return None


def exported_kind(name: str) -> str | None:
    """``TorchScript`` or ``ONNX`` where the file is an exported program; else None."""
    if not os.path.isfile(name):
        return None
    if name.endswith(".onnx"):
        return "ONNX"
    if not zipfile.is_zipfile(name):
        return None
    with zipfile.ZipFile(name) as archive:
        # A checkpoint has no compiled code, and so no constants.
        return "TorchScript" if any(entry.endswith("/constants.pkl") for entry in archive.namelist()) else None


def count_parameters(config: EncoderConfig) -> int:
    """Trainable numbers of an encoder of ``config``."""
    return sum(parameter.numel() for parameter in SpeechEncoder(config).parameters())
