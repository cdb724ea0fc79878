"""Features of a frozen upstream, computed once for each utterance and stored on disk, for s3prl's unchanged tasks.

:func:`store_features` wraps s3prl's upstreams: each utterance is then processed alone, its hidden states are rounded to
float16 and stored under the digest of its samples and of the upstream. What is read is therefore equal, bit by bit, to
what would be computed, whatever the batch, the task and the process: a store of 0 bytes gives the same results.
(s3prl's own batches are padded, and the group norm of HuBERT Base's front end includes the padding, so there an
utterance's features depend on the others of its batch.)

It runs by path in s3prl's environment, which need not have this package or fairseq.
"""

import atexit
import contextlib
import fcntl
import functools
import hashlib
import io
import os
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SHORTEST = 1600  # samples of a front end's input; shorter utterances are followed by zeros
CHECKSUM_BYTES = 4
SLACK = 1 / 16  # of the limit: freed at once, and written by a process before it looks at the others' files again
MOST_SEEN = 1_000_000  # digests remembered: a training of SID draws six million crops
ABANDONED = 3600  # seconds after which another process's unfinished file is removed


class FeatureStore:
    """Arrays on disk, a file for each, below a total size; several processes may share the folder.

    A file is complete or missing, and one whose checksum is wrong is removed. Where there is no room, the files that
    were used least recently are removed, except those in use since this process began: each epoch reads all
    utterances, so a store that is too small would otherwise replace every file before its next use.
    """

    def __init__(self, folder: Path, limit: int, *, only_repeated: bool = False):
        """Open a store.

        Args:
            folder: made where it is missing.
            limit: bytes of all files. Each further process may exceed it by a sixteenth.
            only_repeated: store what is computed for the second time, for tasks that crop at random: a crop is hardly
                ever drawn twice.
        """
        self.folder, self.limit, self.only_repeated = folder, limit, only_repeated
        self.began = time.time()
        self.counts = Counter()
        self.full = not limit
        self._seen: set[str] = set()
        self._size, self._unseen = 0, 0  # bytes at the last look, and written since
        if limit:
            folder.mkdir(parents=True, exist_ok=True)
            self._look()

    def get(self, key: str) -> np.ndarray | None:
        """Return what is stored under ``key``, or None."""
        if not self.limit:
            return None
        path = self._path(key)
        try:
            content = path.read_bytes()
            if _checksum(content[:-CHECKSUM_BYTES]) != content[-CHECKSUM_BYTES:]:
                self._report(f"{path} is damaged; it is computed again")
                path.unlink(missing_ok=True)
                return None
            os.utime(path)
        except FileNotFoundError:  # or just removed by another process
            return None
        except OSError as error:
            self._report(f"{path} cannot be read ({error.strerror}); it is computed")
            return None
        self.counts["read"] += 1
        return np.load(io.BytesIO(content), allow_pickle=False)

    def put(self, key: str, array: np.ndarray) -> None:
        """Store an array, if there is room."""
        self.counts["computed"] += 1
        if self.full:
            return
        if self.only_repeated and key not in self._seen:
            if len(self._seen) >= MOST_SEEN:
                self._seen.clear()
            self._seen.add(key)
            return
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        content = buffer.getbuffer()
        checksum = _checksum(content)
        if not self._has_room(len(content) + CHECKSUM_BYTES):
            return
        path = self._path(key)
        partial = path.with_name(f".{key}.{os.getpid()}")
        try:
            path.parent.mkdir(exist_ok=True)
            with partial.open("wb") as file:
                file.write(content)
                file.write(checksum)
            os.replace(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            self.full = True
            self._report(f"{self.folder}: nothing more is stored ({error.strerror})")
            return
        self._unseen += len(content) + CHECKSUM_BYTES
        self.counts["stored"] += 1

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _has_room(self, size: int) -> bool:
        over = self._size + self._unseen + size > self.limit
        if over or self._unseen > SLACK * self.limit:
            with (self.folder / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                files = self._look()
                if self._size + size > self.limit:
                    self._remove_oldest(files, self._size + size - int((1 - SLACK) * self.limit))
            if self._size + size > self.limit:
                self.full = True
                self._report(
                    f"{self.folder}: holds its {self.limit / 1e9:.1f} GB; other features are computed each time"
                )
        return not self.full

    def _look(self) -> list[tuple[float, int, Path]]:
        """Measure the folder; return each file's last use, size and path."""
        found = []
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
                about = path.stat()
                if path.name.startswith("."):
                    if about.st_mtime < time.time() - ABANDONED:
                        path.unlink()
                    continue
                found.append((about.st_mtime, about.st_size, path))
        self._size, self._unseen = sum(size for _, size, _ in found), 0
        return found

    def _remove_oldest(self, files: list[tuple[float, int, Path]], size: int) -> None:
        for used, own, path in sorted(files, key=lambda one: one[0]):
            if size <= 0 or used >= self.began:
                break
            path.unlink(missing_ok=True)
            self._size, size = self._size - own, size - own
            self.counts["removed"] += 1

    @staticmethod
    def _report(sentence: str) -> None:
        print(f"\nfeatures: {sentence}", file=sys.stderr, flush=True)


def _checksum(content: bytes | memoryview) -> bytes:
    return zlib.crc32(content, 1).to_bytes(CHECKSUM_BYTES, "little")  # from 1: an empty file or one of zeros is damaged


class StoredUpstream(torch.nn.Module):
    """An upstream of s3prl's whose features come from a store where it has them."""

    def __init__(self, upstream: torch.nn.Module, identity: str, store: FeatureStore):
        super().__init__()
        self.upstream, self.identity, self.store = upstream, identity, store

    def get_downsample_rates(self, key: str) -> int:
        """Return samples a frame."""
        return self.upstream.get_downsample_rates(key)

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor] | Tensor]:
        """Return the hidden states of a batch.

        Args:
            wavs: samples of each utterance.

        Returns:
            ``hidden_states``, a list of B x T x D, and ``last_hidden_state``. T is the longest utterance's number of
            frames; shorter ones are followed by their last frame, as in ``s3prl.nn.S3PRLUpstream``.
        """
        if self.training:  # s3prl trains the upstream: its features change
            return self.upstream(wavs)
        states = [self._features(wav) for wav in wavs]
        longest = max(one.shape[1] for one in states)
        padded = [torch.cat([one, one[:, -1:].expand(-1, longest - one.shape[1], -1)], 1) for one in states]
        hidden_states = list(torch.stack(padded, 1).float().unbind())
        return {"hidden_states": hidden_states, "last_hidden_state": hidden_states[-1]}

    def _features(self, wav: Tensor) -> Tensor:
        """Hidden states of an utterance, L x T x D."""
        digest = hashlib.blake2b(f"{self.identity} {wav.device.type} {wav.dtype}\n".encode(), digest_size=20)
        digest.update(wav.detach().cpu().contiguous().numpy())
        key = digest.hexdigest()
        stored = self.store.get(key)
        if stored is None:
            alone = torch.nn.functional.pad(wav, (0, max(0, SHORTEST - len(wav))))
            with torch.no_grad():
                exact = torch.stack([state[0] for state in self.upstream([alone])["hidden_states"]])
            rounded = exact.half()
            stored = (rounded if rounded.isfinite().all() else exact).cpu().numpy()  # half ends at 65,504
            self.store.put(key, stored)
        return torch.from_numpy(stored).to(wav.device)


def store_features(hub: object, folder: Path, limit: int, *, only_repeated: bool) -> None:
    """Make every upstream of ``s3prl.hub`` one with a store, and report its use when the process ends."""
    store = FeatureStore(folder, limit, only_repeated=only_repeated)
    for name in hub.options():
        setattr(hub, name, functools.partial(_upstream, name, getattr(hub, name), store))
    atexit.register(_report_counts, store)


def _upstream(name: str, entry: Callable, store: FeatureStore, ckpt: str | None = None, **options: object):
    identity = f"{name} {_digest(ckpt)} {options.get('model_config')} torch {torch.__version__}"
    return StoredUpstream(entry(ckpt=ckpt, **options), identity, store)


def _digest(ckpt: str | None) -> str:
    """Digest of a checkpoint's content; a name or an address as it is."""
    if ckpt is None or not Path(ckpt).is_file():
        return str(ckpt)
    return hashlib.sha256(Path(ckpt).read_bytes()).hexdigest()


def _report_counts(store: FeatureStore) -> None:
    counts = ", ".join(f"{store.counts[name]} {name}" for name in ("read", "computed", "stored", "removed"))
    print(f"\nfeatures of utterances: {counts}", file=sys.stderr, flush=True)
