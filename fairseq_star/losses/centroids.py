"""Files of k-means centroids, as ``fairseq-star units`` writes them: numbers and plain text, read without pickle."""

import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fairseq_star.errors import StarError
from fairseq_star.runtime.files import replacing

FORMAT = "fairseq-star units 1"


@dataclass(frozen=True)
class Centroids:
    """K centroids of a teacher layer's states."""

    vectors: np.ndarray  # K x D, float32
    layer: int  # 1-based; 0: the first layer's input
    teacher: str  # digest of the teacher's files
    about: dict = field(default_factory=dict)  # how they were fitted, for people

    def write(self, path: Path) -> None:
        """Write them to ``path``, atomically."""
        text = json.dumps(
            {"format": FORMAT, "layer": self.layer, "teacher": self.teacher, "about": self.about}, indent=1
        )
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, centroids=self.vectors.astype(np.float32), settings=np.array(text))


def read_centroids(path: str, option: str) -> Centroids:
    """Read what :meth:`Centroids.write` wrote.

    Raises:
        StarError: it is missing, damaged, or something else.
    """
    name = f"{option}: {path}"
    try:
        with np.load(path, allow_pickle=False) as file:
            settings, vectors = json.loads(str(file["settings"])), file["centroids"]
    except OSError as error:
        raise StarError(
            f"{name} cannot be read ({error.strerror or error}); make it with fairseq-star units"
        ) from error
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StarError(f"{name} holds no centroids, or is damaged; make it with fairseq-star units") from error
    fits = isinstance(settings, dict) and settings.get("format") == FORMAT and type(settings.get("layer")) is int
    fits = fits and isinstance(settings.get("about"), dict) and vectors.dtype == np.float32 and vectors.ndim == 2
    if not fits or not np.isfinite(vectors).all() or len(vectors) < 2:
        raise StarError(f"{name} holds no centroids of fairseq-star units; make it anew")
    return Centroids(vectors, settings["layer"], str(settings.get("teacher")), settings["about"])
