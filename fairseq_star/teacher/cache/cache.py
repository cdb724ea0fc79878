"""The cache of a teacher's hidden states: its keys, and the settings under which it is refused.

Shapes: B utterances, T frames of the padded batch, n valid frames of an utterance, S states stored, D the teacher's
embedding dimension. A row is one frame of one state as stored: D numbers, or fewer bytes
(``codec.py``).
"""

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Callable, Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from fairseq_star.data.augment.student import teacher_source
from fairseq_star.data.dataset import DistillationDataset
from fairseq_star.data.origin import CORPUS, corpus_origin, differences
from fairseq_star.encoder.frames import Frames
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.encoder.modules import Encoding
from fairseq_star.errors import StarError
from fairseq_star.runtime.files import replacing
from fairseq_star.runtime.job import free_disk
from fairseq_star.teacher.cache.codec import SCALE_BYTES, Codec, keep_codec, read_codec
from fairseq_star.teacher.cache.codec_fit import better_codec, describe, make_codec
from fairseq_star.teacher.cache.kept_states import PROJECTED_FEATURES, PlainRows
from fairseq_star.teacher.cache.read_ahead import STORED, ReadAhead, Where
from fairseq_star.teacher.cache.settings import NONE, check_dim, log_differences
from fairseq_star.teacher.cache.store import StateStore

logger = logging.getLogger(__name__)

FORMAT = 1  # Raise it when the files or the teacher's computation change: earlier entries are then not used.
STORED_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
THREADS = 4  # reading, writing and checking bytes run outside the interpreter's lock

Compute = Callable[..., Encoding]  # the teacher itself: (source, num_samples, last_layer=...) -> Encoding


