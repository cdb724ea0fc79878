"""Students of this project as teachers: distil a distilled model further (progressive compression)."""

from dataclasses import asdict
from typing import Any, Mapping

from fairseq_star.errors import StarError
from fairseq_star.models import starhubert
from fairseq_star.teachers.config import EncoderConfig, Section
from fairseq_star.teachers.fairseq_checkpoint import encoder_config, sections
from fairseq_star.teachers.speech_encoder import make_teacher
from fairseq_star.teachers.teacher import Teacher

ARCHITECTURES = {
    "starhubert": starhubert.StarHubertConfig,
    "starhubert_l": starhubert.StarHubertLargeConfig,
    "starhubert_s": starhubert.StarHubertSmallConfig,
    "starhubert_xs": starhubert.StarHubertXSmallConfig,
}


def is_starhubert(state: dict) -> bool:
    """Whether a checkpoint's config names one of this project's architectures."""
    registered = sections(state.get("cfg"))[0].get("_name")
    return isinstance(registered, str) and registered in ARCHITECTURES


def build_teacher(state: dict, *, name: str, valid_group_norm: bool = True) -> Teacher:
    """The student in ``state`` as a teacher; its audio format is what its own teacher's was (``task_state``).

    Raises:
        StarError: config and weights do not fit each other, or the audio format is lacking.
    """
    model, task = sections(state["cfg"])
    weights, recorded = state.get("model"), state.get("task_state")
    if not isinstance(weights, dict):
        raise StarError(f"{name} lacks the weights 'model'; give a checkpoint_best.pt or checkpoint_last.pt of a run")
    # What was recorded in training comes before what was asked for, which may be "as the teacher".
    audio = Section({**task, **recorded} if isinstance(recorded, dict) else task, name)
    for key in ("sample_rate", "normalize"):
        if audio.values.get(key) is None:
            raise StarError(f"{name} does not say its audio's {key}; give a checkpoint that a training run wrote")
    return make_teacher(
        student_config(model, name),
        weights,
        family=f"{model['_name']} (this project)",
        name=name,
        sample_rate=audio.whole("sample_rate", at_most=1_000_000),
        normalize=audio.flag("normalize"),
        valid_group_norm=valid_group_norm,
    )


def student_config(model: Mapping[str, Any], name: str) -> EncoderConfig:
    """The encoder that a run's ``model`` options make, those left out being the architecture's own.

    Args:
        model: ``_name``, one of :data:`ARCHITECTURES`, and any of its options.
        name: what they are of, for messages.

    Raises:
        StarError: a value that cannot be.
    """
    architecture = ARCHITECTURES[model["_name"]]()
    defaults = {key: value for key, value in asdict(architecture).items() if key != "padded_group_norm"}
    saved = {key: value for key, value in model.items() if value is not None}
    return encoder_config(Section({**defaults, **saved}, name))
