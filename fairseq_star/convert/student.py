"""The student that is converted: its model, what it is built from, and the audio it was trained on."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fairseq_star.checkpoint import read_checkpoint
from fairseq_star.errors import StarError
from fairseq_star.models.starhubert import StarHubertConfig, StarHubertModel
from fairseq_star.teachers import starhubert
from fairseq_star.teachers.config import EncoderConfig, Section
from fairseq_star.teachers.fairseq_checkpoint import sections
from fairseq_star.teachers.teacher import Teacher

DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "dropout_input")


@dataclass
class Student:
    """A finished student, frozen and in eval mode.

    ``model`` takes the statistics of its group norm over an utterance's own samples; :meth:`padded` gives the same
    weights with the statistics over the padded batch, as all other libraries take them.
    """

    model: StarHubertModel
    config: EncoderConfig  # plain, checked values: sizes, convolutions, pre- or post-norm
    dropouts: dict[str, float]  # of training, for whoever trains it on: fairseq's names, DROPOUTS
    sample_rate: int  # Hz
    normalize: bool  # whether it hears audio of zero mean and unit variance
    name: str  # the architecture it is registered by, such as starhubert
    origin: str  # the file it was read from

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def weights(self) -> dict[str, Tensor]:
        """The weights under fairseq's names, detached."""
        return {key: value.detach() for key, value in self.model.state_dict().items()}

    def padded(self) -> StarHubertModel:
        """The same model with group norm over the padded batch."""
        return _build(self.config, self.dropouts, self.name, self.weights(), padded_group_norm=True)


def load_student(path: str, option: str = "export") -> Student:
    """Read a checkpoint of this project: one of a ``star_distillation`` run, or what ``import`` wrote.

    Args:
        path: the file.
        option: what the user calls it, for messages.

    Raises:
        StarError: the file cannot be read, is unsafe, or is no student of this project.
    """
    state, name = read_checkpoint(path, option), f"{option}: {path}"
    if not starhubert.is_starhubert(state):
        raise StarError(
            f"{name} holds no student of this project; give a checkpoint of a star_distillation run, or bring another "
            "format in with fairseq-star import"
        )
    model = Section(sections(state["cfg"])[0], name)
    return student_of(
        starhubert.build_teacher(state, name=name),
        dropouts={key: model.share(key, getattr(StarHubertConfig, key)) for key in DROPOUTS},
        name=model.values["_name"],
        origin=path,
    )


def student_of(teacher: Teacher, *, dropouts: dict[str, float], name: str, origin: str) -> Student:
    """A checked encoder, from whichever format, as a student.

    A projection of its own width, which HuggingFace's HuBERT must have, goes if it is the identity.

    Raises:
        StarError: an encoder of a kind that ``starhubert`` is not.
    """
    config, weights = teacher.config, teacher.model.state_dict()
    if config.projection and config.conv_layers[-1].channels == config.embed_dim:
        weight, bias = (weights[f"post_extract_proj.{part}"] for part in ("weight", "bias"))
        if torch.equal(weight, torch.eye(config.embed_dim)) and not bias.any():
            config = replace(config, projection=False)
            weights = {key: value for key, value in weights.items() if not key.startswith("post_extract_proj.")}
    unlike = {
        "relative positions (WavLM)": config.relative_position is not None,
        "a stack of positional convolutions (data2vec)": config.pos_conv_depth != 1,
        "no norm before its projection": not config.input_norm,
        "an epsilon of its norms other than 1e-5": config.layer_norm_eps != 1e-5,
        "a projection of its own width": config.projection and config.conv_layers[-1].channels == config.embed_dim,
    }
    for what, found in unlike.items():
        if found:
            raise StarError(f"{origin}: an encoder with {what} is no student of this project and cannot become one")
    return Student(
        model=_build(config, dropouts, name, weights),
        config=config,
        dropouts=dropouts,
        sample_rate=teacher.sample_rate,
        normalize=teacher.normalize,
        name=name,
        origin=origin,
    )


def write_student(student: Student, path: Path) -> None:
    """Write ``student`` as a checkpoint of this project: plain values and tensors, no optimizer state.

    It loads wherever a run's own checkpoint does: as ``task.teacher``, as ``checkpoint.finetune_from_model`` of further
    distillation, for export, and by fairseq's ``load_model_ensemble_and_task`` with this plugin.
    """
    config = {"_name": student.name, **model_values(student.config, student.dropouts), "padded_group_norm": False}
    state = {
        "args": None,
        "cfg": {
            "model": config,
            "task": {"_name": "star_distillation", "data": "", "teacher": None,
                     "sample_rate": student.sample_rate, "normalize": student.normalize},
        },
        "model": {key: value.clone() for key, value in student.weights().items()},
        "criterion": None,
        # fairseq takes these for granted in whatever it restores from.
        "optimizer_history": [{"criterion_name": "StarTgmCriterion", "optimizer_name": "FairseqAdam",
                               "lr_scheduler_state": {}, "num_updates": 0}],
        "extra_state": {"epoch": 1, "train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "task_state": {"sample_rate": student.sample_rate, "normalize": student.normalize},
    }  # fmt: skip
    torch.save(state, path)


def model_values(config: EncoderConfig, dropouts: dict[str, float]) -> dict:
    """The architecture under the names of ``StarHubertConfig``."""
    return {
        "encoder_embed_dim": config.embed_dim,
        "encoder_ffn_embed_dim": config.ffn_embed_dim,
        "encoder_layers": config.num_layers,
        "encoder_attention_heads": config.num_heads,
        "conv_feature_layers": str([tuple(layer) for layer in config.conv_layers]),
        "extractor_mode": config.extractor_mode,
        "conv_bias": config.conv_bias,
        "conv_pos": config.conv_pos,
        "conv_pos_groups": config.conv_pos_groups,
        "layer_norm_first": config.layer_norm_first,
        "activation_fn": config.activation_fn,
        **dropouts,
    }


def _build(
    config: EncoderConfig, dropouts: dict[str, float], name: str, weights: dict[str, Tensor], *, padded_group_norm=False
) -> StarHubertModel:
    settings = starhubert.ARCHITECTURES[name](**model_values(config, dropouts), padded_group_norm=padded_group_norm)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fairseq uses torch's older weight_norm
        model = StarHubertModel(settings)
    model.load_state_dict(weights)
    return model.requires_grad_(False).eval()
