"""A teacher, a student and a corpus as files: random weights, noise. What they cost does not depend on either."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from fairseq_star.analysis.untrained import untrained
from fairseq_star.encoder.config import DROPOUTS, HUBERT_BASE, EncoderConfig
from fairseq_star.encoder.frames import parse_conv_layers
from fairseq_star.formats import student
from fairseq_star.manifest import SAMPLE_RATE, ManifestEntry, write_manifest
from fairseq_star.models.starhubert import StarHubertConfig

QUICK_TEACHER = replace(
    HUBERT_BASE,
    conv_layers=parse_conv_layers("[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2"),
    embed_dim=24, ffn_embed_dim=48, num_layers=3, num_heads=2, conv_pos=16, conv_pos_groups=4,
)  # fmt: skip
QUICK_STUDENT = {
    "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 32, "encoder_layers": 3, "encoder_attention_heads": 2,
    "conv_feature_layers": "[(8,10,5)] + [(8,1,1)] + [(8,3,2)]*4 + [(D,1,1)] + [(D,2,2)]*2",
    "conv_pos": 16, "conv_pos_groups": 4,
}  # fmt: skip
"""Options of `starhubert` that `--quick` changes, to run in seconds; with as many layers as QUICK_TEACHER."""


def write_teacher(path: Path, config: EncoderConfig = HUBERT_BASE) -> Path:
    """A checkpoint of fairseq's HuBERT."""
    model = {**config.fairseq_settings(), "_name": "hubert"}
    torch.save({"cfg": {"model": model, "task": {}}, "model": untrained(config).model.state_dict()}, path)
    return path


def write_student(path: Path, **settings: object) -> Path:
    """A checkpoint of a ``starhubert`` with other ``settings``, where there are any, as a run writes it."""
    architecture = StarHubertConfig(**settings)
    dropouts = {name: getattr(architecture, name) for name in DROPOUTS}
    encoder = untrained(EncoderConfig.of_student(architecture))
    student.write_student(student.student_of(encoder, dropouts=dropouts, name="starhubert", origin="random"), path)
    return path


def write_corpus(folder: Path, num_utterances: int, seconds: float) -> None:
    """``folder/train.tsv`` of utterances of equal length."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    entries = [ManifestEntry(f"{number}.wav", int(seconds * SAMPLE_RATE)) for number in range(num_utterances)]
    for name, num_samples in entries:
        soundfile.write(folder / name, 0.1 * generator.standard_normal(num_samples), SAMPLE_RATE)
    write_manifest(folder / "train.tsv", folder.resolve(), entries)
