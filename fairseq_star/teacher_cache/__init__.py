"""The optional cache of a teacher's hidden states on disk (``task.teacher_cache=DIR``): computed once, then read.

``cache.py`` decides what is stored, under which key, and when that is refused; ``store.py`` reads and writes the files.
"""

from fairseq_star.teacher_cache.cache import PROJECTED_FEATURES, STORED_DTYPES, TeacherCache

__all__ = ["PROJECTED_FEATURES", "STORED_DTYPES", "TeacherCache"]
