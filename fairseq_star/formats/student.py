"""This project's own checkpoints, read and written: a student with its audio format and training settings."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import torch
from torch import Tensor

from fairseq_star.checkpoint import read_checkpoint
from fairseq_star.encoder.config import BY_LAYER, DROPOUTS, STREAMING, EncoderConfig
from fairseq_star.encoder.front_end import NORMS
from fairseq_star.encoder.frozen import FrozenEncoder, SpeechModel
from fairseq_star.encoder.running_norm import RUNNING
from fairseq_star.errors import StarError
from fairseq_star.formats.building import build_frozen
from fairseq_star.formats.config import Section, encoder_config, sections
from fairseq_star.formats.head import Head
from fairseq_star.models import starhubert
from fairseq_star.models.starhubert import StarHubertConfig, StarHubertModel

ARCHITECTURES = {
    "starhubert": starhubert.StarHubertConfig,
    "starhubert_l": starhubert.StarHubertLargeConfig,
    "starhubert_s": starhubert.StarHubertSmallConfig,
    "starhubert_xs": starhubert.StarHubertXSmallConfig,
    "starhubert_stream": starhubert.StarHubertStreamConfig,
}
MASK = "mask_emb"
"""The vector that replaced masked frames in training; of use in further training only."""
TEACHER = "teacher_digest"
"""The key of the teacher's digest in ``task_state``; older checkpoints have none."""


def recognises(state: dict) -> bool:
    """Return whether a checkpoint's config names one of this project's architectures."""
    registered = sections(state.get("cfg"))[0].get("_name")
    return isinstance(registered, str) and registered in ARCHITECTURES


def read_encoder(state: dict, *, name: str, valid_group_norm: bool = True) -> FrozenEncoder:
    """Return the student in ``state``, frozen; its audio format is that of its teacher (``task_state``).

    Raises:
        StarError: config and weights do not fit each other, or the audio format is missing.
    """
    model, task = sections(state["cfg"])
    weights, recorded = state.get("model"), state.get("task_state")
    if not isinstance(weights, dict):
        raise StarError(f"{name} lacks the weights 'model'; give a checkpoint_best.pt or checkpoint_last.pt of a run")
    # The format recorded in training takes precedence over the option, which may be "as the teacher".
    audio = Section({**task, **recorded} if isinstance(recorded, dict) else task, name)
    for key in ("sample_rate", "normalize"):
        if audio.values.get(key) is None:
            raise StarError(f"{name} does not say its audio's {key}; give a checkpoint that a training run wrote")
    return build_frozen(
        student_config(model, name),
        weights,
        family=f"{model['_name']} (this project)",
        name=name,
        ignored=(MASK,),
        valid_group_norm=valid_group_norm,
        **audio.audio(),
    )


def student_config(model: Mapping[str, Any], name: str) -> EncoderConfig:
    """Return the encoder that a run's ``model`` options define, with the architecture's defaults for the others.

    Args:
        model: ``_name``, one of :data:`ARCHITECTURES`, and any of its options.
        name: the file or option that they come from, for messages.

    Raises:
        StarError: an impossible value.
    """
    architecture = ARCHITECTURES[model["_name"]]()
    defaults = {key: value for key, value in asdict(architecture).items() if key != "padded_group_norm"}
    saved = {key: value for key, value in model.items() if value is not None}
    values = Section({**defaults, **saved}, name)
    config = encoder_config(values, tuple(NORMS))
    by_layer = {own: tuple(values.wholes(option)) for own, option in BY_LAYER.items() if values.values.get(option)}
    if by_layer:
        config = replace(config, **by_layer, head_dim=values.values.get("head_dim"))
    if not values.values.get("chunk_frames"):
        if config.extractor_mode == RUNNING:
            raise values.refuse("extractor_mode", RUNNING, "default or layer_norm, as chunk_frames is not given,")
        return config
    if config.extractor_mode != RUNNING:
        raise StarError(
            f"{name} is a streaming student of extractor_mode={config.extractor_mode}, as they were before 29 November "
            "2026; train it again with running_norm"
        )
    sizes, *context = STREAMING
    context = {key: values.whole(key, at_least=0) for key in context}
    return replace(config, chunk_frames=tuple(values.wholes(sizes, at_least=0)), **context)


@dataclass
class Student(SpeechModel):
    """A trained student, frozen and in eval mode.

    ``model`` takes the statistics of its group norm over an utterance's own samples; :meth:`padded` returns the same
    weights with the statistics over the padded batch, as all other libraries take them.
    """

    model: StarHubertModel
    dropouts: dict[str, float]  # of its training, under fairseq's names (DROPOUTS)
    sample_rate: int  # Hz
    normalize: bool  # whether its input has zero mean and unit variance
    name: str  # the architecture it is registered by, such as starhubert
    origin: str  # the file it was read from
    mask_embedding: Tensor | None = None  # D; of a student that was trained with masked frames
    head: Head | None = None  # of a fine-tuned student
    # Of a fine-tuned student: utterances (1-D, raw) -> the head's outputs by the toolkit it was fine-tuned with.
    reference: Callable[[Sequence[Tensor]], list[list[Tensor]]] | None = None

    @property
    def config(self) -> EncoderConfig:
        """Sizes, convolutions, pre- or post-norm."""
        return self.model.config

    def weights(self) -> dict[str, Tensor]:
        """Return the weights under fairseq's names, detached, without the mask embedding."""
        return {key: value.detach() for key, value in self.model.state_dict().items()}

    def mask_or_zeros(self) -> Tensor:
        """Return the vector (D) with which other libraries replace masked frames in fine-tuning: zeros, the student's
        input where audio is padded, for one that was trained without masks."""
        return torch.zeros(self.config.embed_dim) if self.mask_embedding is None else self.mask_embedding.float()

    def padded(self) -> StarHubertModel:
        """Return the same model with group norm over the padded batch."""
        return _build(self.config, self.dropouts, self.name, self.weights(), padded_group_norm=True)


