"""Rows of a compressed teacher cache, read by the data workers: they come with their batch, ahead of the step.

A worker is started before the run knows which states, in which precision, it will ask for. So the main process writes
where rows are into memory that it shares with its workers, once it knows; batches made before that come without, and
their rows are read when they are needed.
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
"""In a batch, what the workers found: a dict of ``name`` (of the store's folder), ``rows`` (S x B x T x row, zero where
nothing is) and ``found`` (a boolean for each utterance)."""
MOST_BYTES = 512


@dataclass(frozen=True)
class Where:
    """A store of rows, as a worker needs to know it."""

    name: str  # of its folder within the cache's
    kind: str
    num_states: int
    row_width: int


class ReadAhead:
    """Shared by the main process, which tells, and the data workers, which read.

    Args:
        folder: ``task.teacher_cache``.
        geometry: the teacher's.
    """

    def __init__(self, folder: Path, geometry: FrameGeometry):
        self.folder, self.geometry = folder, geometry
        # The first number is how many bytes follow, written last.
        self._told = torch.zeros(MOST_BYTES, dtype=torch.int16).share_memory_()
        self._here: Where | None = None  # what was told last, in the main process

    def tell(self, where: Where) -> None:
        """Have rows read from this store from now on."""
        if where == self._here:
            return
        text = json.dumps(vars(where)).encode()
        self._told[0] = 0
        self._told[1 : 1 + len(text)] = torch.tensor(list(text), dtype=torch.int16)
        self._told[0] = len(text)
        self._here = where

    def where(self) -> Where | None:
        """The store to read from; None while it is not known, or is just being told."""
        told = self._told.clone()
        try:
            return Where(**json.loads(bytes(told[1 : 1 + int(told[0])].tolist()))) if told[0] else None
        except ValueError:
            return None

    def read(self, digest: str, num_samples: int) -> tuple[Where, Tensor | None] | None:
        """Rows of an utterance (S x n x row, int8), and where they are from; None in their place where the store has
        none, and None alone while no store is known."""
        where = self.where()
        if where is None:
            return None
        store = StateStore(self.folder / where.name, torch.int8, where.kind)
        rows = torch.empty(where.num_states, self.geometry.num_frames(num_samples), where.row_width, dtype=torch.int8)
        return where, (rows if store.read(digest, rows) else None)

    def collate(self, read: Sequence[tuple[Where, Tensor | None] | None], num_samples: int) -> dict:
        """What goes into a batch padded to ``num_samples``: :data:`STORED`, if all that was read is of one store."""
        stores = {found[0] if found else None for found in read}
        if len(stores) != 1 or (where := stores.pop()) is None:
            return {}
        num_frames = self.geometry.num_frames(num_samples)
        rows = torch.zeros(where.num_states, len(read), num_frames, where.row_width, dtype=torch.int8)
        for utterance, (_, of_one) in enumerate(read):
            if of_one is not None:
                rows[:, utterance, : of_one.shape[1]] = of_one
        return {STORED: {"name": where.name, "rows": rows, "found": [of_one is not None for _, of_one in read]}}
