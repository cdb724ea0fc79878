"""A run's splits: each manifest checked before training and made into a data set, and the student's augmentation."""

import os

from omegaconf import DictConfig

from fairseq_star.data.augment.distortion import MANIFESTS
from fairseq_star.data.augment.student import StudentAugmentation
from fairseq_star.data.dataset import DistillationDataset, StoredStates, check_manifest
from fairseq_star.data.long_recordings import warn_of_long
from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.errors import StarError
from fairseq_star.runtime.workers import rank_and_world_size


def check_folder(folder: str) -> None:
    """Check ``task.data``.

    Raises:
        StarError: it is no folder.
    """
    if not os.path.isdir(folder):
        raise StarError(
            f"task.data: {folder} is no folder; make manifests there with manifests/librispeech.py or "
            "manifests/audio_folder.py"
        )


def load_augmentation(cfg: DictConfig, geometry: FrameGeometry, num_channels: int) -> StudentAugmentation | None:
    """Build the student's augmentation from the task's options; None where they change nothing.

    Args:
        cfg: the task's options, with the teacher's audio format.
        geometry: of the frames.
        num_channels: of the student's features.

    Raises:
        StarError: an option out of range, or a manifest or one of its files that cannot be used.
    """
    audio = {name: cfg[name] for name in ("sample_rate", "normalize", "seed")}
    augment = StudentAugmentation.of(cfg, geometry=geometry, num_channels=num_channels, **audio)
    for name in MANIFESTS:
        if path := cfg[name]:
            try:
                _check(cfg, path, headers=True)
            except StarError as error:
                raise StarError(f"task.{name}: {error}") from error
    return augment


def load_split(
    cfg: DictConfig,
    split: str,
    *,
    geometry: FrameGeometry | None,
    augment: StudentAugmentation | None,
    digests: bool = False,
    read_ahead: StoredStates | None = None,
) -> DistillationDataset:
    """Load ``{data}/{split}.tsv``.

    Args:
        cfg: the task's options, with the teacher's audio format.
        geometry: of the frames; utterances of less than one are left out; None: all are loaded.
        augment, digests, read_ahead: see :class:`DistillationDataset`.

    Raises:
        StarError: a bad line or file, or no utterance is left.
    """
    path = os.path.join(cfg.data, f"{split}.tsv")
    _check(cfg, path, headers=not cfg.skip_audio_check)
    dataset = DistillationDataset(
        path,
        sample_rate=cfg.sample_rate,
        normalize=cfg.normalize,
        max_sample_size=cfg.max_sample_size,
        min_sample_size=max(cfg.min_sample_size or 0, geometry.receptive_field if geometry else 1),
        random_crop=not cfg.fixed_crop,
        pad_to_multiple=cfg.pad_to_multiple,
        seed=cfg.seed,
        digests=digests,
        read_ahead=read_ahead,
        augment=augment,
    )
    if rank_and_world_size()[0] == 0:
        warn_of_long(split, dataset)
    return dataset


def _check(cfg: DictConfig, path: str, *, headers: bool) -> None:
    rank, world_size = rank_and_world_size()
    check_manifest(path, sample_rate=cfg.sample_rate, rank=rank, world_size=world_size, headers=headers)
