"""Rows of a compressed teacher cache, read ahead by the data workers together with their batch.

A worker is started before the run knows which states it needs, and in which precision. So the main process writes the
rows' location into memory that it shares with its workers, once it knows; for batches made before that, rows are read
when they are needed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.teacher.cache.store import StateStore

STORED = "stored_states"
"""Key of the workers' findings in a batch: a dict of ``name`` (of the store's folder), ``rows`` (S x B x T x row, zero
where nothing is stored) and ``found`` (a boolean for each utterance)."""
MOST_BYTES = 512


@dataclass(frozen=True)
class Where:
    """A store of rows: its location and format."""

    name: str  # of its folder within the cache's
    kind: str
    num_states: int
    row_width: int


class ReadAhead:
    """Reader in the data workers, whose store the main process sets.

    Args:
        folder: ``task.teacher_cache``.
        geometry: the teacher's.
    """

    def __init__(self, folder: Path, geometry: FrameGeometry):
        self.folder, self.geometry = folder, geometry
        # The first number is how many bytes follow, written last.
        self._shared = torch.zeros(MOST_BYTES, dtype=torch.int16).share_memory_()
        self._here: Where | None = None  # the last one set, in the main process

    def set_store(self, where: Where) -> None:
        """Read rows from this store from now on."""
        if where == self._here:
            return
        text = json.dumps(vars(where)).encode()
        self._shared[0] = 0
        self._shared[1 : 1 + len(text)] = torch.tensor(list(text), dtype=torch.int16)
        self._shared[0] = len(text)
        self._here = where

    def where(self) -> Where | None:
        """Return the store to read from; None while it is not known, or is just being written."""
        shared = self._shared.clone()
        try:
            return Where(**json.loads(bytes(shared[1 : 1 + int(shared[0])].tolist()))) if shared[0] else None
        except ValueError:
            return None

    def read(self, digest: str, num_samples: int) -> tuple[Where, Tensor | None] | None:
        """Return the store and an utterance's rows (S x n x row, int8), None where it has none; None alone while no
        store is known."""
        where = self.where()
        if where is None:
            return None
        store = StateStore(self.folder / where.name, torch.int8, where.kind)
        rows = torch.empty(where.num_states, self.geometry.num_frames(num_samples), where.row_width, dtype=torch.int8)
        return where, (rows if store.read(digest, rows) else None)

    def collate(self, read: Sequence[tuple[Where, Tensor | None] | None], num_samples: int) -> dict:
        """Return the additions to a batch padded to ``num_samples``: :data:`STORED`, if all rows are of one store."""
        stores = {found[0] if found else None for found in read}
        if len(stores) != 1 or (where := stores.pop()) is None:
            return {}
        num_frames = self.geometry.num_frames(num_samples)
        rows = torch.zeros(where.num_states, len(read), num_frames, where.row_width, dtype=torch.int8)
        for utterance, (_, of_one) in enumerate(read):
            if of_one is not None:
                rows[:, utterance, : of_one.shape[1]] = of_one
        return {STORED: {"name": where.name, "rows": rows, "found": [of_one is not None for _, of_one in read]}}
