"""Options of a compressed teacher cache, and the differences between caches of different settings."""

import json
import logging
from pathlib import Path

from omegaconf import DictConfig

from fairseq_star.errors import StarError

logger = logging.getLogger(__name__)

NONE, INT8, PCA = "none", "int8", "pca"
COMPRESSIONS = (NONE, INT8, PCA)


def leave_cache_out(options: DictConfig) -> None:
    """Reset all options of a teacher cache in a task's ``options``."""
    options.teacher_cache = options.teacher_cache_dim = None
    options.teacher_cache_compression = NONE


def check_dim(compression: str, dim: int | None, width: int) -> int | None:
    """Return d of ``pca`` (a quarter of the teacher's ``width`` where none is given); None for the others.

    Raises:
        StarError: it is given with another compression, or out of range.
    """
    if compression != PCA:
        if dim is not None:
            raise StarError(
                f"task.teacher_cache_dim={dim} is of task.teacher_cache_compression=pca; set that, or leave it out"
            )
        return None
    dim = max(width // 4, 1) if dim is None else dim
    if not 1 <= dim <= width:
        raise StarError(f"task.teacher_cache_dim={dim} must be 1 to {width}, the width of the teacher's states")
    return dim


def check_uncached(compression: str, dim: int | None) -> None:
    """Check the options of a run without ``task.teacher_cache``.

    Raises:
        StarError: they are of a cache.
    """
    if compression != NONE or dim is not None:
        raise StarError(
            f"task.teacher_cache_compression={compression} and task.teacher_cache_dim={dim} are of "
            "task.teacher_cache; name a folder there, or leave them out"
        )


def log_differences(folder: Path, settings: dict) -> None:
    """Log which settings of the stores in a cache differ, where a new store is begun in it."""
    for about in sorted(folder.glob("*/about.json")):
        try:
            other = json.loads(about.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(other, dict):
            differing = [
                f"{name}={_short(other.get(name))} (now {_short(settings.get(name))})"
                for name in sorted({*settings, *other})
                if other.get(name) != settings.get(name)
            ]
            logger.warning(
                f"teacher cache: {about.parent} is of other settings and not used: {', '.join(differing)}; this run "
                "begins a store of its own beside it"
            )


def _short(value: object) -> str:
    return f"{value[:8]}..." if isinstance(value, str) and len(value) > 40 else str(value)
