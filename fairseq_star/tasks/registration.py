"""Imports everything that is registered; fairseq imports each module of a user dir's ``tasks/``, and so this one."""

from fairseq_star.checkpoint import allow_checkpoint_classes
from fairseq_star.criterions import star_tgm  # noqa: F401
from fairseq_star.fairseq_hooks import hubert_ctc  # noqa: F401
from fairseq_star.models import classifier, starhubert  # noqa: F401
from fairseq_star.tasks import star_distillation, utterance_classification  # noqa: F401


def register_all() -> None:
    """Register task, criterions and models with fairseq and the classes of its checkpoints with ``torch.load``.

    The former happens on import, once.
    """
    allow_checkpoint_classes()


register_all()
