"""Calibration speech for fixed activation ranges of a quantized file, and held-out speech for its comparison."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fairseq_star.data.dataset import DistillationDataset, check_manifest
from fairseq_star.data.origin import CORPUS, corpus_origin
from fairseq_star.errors import StarError
from fairseq_star.formats.student import Student

CALIBRATION, HELD_OUT = 64, 4  # utterances at most
LEAST = 8  # of the manifest
SECONDS = 20  # of an utterance, from its beginning


@dataclass
class Calibration:
    """Raw audio (1-D, float32), utterance by utterance."""

    calibration: list[Tensor]
    held_out: list[Tensor]
    origin: dict  # of the corpus, stored in the file

    @classmethod
    def read(cls, manifest: str, student: Student) -> "Calibration":
        """Read evenly spaced utterances of a manifest, which must have the student's sample rate.

        Raises:
            StarError: the manifest or a file of it cannot be read, or it lists too few.
        """
        try:
            check_manifest(manifest, sample_rate=student.sample_rate)
        except (StarError, OSError) as error:
            raise StarError(f"--calibration: {error}") from error
        dataset = DistillationDataset(
            manifest, sample_rate=student.sample_rate, normalize=False, max_sample_size=SECONDS * student.sample_rate,
            min_sample_size=student.model.geometry.receptive_field, random_crop=False, pad_to_multiple=1, seed=0,
        )  # fmt: skip
        if len(dataset) < LEAST:
            raise StarError(
                f"--calibration: {manifest} lists {len(dataset)} utterances long enough for a frame; {LEAST} are the "
                f"least, {CALIBRATION + HELD_OUT} will do"
            )
        number = min(len(dataset), CALIBRATION + HELD_OUT)
        utterances = []
        for place in np.linspace(0, len(dataset) - 1, number).round().astype(int):
            item = dataset[place]
            if item["source"] is None:
                raise StarError(f"--calibration: {item['bad_audio']}")
            utterances.append(item["source"])
        held = set(np.linspace(0, number - 1, HELD_OUT).round().astype(int).tolist())
        return cls(
            calibration=[source for place, source in enumerate(utterances) if place not in held],
            held_out=[source for place, source in enumerate(utterances) if place in held],
            origin={CORPUS: corpus_origin(manifest)},
        )