class TeacherCache:
    """Returns a teacher's encoding of a batch, from disk where it is stored, otherwise from the teacher.

    Entries lie in a subfolder for each setting (the teacher file's content and all else that changes its states), and
    within it under the digest of the samples that the teacher receives (``audio_digest``). A changed checkpoint,
    option, crop or audio file therefore finds nothing; a moved or copied one finds what is there.

    With ``compression`` its first batch waits for a codec, which is fitted to a sample of the largest split and kept in
    the same subfolder; no entry is read with another codec than wrote it. One that was fitted to another corpus is
    measured on this one first.

    What it gives is rounded to the stored precision whether it was read or just computed, so that a run's losses do not
    depend on what was in the cache when it began. Frames past an utterance's end are zero.

    Args:
        folder: ``task.teacher_cache``; made with the first batch.
        dtype: a name of :data:`STORED_DTYPES`; with ``compression`` of no account.
        compression: one of :data:`fairseq_star.teacher.cache.settings.COMPRESSIONS`.
        dim: with ``pca`` coordinates kept of a frame; None: a quarter of the teacher's width.
        teacher: for its dimensions and audio format; :meth:`encode` takes the function that runs it.
        digest: of the teacher's files.
        valid_group_norm: whether an utterance's states are independent of its batch.

    Raises:
        StarError: ``valid_group_norm`` is off, ``folder`` is no folder, or ``dim`` is out of range.
    """

    def __init__(
        self,
        folder: str,
        *,
        dtype: str,
        teacher: FrozenEncoder,
        digest: str,
        valid_group_norm: bool,
        compression: str = NONE,
        dim: int | None = None,
    ):
        if not valid_group_norm:
            raise StarError(
                "task.teacher_cache: with task.padded_group_norm=true the teacher's states depend on the neighbours in "
                "a batch and cannot be stored by utterance; leave one of the two out"
            )
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise StarError(f"task.teacher_cache: {folder} is not a folder; name one, or a path where one can be made")
        self.compression, self.dim = compression, check_dim(compression, dim, teacher.embed_dim)
        self.dtype = STORED_DTYPES[dtype]
        self.geometry, self.sample_rate = teacher.geometry, teacher.sample_rate
        self.width, self.num_layers = teacher.embed_dim, teacher.num_layers
        self.settings = {
            "format": FORMAT,
            "teacher": digest,
            "sample_rate": teacher.sample_rate,
            "normalize": teacher.normalize,
            "valid_group_norm": valid_group_norm,
            "dtype": dtype,
            "width": self.width,
        }
        if compression != NONE:  # else as caches have it that were made before there was a choice
            self.settings |= {"dtype": "int8", "compression": compression, "dim": self.dim}
        self.read_ahead = None if compression == NONE else ReadAhead(self.folder, self.geometry)
        self.expected: dict[str, DistillationDataset] = {}  # by split
        self.stores: dict[str, StateStore] = {}
        self.rows: dict[str, PlainRows | Codec] = {}  # what is in each of them
        self.writing = True  # until the disk refuses
        self.warned_of_range = False
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="teacher-cache")

    def count_in(self, split: str, dataset: DistillationDataset) -> None:
        """Count a split's utterances into the estimate.

        Raises:
            StarError: its utterances are cropped at random, so that no entry would ever be read again.
        """
        longest = int(dataset.sizes.max())
        if dataset.random_crop and longest > dataset.max_sample_size:
            raise StarError(
                f"task.teacher_cache: {split} has utterances of up to {longest} samples, which task.max_sample_size="
                f"{dataset.max_sample_size} crops at random, anew each epoch; set task.fixed_crop=true, or raise or "
                "leave out task.max_sample_size"
            )
        self.expected[split] = dataset

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
        """Return the encoding of a batch, on the device and in the dtype of its source.

        Args:
            sample: a batch of a ``DistillationDataset`` made with ``digests=True``.
            compute: the teacher; called for the utterances that are not stored yet.
            precision: of the teacher's computation.
            states: numbers of the hidden states wanted, with :data:`PROJECTED_FEATURES`; all up to ``last_layer`` when
                None. No others are given.
            last_layer: see :meth:`FrozenEncoder.forward`.
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
        source, num_samples, digests = teacher_source(sample), sample["num_samples"], sample["audio_digests"]
        frames = Frames.of(self.geometry, num_samples, source)

        def states_of(samples: Tensor) -> list[Tensor]:
            encoding = compute(samples[None].to(source), [len(samples)], last_layer=last_layer)
            return [_numbered(encoding, number)[0] for number in states]

        store, kept = self._store(precision, states, states_of, source.device)
        rows, found = self._read(sample, store, kept, frames, len(states))
        missing = [utterance for utterance, is_there in enumerate(found) if not is_there]
        if missing:
            encoding = self._compute(compute, source, num_samples, missing, last_layer)
            entries = [rows[:, utterance, : frames.frame_lengths[utterance]] for utterance in missing]
            _encode_into(entries, encoding, states, kept)
            if not all(kept.all_finite(entry) for entry in entries):
                self._warn_of_range()
                all_missing = len(missing) == len(num_samples)
                return encoding if all_missing else compute(source, num_samples, last_layer=last_layer)
            self._write(
                store, [(digests[utterance], entry.cpu()) for utterance, entry in zip(missing, entries, strict=True)]
            )

        # In two steps: one alone would convert on the host, and copy from memory that is not pinned.
        return kept.give(rows.to(source.device, non_blocking=True), frames, states, source.dtype)

    def _read(
        self, sample: dict, store: StateStore, kept: PlainRows | Codec, frames: Frames, num_states: int
    ) -> tuple[Tensor, list[bool]]:
        """Return the rows S x B x T of a batch, zero past an utterance's end, and a flag for each utterance found. Rows
        read by the data workers are on the batch's device, others on the host."""
        if STORED in sample and sample[STORED]["name"] == store.folder.name:
            return sample[STORED]["rows"], sample[STORED]["found"]
        if self.read_ahead is not None:
            self.read_ahead.set_store(Where(store.folder.name, store.kind, num_states, kept.row_width))
        source = teacher_source(sample)
        # One piece for one copy to the device, in which each state of the batch is contiguous.
        shape = (num_states, len(source), self.geometry.num_frames(source.size(1)), kept.row_width)
        rows = torch.empty(shape, dtype=kept.row_dtype, pin_memory=source.is_cuda)
        for utterance, n in enumerate(frames.frame_lengths):
            rows[:, utterance, n:].zero_()
        entries = [rows[:, utterance, :n] for utterance, n in enumerate(frames.frame_lengths)]
        return rows, list(self._threads.map(store.read, sample["audio_digests"], entries))

    def _compute(
        self, compute: Compute, source: Tensor, num_samples: Sequence[int], missing: list[int], last_layer: int | None
    ) -> Encoding:
        """Run the teacher on the missing utterances alone, padded to the longest of them: the valid group norm and the
        padding mask make that the same as within the batch."""
        if len(missing) < len(num_samples):
            num_samples = [num_samples[utterance] for utterance in missing]
            source = torch.stack([source[utterance, : max(num_samples)] for utterance in missing])
        return compute(source, num_samples, last_layer=last_layer)

    def _warn_of_range(self) -> None:
        if not self.warned_of_range:
            self.warned_of_range = True
            fault = f"beyond the range of {self.dtype}"
            remedy = "; task.teacher_cache_dtype=bfloat16 has the wider range"
            if self.compression != NONE:
                fault, remedy = "not finite", ""
            logger.warning(
                f"teacher cache: some of the teacher's states are {fault}, so their batches are computed each time"
                f"{remedy}"
            )

    def _write(self, store: StateStore, entries: list[tuple[str, Tensor]]) -> None:
        """Write entries until the disk is full, which costs speed but does not end the run."""
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

    def _store(
        self, precision: str, states: list[int], states_of: Callable[[Tensor], Sequence[Tensor]], device: torch.device
    ) -> tuple[StateStore, PlainRows | Codec]:
        settings = self.settings | {"precision": precision, "states": states}
        text = json.dumps(settings, sort_keys=True, indent=1)
        if text not in self.stores:
            name = hashlib.sha256(text.encode()).hexdigest()[:16]
            self.stores[text], self.rows[text] = self._open(self.folder / name, text, states, states_of)
        self.rows[text] = self.rows[text].to(device)  # once: a step must not wait for a copy
        return self.stores[text], self.rows[text]

    def _open(
        self, folder: Path, settings: str, states: list[int], states_of: Callable[[Tensor], Sequence[Tensor]]
    ) -> tuple[StateStore, PlainRows | Codec]:
        coded = self.compression != NONE
        store = StateStore(folder, torch.int8 if coded else self.dtype)
        if not folder.exists():
            log_differences(self.folder, json.loads(settings))
        # Once: with autocast, validation runs in another precision and opens a second, small store.
        if not self.stores:
            self._check_space(store, len(states))
        try:
            _begin(store, settings)
            if not coded:
                return store, PlainRows(self.dtype, self.width)
            return self._with_codec(store, settings, states, states_of)
        except OSError as error:
            raise StarError(
                f"task.teacher_cache: {store.folder} cannot be made ({error.strerror}); "
                "choose a folder you may write to"
            ) from error

    def _with_codec(
        self, store: StateStore, settings: str, states: list[int], states_of: Callable[[Tensor], Sequence[Tensor]]
    ) -> tuple[StateStore, Codec]:
        """Return the store and its codec; where that was fitted to another corpus and one fitted to this corpus is more
        exact, the latter with a store of its own."""
        largest = max(self.expected.values(), key=len)
        corpus = corpus_origin(largest.manifest)
        origin = {"origin": {CORPUS: corpus}}
        if (codec := read_codec(store.folder)) is None:
            codec = make_codec(largest, self.geometry, states_of, states, self.dim)
            codec = keep_codec(store.folder, replace(codec, about=codec.about | origin), store.unfinished)
        if other := differences(codec.about.get("origin"), {CORPUS: corpus}):
            digest = hashlib.sha256(json.dumps(corpus).encode()).hexdigest()[:8]
            own = StateStore(store.folder.with_name(f"{store.folder.name}-{digest}"), store.dtype)
            if (mine := read_codec(own.folder)) is None:
                _begin(own, settings)
                mine = better_codec(codec, largest, self.geometry, states_of, self.dim)
                mine = keep_codec(own.folder, replace(mine, about=mine.about | origin), own.unfinished)
            fits = mine.kind == codec.kind
            logger.info(
                f"teacher cache: what is in {store.folder} was fitted to {other[0]}; measured on this corpus it is "
                + ("as exact as a new fit, and used" if fits else f"worse than a new fit, which is in {own.folder}")
            )
            store, codec = store if fits else own, mine
        logger.info(f"teacher cache: {describe(codec)}")
        store.kind = codec.kind
        return store, codec

    def _check_space(self, store: StateStore, num_states: int) -> None:
        """Log the space that the expected splits take; refuse them, before anything is written, where it is missing."""
        counts = [self.geometry.num_frames(dataset.cropped_lengths()) for dataset in self.expected.values()]
        frames = np.concatenate([np.empty(0, np.int64), *counts])
        width = self.width if self.compression == NONE else (self.dim or self.width) + SCALE_BYTES
        needed = sum(
            int(count) * store.entry_bytes(num_states, int(n), width)
            for n, count in zip(*np.unique(frames, return_counts=True), strict=True)
        )
        there = min(needed, store.num_bytes())
        nearest = next(path for path in (self.folder.absolute(), *self.folder.absolute().parents) if path.exists())
        free = free_disk(nearest)
        hour = 3600 * self.sample_rate / self.geometry.downsample_rate  # frames
        logger.info(
            f"teacher cache: {len(frames):,} utterances, {int(frames.sum()):,} frames x {num_states} states x "
            f"{width} x {store.dtype.itemsize} bytes = {needed / 1e9:,.3f} GB in {store.folder}, of which "
            f"{there / 1e9:,.3f} GB are there; {free / 1e9:,.1f} GB are free; an hour of audio takes "
            f"{hour * num_states * width * store.dtype.itemsize / 1e9:,.3f} GB"
        )
        if needed - there > free:
            raise StarError(
                f"task.teacher_cache: {self.folder} needs {(needed - there) / 1e9:,.3f} GB more for the teacher's "
                f"states but its disk has {free / 1e9:,.3f} GB free; make room, name a folder on a larger disk, or "
                "leave the cache out"
            )


def _begin(store: StateStore, settings: str) -> None:
    """Make a store's folder, with the settings of its rows in a file.

    Raises:
        OSError: it cannot be made.
    """
    store.open()
    about = store.folder / "about.json"
    if not about.exists():
        with replacing(about, temporary=store.unfinished / f"about.{os.getpid()}") as temporary:
            temporary.write_text(settings + "\n")


def _numbered(encoding: Encoding, number: int) -> Tensor:
    return encoding.projected_features if number == PROJECTED_FEATURES else encoding.hidden_states[number]


def _encode_into(entries: Sequence[Tensor], encoding: Encoding, states: Sequence[int], kept: PlainRows | Codec) -> None:
    """Write the rows of the numbered states of each utterance's valid frames into its entry (S x n x row)."""
    for place, number in enumerate(states):
        rows = kept.encode(place, _numbered(encoding, number))
        for row, entry in enumerate(entries):
            entry[place].copy_(rows[row, : entry.size(1)])
