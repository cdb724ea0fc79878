"""s3prl's converted files: ``task_cfg``, ``model_cfg`` and ``model_weight`` of a fairseq checkpoint under other names.

s3prl makes them of HuBERT and wav2vec 2.0 checkpoints, often under the checkpoint's own name, and ``fairseq-star export
--to s3prl`` writes them.

Source: s3prl, ``upstream/{hubert,wav2vec2}/convert.py``.
"""

from typing import Mapping

from fairseq_star.teachers import fairseq_checkpoint
from fairseq_star.teachers.teacher import Teacher

KEYS = ("task_cfg", "model_cfg", "model_weight")
DICTIONARIES = "dictionaries_symbols"  # in HuBERT's files alone


def is_s3prl(state: Mapping) -> bool:
    """Whether a checkpoint has s3prl's converted layout."""
    return all(isinstance(state.get(key), dict) for key in KEYS)


def as_fairseq(state: Mapping) -> dict:
    """The fairseq checkpoint that ``state`` was made of, as far as s3prl keeps it."""
    task, model, weights = (state[key] for key in KEYS)
    registered = model.get("_name") or ("hubert" if DICTIONARIES in state else "wav2vec2")
    return {"cfg": {"model": {**model, "_name": registered}, "task": task}, "model": weights}


def build_teacher(state: Mapping, *, name: str, valid_group_norm: bool = True) -> Teacher:
    """The encoder in a file of s3prl's as a teacher, every key accounted for.

    Raises:
        StarError: it is of another model, or config and weights do not fit each other.
    """
    teacher = fairseq_checkpoint.build_teacher(as_fairseq(state), name=name, valid_group_norm=valid_group_norm)
    teacher.family = teacher.family.replace("(fairseq)", "(s3prl)")
    return teacher
