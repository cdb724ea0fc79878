"""STaR distillation of speech models for fairseq: ``--user-dir fairseq_star`` or ``common.user_dir=fairseq_star``.

Importing this package registers the task ``star_distillation``, the criterions ``star_tgm`` and ``frame_matching`` and
the model ``starhubert`` with its architectures, see :func:`register`. From Python: ``docs/from-python.md``.
"""

import sys

__version__ = "0.1.0"
__all__ = ["__version__", "load_student", "load_teacher", "register", "tgm_loss"]


def register() -> None:
    """Tell fairseq of all that this package has, and torch of the classes in fairseq's own checkpoints.

    fairseq itself imports ``tasks/`` and ``models/`` of a user dir, but not ``criterions/``, and nothing of a user dir
    that is imported already. Once is enough; more do no harm.
    """
    from fairseq_star.checkpoint import allow_checkpoint_classes

    allow_checkpoint_classes()

    from fairseq_star.criterions import frame_matching, star_tgm  # noqa: F401
    from fairseq_star.models import hubert_ctc, starhubert  # noqa: F401
    from fairseq_star.tasks import star_distillation  # noqa: F401


if "fairseq_star_cli" not in sys.modules:  # the command line, which must not wait for fairseq to tell its help
    register()

    from fairseq_star.formats import load_student, load_teacher
    from fairseq_star.tgm import tgm_loss
