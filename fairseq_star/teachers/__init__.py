"""Teachers: frozen speech encoders that give their hidden states. One file a family."""

from fairseq_star.checkpoint import read_checkpoint
from fairseq_star.teachers import fairseq_hubert
from fairseq_star.teachers.teacher import Teacher

__all__ = ["Teacher", "load_teacher"]


def load_teacher(path: str, *, valid_group_norm: bool = True, option: str = "task.teacher") -> Teacher:
    """Load a teacher from a checkpoint file, its family told from the content.

    Args:
        path: a fairseq HuBERT checkpoint, as ``hubert_base_ls960.pt`` is.
        valid_group_norm: statistics of the first group norm over valid samples only (see ``group_norm.py``).
        option: what the user calls the path, for messages.

    Raises:
        StarError: the file cannot be read, is unsafe, or is no speech model that can teach.
    """
    state = read_checkpoint(path, option)
    return fairseq_hubert.build_teacher(state, name=f"{option}: {path}", valid_group_norm=valid_group_norm)
