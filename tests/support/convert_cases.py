"""Students to convert, of random weights, written as fairseq's trainer writes them; and the authors' release format."""

from dataclasses import asdict
from pathlib import Path

import torch
import yaml

from fairseq_star.deploy.targets import load_target
from fairseq_star.formats import Student, Target, load_student
from fairseq_star.formats.student import ARCHITECTURES
from fairseq_star.models.starhubert import StarHubertModel
from tests.support import tiny, tiny_teachers

PROJECTION = {"conv_feature_layers": tiny.TEACHER_CONV}  # whose last convolution has not the student's width
DROPOUTS = {"dropout": 0.2, "attention_dropout": 0.3, "activation_dropout": 0.0, "dropout_input": 0.4}
PRE_NORM = {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True}
STREAM = "starhubert_stream"
WHOLE = [name for name in ARCHITECTURES if name != STREAM]  # which other libraries can be given
# name: (architecture, normalize, other settings). The four architectures in their own widths, the others tiny.
CASES = {
    **{name: (name, False, {"encoder_layers": 3}) for name in WHOLE},
    "projection": ("starhubert", False, {**tiny.STUDENT, **PROJECTION, **DROPOUTS}),
    "pre_norm": ("starhubert", True, {**tiny.STUDENT, **PRE_NORM}),
}


def write_checkpoint(path: Path, name: str = "starhubert", normalize: bool = False, **settings: object) -> Path:
    """A student's checkpoint; every weight is moved off its first value, so that one left out or mistaken shows."""
    config = ARCHITECTURES[name](**settings, padded_group_norm=False)
    torch.manual_seed(0)
    model = tiny_teachers.randomize(StarHubertModel(config))
    plain = {key: str(value) if isinstance(value, str) else value for key, value in asdict(config).items()}
    state = {
        "cfg": {"model": {**plain, "_name": name}, "task": {"_name": "star_distillation", "normalize": None}},
        "model": model.state_dict(),
        "task_state": {"sample_rate": 16_000, "normalize": normalize},
    }
    torch.save(state, path)
    return path


def student(folder: Path, case: str) -> Student:
    name, normalize, settings = CASES[case]
    return load_student(str(write_checkpoint(folder / f"{case}.pt", name, normalize, **settings)))


def tiny_student(folder: Path, **settings: object) -> Student:
    return load_student(str(write_checkpoint(folder / "tiny.pt", **{**tiny.STUDENT, **settings})))


def streaming_student(folder: Path, **settings: object) -> Student:
    """A tiny one that processes audio in chunks of 4 frames, or of 3, or all at once."""
    options = {**tiny.STUDENT, "chunk_frames": [4, 3, 0], "left_context_frames": 7, **settings}
    return load_student(str(write_checkpoint(folder / "stream.pt", STREAM, **options)))


def careless(name: str, error: float) -> Target:
    """A target that writes a student of which one number is off by ``error``."""

    class Careless(load_target(name)):
        def write(self, student, path):
            weight = student.model.encoder.layers[-1].fc2.bias
            weight[3] += error
            super().write(student, path)
            weight[3] -= error

    return Careless()


def equal(one: Student, other: Student) -> bool:
    """Whether two students have the same weights, bit for bit, are built alike and hear the same audio."""
    weights, others = one.weights(), other.weights()
    return (
        weights.keys() == others.keys()
        and all(torch.equal(weights[key], others[key]) for key in weights)
        and (one.config, one.normalize, one.sample_rate) == (other.config, other.normalize, other.sample_rate)
        and one.dropouts == other.dropouts
    )


def write_release(folder: Path, student: Student, *, distiller: dict | None = None, extra: dict | None = None) -> Path:
    """``released.ckpt`` and ``released.yaml`` as the authors' are: teacher, distillation head and optimizer in it.

    Args:
        distiller: settings to change; None as a value takes one out.
        extra: entries of the ``state_dict`` to change, likewise.
    """
    from s3prl.optimizers import WarmupLinearSchedule

    config = student.config
    settings = {
        "extractor_mode": config.extractor_mode,
        "conv_feature_layers": str([tuple(layer) for layer in config.conv_layers]),
        "feature_grad_mult": 1.0,
        "conv_bias": config.conv_bias,
        "conv_pos": config.conv_pos,
        "conv_pos_groups": config.conv_pos_groups,
        "pos_conv_depth": 1,
        "max_positions": 100000,
        "layer_type": "transformer",
        "encoder_layers": config.num_layers,
        "encoder_embed_dim": config.embed_dim,
        "encoder_ffn_embed_dim": config.ffn_embed_dim,
        "encoder_attention_heads": config.num_heads,
        "activation_fn": config.activation_fn,
        "layer_norm_first": config.layer_norm_first,
        "layer_grad_scale": False,
        **student.dropouts,
        "encoder_layerdrop": 0.0,
        "final_dim": 24,
        "init_conv_layers": False,
        "init_encoder_layers": 0,
        "checkpoint_activations": False,
        "required_seq_len_multiple": 1,
        "crop_seq_to_multiple": 1,
        **(distiller or {}),
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    weights = {f"student_model.{key}": value.clone() for key, value in student.weights().items()}
    weights |= {"student_model.final_proj.weight": torch.randn(24, config.embed_dim)}
    weights |= {f"teacher_model.model.{key}": value for key, value in tiny.hubert_state()["model"].items()}
    weights |= extra or {}
    schedule = WarmupLinearSchedule.__new__(WarmupLinearSchedule)
    schedule.__dict__.update(warmup=0.05, t_total=1000)
    state = {
        "epoch": 199,
        "pytorch-lightning_version": "1.8.0",
        "state_dict": {key: value for key, value in weights.items() if value is not None},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 1e-3, "schedule": schedule}]}],
        "hyper_parameters": {"cfg": {"train": {"num_epochs": 200}}},
    }
    torch.save(state, folder / "released.ckpt")
    (folder / "released.yaml").write_text(yaml.safe_dump({"train": {"num_epochs": 200}, "distiller": settings}))
    return folder / "released.ckpt"
