"""8-bit quantization of frames, in all D dimensions or as d coordinates in a basis.

For state l with a basis P_l (D x d, orthonormal columns; the identity where there is none), a frame x is kept as

    z = P_l^T x,    q_k = round((z_k - m_k) / (s_k a)),    a = max_k |z_k - m_k| / s_k / 127

that is d codes of -127 .. 127 and one scale a (float32), d + 4 bytes; m is the coordinates' mean over a sample and
s_k the root of their standard deviation there. With m the part that all frames share, which holds outlier dimensions
too, takes none of the 127 steps; the root puts more of the error where the signal is larger, and is a little better
than equal steps and than steps in proportion (``benchmarks/cache.md``). Coordinates come back as z ~ m + s a q.

Distances between Gram matrices need no more than coordinates: ``fairseq_star/losses/tgm/bases.py``.

On disk a codec is a folder next to its rows: numbers and plain text, written once even by concurrent writers.
"""

import hashlib
import json
import os
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fairseq_star.encoder.frames import Frames
from fairseq_star.encoder.modules import Encoding
from fairseq_star.errors import StarError
from fairseq_star.losses.tgm import Bases
from fairseq_star.losses.tgm.linalg import full_precision
from fairseq_star.teacher.cache.kept_states import PROJECTED_FEATURES, KeptStates

MOST = 127  # the largest code
SCALE_BYTES = 4  # a float32 at the end of each row
FORMAT = "fairseq-star codec 1"
FOLDER, FILE = "codec", "codec.npz"


@dataclass(frozen=True)
class Codec:
    """The quantization of the S states ``numbers``."""

    numbers: Sequence[int]  # rising; see :data:`fairseq_star.teacher.cache.kept_states.PROJECTED_FEATURES`
    offsets: Tensor  # m: S x d
    spreads: Tensor  # s: S x d, above 0
    bases: Tensor | None = None  # P: S x D x d; None: states as they are
    about: dict = field(default_factory=dict)  # how it was fitted and how exact it is, for people
    _overlaps: dict = field(default_factory=dict, repr=False)

    row_dtype = torch.int8

    @property
    def row_width(self) -> int:
        """Return the bytes of a frame of one state."""
        return self.offsets.shape[1] + SCALE_BYTES

    @property
    def width(self) -> int:
        """D."""
        return (self.offsets if self.bases is None else self.bases).shape[1]

    @cached_property
    def kind(self) -> str:
        """Return 8 digits, a hash of its numbers, so that rows of another codec are never read with this one."""
        whole = hashlib.sha256(json.dumps(list(self.numbers)).encode())
        for part in (self.offsets, self.spreads, self.bases):
            if part is not None:
                whole.update(part.cpu().contiguous().numpy().tobytes())
        return whole.hexdigest()[:8]

    def to(self, device: torch.device) -> "Codec":
        """Return the same on a device."""
        if self.offsets.device == device:
            return self
        moved = {name: getattr(self, name) for name in ("offsets", "spreads", "bases")}
        moved = {name: part if part is None else part.to(device) for name, part in moved.items()}
        return replace(self, _overlaps={}, **moved)

    def encode(self, place: int, states: Tensor) -> Tensor:
        """Quantize frames of state ``numbers[place]`` (B x T x D) to rows (B x T x ``row_width``, int8)."""
        coordinates = states.float()
        if self.bases is not None:
            with full_precision(states.device.type):
                coordinates = coordinates @ self.bases[place]
        steps = (coordinates - self.offsets[place]) / self.spreads[place]
        scales = steps.abs().amax(-1, keepdim=True) / MOST  # B x T x 1
        codes = (steps / scales.clamp_min(torch.finfo(torch.float32).tiny)).round().to(torch.int8)
        return torch.cat([codes, scales.view(torch.int8)], dim=-1)

    def all_finite(self, rows: Tensor) -> bool:
        """Return whether the states of these rows have no NaN or infinity: their scales have none then."""
        return bool(torch.isfinite(_scales(rows)).all())

    def decode(self, rows: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Return coordinates of S x B x T rows: S x B x T x d, float32, zero where ``padding_mask`` (B x T) is True."""
        coordinates = rows[..., :-SCALE_BYTES].float().mul_(_scales(rows))
        coordinates.mul_(self.spreads[:, None, None]).add_(self.offsets[:, None, None])
        return coordinates if padding_mask is None else coordinates.masked_fill_(padding_mask[None, ..., None], 0.0)

    def give(self, rows: Tensor, frames: Frames, numbers: Sequence[int], dtype: torch.dtype) -> Encoding:
        """Return the encoding of a batch of S x B x T rows; the states ``numbers`` are the codec's own."""
        coordinates = self.decode(rows, frames.padding_mask).to(dtype)
        kept = dict(zip(numbers, coordinates.unbind(0), strict=True))
        states = KeptStates(kept, max(numbers) + 1) if self.bases is None else ReducedStates(kept, self)
        projected = None
        if PROJECTED_FEATURES in kept:
            projected = kept[PROJECTED_FEATURES] if self.bases is None else states.whole(PROJECTED_FEATURES)
        return Encoding(frames, projected, states)

    def overlap(self, left: int, right: int) -> Tensor:
        """Return P_left^T P_right of two states by their numbers, d x d."""
        if (left, right) not in self._overlaps:
            places = [list(self.numbers).index(number) for number in (left, right)]
            with full_precision(self.bases.device.type):
                self._overlaps[left, right] = self.bases[places[0]].mT @ self.bases[places[1]]
        return self._overlaps[left, right]


class ReducedStates(KeptStates):
    """States stored as coordinates: an item is the reconstructed state, Z P^T; the TGM loss takes coordinates."""

    def __init__(self, coordinates: dict[int, Tensor], codec: Codec):
        super().__init__(coordinates, max(coordinates) + 1)
        self._codec = codec

    def __getitem__(self, number: int) -> Tensor:
        super().__getitem__(number)  # raises where there is none
        return self.whole(number + (len(self) if number < 0 else 0))

    def whole(self, number: int) -> Tensor:
        """Return the state B x T x D of a number, that of ``projected_features`` too."""
        basis = self._codec.bases[list(self._codec.numbers).index(number)]
        return self._states[number] @ basis.mT.to(self._states[number].dtype)

    def coordinates(self, numbers: Sequence[int]) -> tuple[list[Tensor], Bases]:
        """Return the coordinates (B x T x d each) of states to compare, and their bases for ``tgm_loss``."""
        overlaps = [self._codec.overlap(left, right) for left, right in pairwise(numbers)]
        return [self._states[number] for number in numbers], Bases(self._codec.width, overlaps)


def _scales(rows: Tensor) -> Tensor:
    """Return a of each row: ... x 1, float32."""
    return rows[..., -SCALE_BYTES:].contiguous().view(torch.float32)


def read_codec(store: Path) -> Codec | None:
    """Read the codec of the rows in ``store``; None where there is none yet.

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
    """Write ``codec`` next to the rows in ``store``, unless another process was first.

    The folder is put in its place by one rename, which fails where there is one already: of two writers, on whatever
    file system, both end with the same codec, and a kill leaves none or a whole one.

    Args:
        unfinished: folder of half-written files, on the same disk; must exist.

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
