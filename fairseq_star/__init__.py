"""STaR distillation of speech models for fairseq: ``--user-dir fairseq_star`` or ``common.user_dir=fairseq_star``.

Importing this package registers the task ``star_distillation``, the criterions ``star_tgm`` and ``frame_matching`` and
the model ``starhubert`` with its architectures. fairseq itself imports ``tasks/`` and ``models/`` of a user dir but not
``criterions/``.
"""

from fairseq_star.safety.reading import allow_checkpoint_classes

allow_checkpoint_classes()

from fairseq_star.criterions import frame_matching, star_tgm  # noqa: E402, F401
from fairseq_star.formats import load_teacher  # noqa: E402
from fairseq_star.models import hubert_ctc, starhubert  # noqa: E402, F401
from fairseq_star.provenance import __version__  # noqa: E402
from fairseq_star.tasks import star_distillation  # noqa: E402, F401

__all__ = ["__version__", "load_teacher"]
