"""STaR distillation of speech models for fairseq: ``--user-dir fairseq_star`` or ``common.user_dir=fairseq_star``.

Importing this package imports nothing else. Given as the user dir it registers everything, because fairseq imports
``tasks/`` and ``models/`` of a user dir; a process that imported it before skips that and calls :func:`register`, which
``load_student`` and ``load_teacher`` do as well. From Python: ``docs/from-python.md``.
"""

from fairseq_star.runtime.version import __version__

__all__ = ["__version__", "load_student", "load_teacher", "register", "tgm_loss"]


def register() -> None:
    """Register task, criterion and model with fairseq, and the classes in fairseq's checkpoints with ``torch.load``.

    Calling it again does nothing.
    """
    from fairseq_star.tasks.registration import register_all

    register_all()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    if name == "tgm_loss":
        from fairseq_star.losses.tgm import tgm_loss

        return tgm_loss
    if name in ("load_student", "load_teacher"):
        from fairseq_star import formats

        register()
        return getattr(formats, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
