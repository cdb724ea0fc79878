"""A folder of hidden states, one file an utterance: safe against kills, damage and several writers at once.

A file is a header, a checksum and the raw numbers: S states x n frames x D, row by row, little-endian as every platform
torch runs on. The header names everything a reader relies on, so that a file of anything else is not used. It appears
under its name by ``os.replace`` only when it is whole; two writers of one entry write the same.
"""

import logging
import os
import secrets
import shutil
import struct
import time
import zlib
from pathlib import Path

import torch
from torch import Tensor

from fairseq_star.runtime.files import replacing

logger = logging.getLogger(__name__)

MAGIC = b"STaRstat"
HEADER = struct.Struct("<8s8s64sIII")  # magic, kind, digest of the audio, S, n, D
CHECKSUM = struct.Struct("<I")  # crc32 of header and numbers
BLOCK = 4096  # bytes; a file system's unit of allocation, for the estimate
OLD = 3600.0  # seconds after which a temporary file has no writer any more: a write takes far less than one


class StateStore:
    """The entries of one setting. Shapes: S states, n frames of the utterance, D embedding dimension.

    Args:
        folder: of the entries.
        dtype: of their numbers.
        kind: up to 8 characters in every entry's header; entries of another kind are not read. None: the dtype's name.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, kind: str | None = None):
        self.folder = folder
        self.dtype = dtype
        self.kind = kind
        self.unfinished = folder / "unfinished"

    def open(self) -> None:
        """Make the folder where it is missing and remove the leftovers of killed writers.

        Raises:
            OSError: the folder cannot be made.
        """
        self.unfinished.mkdir(parents=True, exist_ok=True)
        for path in self.unfinished.iterdir():
            try:
                if time.time() - path.stat().st_mtime > OLD:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            except OSError:  # another process was quicker, or the folder is read-only
                continue

    def num_bytes(self) -> int:
        """Return the disk space of all entries, their last blocks counted whole."""
        total = 0
        for shard in self.folder.glob("[0-9a-f][0-9a-f]"):
            with os.scandir(shard) as entries:
                total += sum(_whole_blocks(entry.stat().st_size) for entry in entries)
        return total

    def entry_bytes(self, num_states: int, num_frames: int, width: int) -> int:
        """Return the disk space of an entry, its last block counted whole."""
        return _whole_blocks(HEADER.size + CHECKSUM.size + num_states * num_frames * width * self.dtype.itemsize)

    def path(self, digest: str) -> Path:
        """Return an entry's path, in one of 256 folders: file systems are slow with 280,000 files in one."""
        return self.folder / digest[:2] / f"{digest[2:]}.states"

    def read(self, digest: str, into: Tensor) -> bool:
        """Read an entry into ``into`` (S x n x D on the host, each state contiguous), without a copy between.

        Returns:
            False where the entry is missing or damaged, which is logged; ``into`` is then undefined.
        """
        header = self._header(digest, into)
        checksum = zlib.crc32(header)
        try:
            with open(self.path(digest), "rb") as file:
                whole = file.read(len(header)) == header
                stored = file.read(CHECKSUM.size)
                for state in into:
                    numbers = _bytes_of(state)
                    whole = whole and file.readinto(numbers) == len(numbers)
                    checksum = zlib.crc32(numbers, checksum)
                if whole and stored == CHECKSUM.pack(checksum) and not file.read(1):
                    return True
        except FileNotFoundError:
            return False
        except OSError as error:
            logger.warning(f"teacher cache: {self.path(digest)} cannot be read ({error.strerror}), computed anew")
            return False
        logger.warning(f"teacher cache: {self.path(digest)} is damaged, computed anew")
        return False

    def write(self, digest: str, states: Tensor) -> None:
        """Write ``states`` (S x n x D on the host, each state contiguous) as an entry, in place of any older one.

        Raises:
            OSError: the disk is full or may not be written to; nothing but whole entries is left.
        """
        header, numbers = self._header(digest, states), [_bytes_of(state) for state in states]
        checksum = zlib.crc32(header)
        for part in numbers:
            checksum = zlib.crc32(part, checksum)
        path = self.path(digest)
        temporary = self.unfinished / f"{digest}.{secrets.token_hex(8)}"
        path.parent.mkdir(exist_ok=True)
        # Not synced to the disk: after a power cut the checksum finds what is missing.
        with replacing(path, temporary=temporary), open(temporary, "xb") as file:
            file.write(header + CHECKSUM.pack(checksum))
            file.writelines(numbers)

    def _header(self, digest: str, states: Tensor) -> bytes:
        kind = self.kind or str(states.dtype).removeprefix("torch.")
        return HEADER.pack(MAGIC, kind.encode(), digest.encode(), *states.shape)


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _bytes_of(state: Tensor) -> memoryview:
    return memoryview(state.view(torch.uint8).numpy()).cast("B")
