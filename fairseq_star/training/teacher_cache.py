"""What of the teacher is stored, under which key, and when a cache is refused.

Shapes: B utterances, T frames of the padded batch, n valid frames of an utterance, S states stored, D the teacher's
embedding dimension.
"""

import hashlib
import json
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fairseq_star.encoder.frames import Frames
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.encoder.modules import Encoding
from fairseq_star.errors import StarError
from fairseq_star.files import replacing
from fairseq_star.formats.hf_folder import teacher_files
from fairseq_star.training.dataset import DistillationDataset
from fairseq_star.training.state_store import StateStore
from fairseq_star.view.student_view import teacher_source

logger = logging.getLogger(__name__)

FORMAT = 1  # To be raised whenever files change, or what the teacher computes: entries of before are then not used.
STORED_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
PROJECTED_FEATURES = -1  # among the numbers of states; 0 .. L are those of ``Encoding.hidden_states``
THREADS = 4  # reading, writing and checking bytes run outside the interpreter's lock

Compute = Callable[..., Encoding]  # the teacher itself: (source, num_samples, last_layer=...) -> Encoding


class TeacherCache:
    """Gives a teacher's encoding of a batch, from disk where it is there and from the teacher where it is not.

    Entries lie in a subfolder for each setting (the teacher file's content and all else that changes its states), and
    within it under the digest of the very samples the teacher hears (``dataset.audio_digest``). A changed checkpoint,
    option, crop or audio file therefore finds nothing; a moved or copied one finds what is there.

    What it gives is rounded to the stored precision whether it was read or just computed, so that a run's losses do not
    depend on what was in the cache when it began. Frames past an utterance's end are zero.

    Args:
        folder: ``task.teacher_cache``; made when the first batch is asked for.
        dtype: a name of :data:`STORED_DTYPES`.
        teacher: for its dimensions and audio format. It is not run by the cache, but by what the task hands it.
        checkpoint: the teacher's file or folder.
        valid_group_norm: whether an utterance's states are independent of its batch.

    Raises:
        StarError: ``valid_group_norm`` is off, or ``folder`` is no folder.
    """

    def __init__(self, folder: str, *, dtype: str, teacher: FrozenEncoder, checkpoint: str, valid_group_norm: bool):
        if not valid_group_norm:
            raise StarError(
                "task.teacher_cache: with task.padded_group_norm=true the teacher's states depend on the neighbours in "
                "a batch and cannot be stored by utterance; leave one of the two out"
            )
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise StarError(f"task.teacher_cache: {folder} is not a folder; name one, or a path where one can be made")
        self.dtype = STORED_DTYPES[dtype]
        self.geometry = teacher.geometry
        self.width, self.num_layers = teacher.embed_dim, teacher.num_layers
        self.settings = {
            "format": FORMAT,
            "teacher": teacher_digest(checkpoint),
            "sample_rate": teacher.sample_rate,
            "normalize": teacher.normalize,
            "valid_group_norm": valid_group_norm,
            "dtype": dtype,
            "width": self.width,
        }
        self.expected: dict[str, np.ndarray] = {}  # split -> frames of each utterance
        self.stores: dict[str, StateStore] = {}
        self.writing = True  # until the disk refuses
        self.range_told = False
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="teacher-cache")

    def count_in(self, split: str, dataset: DistillationDataset) -> None:
        """Count a split's utterances into the estimate.

        Raises:
            StarError: its utterances are cropped at random, so that no state would ever be asked for again.
        """
        longest = int(dataset.sizes.max())
        if dataset.random_crop and longest > dataset.max_sample_size:
            raise StarError(
                f"task.teacher_cache: {split} has utterances of up to {longest} samples, which task.max_sample_size="
                f"{dataset.max_sample_size} crops at random, anew each epoch; set task.fixed_crop=true, or raise or "
                "leave out task.max_sample_size"
            )
        num_samples = np.minimum(dataset.sizes, dataset.max_sample_size)
        self.expected[split] = self.geometry.num_frames(num_samples)

    def encode(
        self,
        sample: dict,
        compute: Compute,
        *,
        precision: str,
        states: Collection[int] | None = None,
        last_layer: int | None = None,
        attention_layers: Collection[int] = (),
    ) -> Encoding:
        """The encoding of a batch, on the device and in the dtype of its source.

        Args:
            sample: a batch of a ``DistillationDataset`` made with ``digests=True``.
            compute: the teacher; called for what is not stored yet, never when all is.
            precision: what the teacher computes in.
            states: numbers of the hidden states wanted, with :data:`PROJECTED_FEATURES`; all up to ``last_layer`` when
                None. No others are given.
            last_layer: as :meth:`FrozenEncoder.forward` takes it.
            attention_layers: must be empty.

        Raises:
            StarError: attention maps are wanted, or the disk cannot hold the states of the expected splits.
        """
        if attention_layers:
            raise StarError(
                "task.teacher_cache stores no attention maps; leave it out, or set criterion.avg_attn_weight=0 and "
                "criterion.last_attn_weight=0"
            )
        if states is None:
            states = range(PROJECTED_FEATURES, (last_layer or self.num_layers) + 1)
        states = sorted(set(states))
        store = self._store(precision, states)
        source, num_samples, digests = teacher_source(sample), sample["num_samples"], sample["audio_digests"]
        frames = Frames.of(self.geometry, num_samples, source)
        # S x B x T x D: one piece for one copy to the device, in which each state of the batch is contiguous.
        shape = (len(states), len(num_samples), self.geometry.num_frames(source.size(1)), self.width)
        stored = torch.empty(shape, dtype=self.dtype, pin_memory=source.is_cuda)
        entries = [stored[:, utterance, :n] for utterance, n in enumerate(frames.frame_lengths)]
        for utterance, n in enumerate(frames.frame_lengths):
            stored[:, utterance, n:].zero_()

        found = list(self._threads.map(store.read, digests, entries))
        missing = [utterance for utterance, is_there in enumerate(found) if not is_there]
        if missing:
            encoding = self._compute(compute, source, num_samples, missing, last_layer)
            _round_into([entries[utterance] for utterance in missing], encoding, states)
            # A sum is finite where all is, and needs no memory.
            if not all(torch.isfinite(entries[utterance].sum(dtype=torch.float64)) for utterance in missing):
                if not self.range_told:
                    self.range_told = True
                    logger.warning(
                        f"teacher cache: some of the teacher's states are beyond the range of {self.dtype}, so their "
                        "batches are computed each time; task.teacher_cache_dtype=bfloat16 has the wider range"
                    )
                all_missing = len(missing) == len(num_samples)
                return encoding if all_missing else compute(source, num_samples, last_layer=last_layer)
            self._write(store, [(digests[utterance], entries[utterance]) for utterance in missing])

        # In two steps: one alone would convert on the host, and copy from memory that is not pinned.
        stored = stored.to(source.device, non_blocking=True).to(source.dtype)
        given = dict(zip(states, stored.unbind(0), strict=True))
        return Encoding(frames, given.get(PROJECTED_FEATURES), KeptStates(given, max(states) + 1))

    def _compute(
        self, compute: Compute, source: Tensor, num_samples: Sequence[int], missing: list[int], last_layer: int | None
    ) -> Encoding:
        """The teacher over the missing utterances alone, padded no further than the longest of them: the valid group
        norm and the padding mask make that the same as within the batch."""
        if len(missing) < len(num_samples):
            num_samples = [num_samples[utterance] for utterance in missing]
            source = torch.stack([source[utterance, : max(num_samples)] for utterance in missing])
        return compute(source, num_samples, last_layer=last_layer)

    def _write(self, store: StateStore, entries: list[tuple[str, Tensor]]) -> None:
        """Write entries as long as the disk takes them; a full one costs speed, not the run."""
        if not self.writing:
            return
        try:
            for _ in self._threads.map(store.write, *zip(*entries, strict=True)):
                pass
        except OSError as error:
            self.writing = False
            logger.warning(
                f"teacher cache: {self.folder} cannot be written to ({error.strerror}); the run goes on without "
                "storing more"
            )

    def _store(self, precision: str, states: list[int]) -> StateStore:
        settings = self.settings | {"precision": precision, "states": states}
        text = json.dumps(settings, sort_keys=True, indent=1)
        if text not in self.stores:
            name = hashlib.sha256(text.encode()).hexdigest()[:16]
            self.stores[text] = self._open(StateStore(self.folder / name, self.dtype), text, len(states))
        return self.stores[text]

    def _open(self, store: StateStore, settings: str, num_states: int) -> StateStore:
        # Once: with autocast, validation runs in another precision and opens a second, small store.
        if not self.stores:
            self._check_space(store, num_states)
        try:
            store.open()
            about = store.folder / "about.json"
            if not about.exists():
                with replacing(about, temporary=store.unfinished / f"about.{os.getpid()}") as temporary:
                    temporary.write_text(settings + "\n")
        except OSError as error:
            raise StarError(
                f"task.teacher_cache: {store.folder} cannot be made ({error.strerror}); "
                "choose a folder you may write to"
            ) from error
        return store

    def _check_space(self, store: StateStore, num_states: int) -> None:
        """Tell how much the expected splits take and refuse what the disk cannot hold, before anything is written."""
        frames = np.concatenate([np.empty(0, np.int64), *self.expected.values()])
        needed = sum(
            int(count) * store.entry_bytes(num_states, int(n), self.width)
            for n, count in zip(*np.unique(frames, return_counts=True), strict=True)
        )
        there = min(needed, store.num_bytes())
        nearest = next(path for path in (self.folder.absolute(), *self.folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(nearest).free
        logger.info(
            f"teacher cache: {len(frames):,} utterances, {int(frames.sum()):,} frames x {num_states} states x "
            f"{self.width} x {self.dtype.itemsize} bytes = {needed / 1e9:,.3f} GB in {store.folder}, of which "
            f"{there / 1e9:,.3f} GB are there; {free / 1e9:,.1f} GB are free"
        )
        if needed - there > free:
            raise StarError(
                f"task.teacher_cache: {self.folder} needs {(needed - there) / 1e9:,.3f} GB more for the teacher's "
                f"states but its disk has {free / 1e9:,.3f} GB free; make room, name a folder on a larger disk, or "
                "leave the cache out"
            )


class KeptStates(Sequence[Tensor]):
    """Those hidden states that were asked of a cache, under the numbers they have among all.

    Raises:
        KeyError: another one is taken.
    """

    def __init__(self, states: Mapping[int, Tensor], count: int):
        self._states, self._count = states, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Tensor:
        number += self._count if number < 0 else 0
        if not 0 <= number < self._count:
            raise IndexError(number)
        return self._states[number]


def teacher_digest(path: str) -> str:
    """SHA-256 over the content of every file a teacher consists of, wherever they lie and whatever they are called."""
    whole = hashlib.sha256()
    for name in teacher_files(path):
        with open(name, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _round_into(entries: Sequence[Tensor], encoding: Encoding, states: Sequence[int]) -> None:
    """Copy the numbered states of each utterance's valid frames to the host, into its entry (S x n x D)."""
    for place, number in enumerate(states):
        computed = encoding.projected_features if number == PROJECTED_FEATURES else encoding.hidden_states[number]
        for row, entry in enumerate(entries):
            entry[place].copy_(computed[row, : entry.size(1)])