def load_student(path: str | os.PathLike, option: str = "load_student") -> Student:
    """Read a checkpoint of this project: of a ``star_distillation`` run, or written by ``import``.

    >>> import torch
    >>> from fairseq_star import load_student
    >>> student = load_student("student.pt")
    >>> audio = [torch.randn(16_000), torch.randn(8_000)]  # a second and half a second
    >>> states, shorter = student.hidden_states(audio, sample_rate=16_000)
    >>> len(states), states[-1].shape, shorter[-1].shape  # layers + 1, each frames x width
    (4, torch.Size([49, 16]), torch.Size([24, 16]))

    Args:
        path: the file.
        option: the option that names it, for messages.

    Raises:
        StarError: the file cannot be read, is unsafe, or is no student of this project.
    """
    path = os.fspath(path)
    return student_in(read_checkpoint(path, option), path, f"{option}: {path}")


def student_in(state: dict, path: str, name: str) -> Student:
    """Return the student in a checkpoint of this project.

    Args:
        state: the checkpoint.
        path: of its file.
        name: option and file, for messages.

    Raises:
        StarError: it is no student of this project.
    """
    if not recognises(state):
        raise StarError(
            f"{name} holds no student of this project; give a checkpoint of a star_distillation run, or import another "
            "format with fairseq-star import"
        )
    model = Section(sections(state["cfg"])[0], name)
    return student_of(
        read_encoder(state, name=name),
        dropouts={key: model.share(key, getattr(StarHubertConfig, key)) for key in DROPOUTS},
        name=model.values["_name"],
        origin=path,
        mask_embedding=state["model"].get(MASK),
    )


def student_of(
    encoder: FrozenEncoder,
    *,
    dropouts: dict[str, float],
    name: str,
    origin: str,
    mask_embedding: Tensor | None = None,
) -> Student:
    """Turn an encoder of any format into a student.

    A square projection, which HuggingFace's HuBERT must have, is dropped if it is the identity.

    Raises:
        StarError: an encoder of a kind that ``starhubert`` is not.
    """
    config, weights = encoder.config, encoder.model.state_dict()
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
    for what, is_so in unlike.items():
        if is_so:
            raise StarError(f"{origin}: an encoder with {what} is no student of this project and cannot become one")
    if mask_embedding is not None and tuple(mask_embedding.shape) != (config.embed_dim,):
        raise StarError(f"{origin}: its {MASK} is {tuple(mask_embedding.shape)} instead of ({config.embed_dim},)")
    return Student(
        model=_build(config, dropouts, name, weights),
        dropouts=dropouts,
        sample_rate=encoder.sample_rate,
        normalize=encoder.normalize,
        name=name,
        origin=origin,
        mask_embedding=mask_embedding,
    )


def write_student(student: Student, path: Path) -> None:
    """Write ``student`` as a checkpoint of this project: plain values and tensors, no optimizer state.

    It loads wherever a run's checkpoint does: as ``task.teacher``, as ``checkpoint.finetune_from_model`` of further
    distillation, for export, and by fairseq's ``load_model_ensemble_and_task`` with this plugin.
    """
    model = {"_name": student.name, **student_values(student.config, student.dropouts), "padded_group_norm": False}
    audio = {"sample_rate": student.sample_rate, "normalize": student.normalize}
    weights = {key: value.clone() for key, value in student.weights().items()}
    if student.mask_embedding is not None:
        weights[MASK] = student.mask_embedding
    task = {"_name": "star_distillation", "data": "", "teacher": None, **audio}
    torch.save(fairseq_state(model, task, weights, criterion="StarTgmCriterion", task_state=audio), path)


def fairseq_state(
    model: dict, task: dict, weights: dict[str, Tensor], *, criterion: str, task_state: dict
) -> dict[str, Any]:
    """Return a checkpoint for fairseq of configs and weights, with the entries it expects in whatever it restores."""
    history = {
        "criterion_name": criterion,
        "optimizer_name": "FairseqAdam",
        "lr_scheduler_state": {},
        "num_updates": 0,
    }
    return {
        "args": None,
        "cfg": {"model": model, "task": task},
        "model": weights,
        "criterion": None,
        "optimizer_history": [history],
        "extra_state": {"epoch": 1, "train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "task_state": task_state,
    }


def model_values(config: EncoderConfig, dropouts: dict[str, float]) -> dict:
    """Return the architecture under fairseq's names, as far as fairseq has it.

    Raises:
        StarError: its layers differ.
    """
    config.check_uniform("fairseq's HuBERT, which s3prl runs too")
    return {**config.fairseq_settings(), **dropouts}


def student_values(config: EncoderConfig, dropouts: dict[str, float]) -> dict:
    """Return the architecture under the names of ``StarHubertConfig``."""
    return {**config.student_settings(), **dropouts}


def _build(
    config: EncoderConfig, dropouts: dict[str, float], name: str, weights: dict[str, Tensor], *, padded_group_norm=False
) -> StarHubertModel:
    settings = ARCHITECTURES[name](**student_values(config, dropouts), padded_group_norm=padded_group_norm)
    with torch.random.fork_rng(devices=[]):
        model = StarHubertModel(settings)
    model.load_state_dict(weights)
    return model.requires_grad_(False).eval()
