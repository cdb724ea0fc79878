"""Checks that a checkpoint belongs to the run that resumes from it: the same student, teacher and kind of loss."""

from contextlib import contextmanager
from typing import Iterator

from omegaconf import OmegaConf

from fairseq_star.checkpoint import num_updates, read_checkpoint, shapes
from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks.preflight import Start
from fairseq_star.formats import student
from fairseq_star.formats.config import sections
from fairseq_star.formats.student import MASK, TEACHER, student_config, student_values
from fairseq_star.losses.units import UNITS

PARTS = {"model", "optimizer_history", "extra_state"}  # of what fairseq saves, and restores from
ANEW = "to begin anew name another checkpoint.save_dir"
WEIGHTS_ALONE = "checkpoint.reset_optimizer=true takes over its weights alone"


def check_start(start: Start, trainer) -> None:
    """Check that a run can resume from a checkpoint.

    Raises:
        StarError: it is foreign or lacks parts, its student is of another architecture, or, unless its weights alone
            are taken over, it learned from another teacher.
    """
    state, name = read_checkpoint(start.path, start.option), f"{start.option}: {start.path}"
    if not student.recognises(state):
        raise StarError(
            f"{name} holds no student of this project; give a checkpoint of a star_distillation run, or bring another "
            "format in with fairseq-star import"
        )
    if not state.keys() >= PARTS or not state["optimizer_history"]:
        raise StarError(f"{name} lacks parts of a run (one of {', '.join(sorted(PARTS))}); give a run's own checkpoint")
    if not start.weights_alone and not state.get("last_optimizer_state") and num_updates(state):
        raise StarError(
            f"{name} has no optimizer state (checkpoint.no_save_optimizer_state, an average of some), so that no run "
            f"can go on from it; checkpoint.finetune_from_model={start.path} in another checkpoint.save_dir takes over "
            "its weights"
        )
    _check_architecture(state, name, trainer, start.weights_alone)
    if not start.weights_alone and shapes(trainer.get_criterion().state_dict()) != shapes(state.get("criterion")):
        raise StarError(f"{name} has other heads than this run's criterion, or none; {ANEW}, or {WEIGHTS_ALONE}")
    recorded, task = state.get("task_state"), trainer.task
    if start.weights_alone or not isinstance(recorded, dict):
        return
    teacher, units = (recorded.get(name, task.state_dict().get(name)) for name in (TEACHER, UNITS))
    if teacher != task.state_dict()[TEACHER]:
        raise StarError(
            f"{name} learned from another teacher than task.teacher={task.cfg.teacher} (their contents differ); give "
            f"that teacher to go on, {ANEW}, or {WEIGHTS_ALONE}"
        )
    if units != task.state_dict().get(UNITS):
        raise StarError(
            f"{name} learned other units than those of criterion.units (their contents differ); give these files to "
            f"go on, {ANEW}, or {WEIGHTS_ALONE}"
        )


def _check_architecture(state: dict, name: str, trainer, weights_alone: bool) -> None:
    wanted = OmegaConf.to_container(trainer.cfg.model, resolve=True, enum_to_str=True)
    had, now = (
        student_values(student_config(options, name), dropouts={}) for options in (sections(state["cfg"])[0], wanted)
    )
    differing = {option: value for option, value in had.items() if value != now[option]}
    if len(differing) > 1:  # the convolutions' last channels follow the width
        differing.pop("conv_feature_layers", None)
    if differing:
        listed = ", ".join(f"model.{option}={value} (now {now[option]})" for option, value in differing.items())
        raise StarError(f"{name} is of another student, with {listed}; give the same options to go on, or {ANEW}")
    found, expected = shapes(state["model"]), shapes(trainer.get_model().state_dict())
    if (MASK in found) != (MASK in expected):
        if not weights_alone:
            had = "with" if MASK in found else "without"
            raise StarError(f"{name} is of a run {had} masked frames (task.mask_prob); {ANEW}, or {WEIGHTS_ALONE}")
        found.pop(MASK, None)
        expected.pop(MASK, None)
    wrong = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
    if wrong:
        raise StarError(
            f"{name} has weights that its config does not describe ({str(wrong[0])[:60]!a}); take another checkpoint"
        )


@contextmanager
def mismatch_is_star_error(start: Start | None) -> Iterator[None]:
    """Raise a ``StarError`` in place of fairseq's assertions, on all workers, on criterion and optimizer classes.

    The latter depends on the precision, too.
    """
    try:
        yield
    except AssertionError as error:
        what, separator, names = str(error).partition("; please reset the optimizer (--reset-optimizer). ")
        if start is None or not separator:
            raise
        raise StarError(
            f"{start.option}: {start.path} is of another kind of run: {what} ({names.replace(' vs ', ', now ')}); "
            f"{ANEW}, or {WEIGHTS_ALONE}"
        ) from error
