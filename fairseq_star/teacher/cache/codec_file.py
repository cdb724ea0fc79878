"""A codec on disk, beside the rows it made: numbers and plain text, written once whoever else writes."""

import json
import os
import secrets
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from fairseq_star.errors import StarError
from fairseq_star.teacher.cache.codec import Codec

FORMAT = "fairseq-star codec 1"
FOLDER, FILE = "codec", "codec.npz"


def read_codec(store: Path) -> Codec | None:
    """The codec of the rows in ``store``; None where there is none yet.

    Raises:
        StarError: it is damaged.
    """
    path = store / FOLDER / FILE
    try:
        with np.load(path, allow_pickle=False) as file:
            settings = json.loads(str(file["settings"]))
            parts = {name: torch.from_numpy(file[name]) for name in ("offsets", "spreads", "bases") if name in file}
        if settings["format"] != FORMAT or any(not torch.isfinite(part).all() for part in parts.values()):
            raise ValueError(FORMAT)
        return Codec(tuple(settings["numbers"]), about=settings["about"], **parts)
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StarError(
            f"task.teacher_cache: {path} is damaged or cannot be read ({error}), and without it nothing of its folder "
            f"can be; remove {store}, which is then computed anew"
        ) from error


def keep_codec(store: Path, codec: Codec, unfinished: Path) -> Codec:
    """Write ``codec`` beside the rows in ``store``, unless another process was first.

    The folder is put in its place by one rename, which fails where there is one already: of two writers, on whatever
    file system, both end with the same codec, and a kill leaves none or a whole one.

    Args:
        unfinished: where half-written things lie, on the same disk; must be there.

    Returns:
        The codec that is now on disk.

    Raises:
        OSError: it cannot be written.
    """
    temporary = unfinished / f"{FOLDER}.{secrets.token_hex(8)}"
    temporary.mkdir()
    try:
        parts = {"offsets": codec.offsets, "spreads": codec.spreads, "bases": codec.bases}
        settings = json.dumps({"format": FORMAT, "numbers": list(codec.numbers), "about": codec.about}, indent=1)
        arrays = {name: part.cpu().numpy() for name, part in parts.items() if part is not None}
        np.savez(temporary / FILE, settings=np.array(settings), **arrays)
        with (temporary / FILE).open("rb") as file:
            os.fsync(file.fileno())  # rows without their codec are worth nothing
        try:
            os.rename(temporary, store / FOLDER)
        except OSError:
            if (first := read_codec(store)) is None:
                raise
            return first
        return codec
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
