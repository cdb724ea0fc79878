"""Speech models in files: one module a format, reading and writing side by side; dispatch by content (``families.py``).

``export`` writes, loads what it wrote with the target's own library, compares all hidden states, and leaves no file
that fails. ``import_student`` writes a checkpoint of this project from another toolkit's or from a release.
"""

from fairseq_star.formats.families import import_student, load_encoder, load_teacher, read_student
from fairseq_star.formats.finetuned import load_tuned
from fairseq_star.formats.hf_folder import teacher_files
from fairseq_star.formats.student import Student, load_student, write_student
from fairseq_star.formats.target import Exported, Target, export

__all__ = [
    "Exported",
    "Student",
    "Target",
    "export",
    "import_student",
    "load_encoder",
    "load_student",
    "load_teacher",
    "load_tuned",
    "read_student",
    "teacher_files",
    "write_student",
]
