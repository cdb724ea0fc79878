"""A distilled student in other toolkits, one file a target, and foreign files as students of this project.

``export`` writes, loads what it wrote with the target's own library, compares all hidden states, and leaves no file
that fails. ``import_student`` writes a checkpoint of this project from another toolkit's or from a release.
"""

from fairseq_star.convert.importing import import_student, read_student
from fairseq_star.convert.student import Student, load_student, write_student
from fairseq_star.convert.target import TARGETS, Exported, Target, export, load_target

__all__ = [
    "TARGETS",
    "Exported",
    "Student",
    "Target",
    "export",
    "import_student",
    "load_student",
    "load_target",
    "read_student",
    "write_student",
]
