"""A sample of a layer's frames, on disk: taken once, whatever interrupts it.

Shapes: F frames, D width of the layer's states.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from fairseq_star.analysis.probe.labels import Utterance
from fairseq_star.errors import StarError
from fairseq_star.files import replacing

SAVE_EVERY = 50  # utterances


def choose(utterances: Sequence[Utterance], frames_of: Callable[[int], int], wanted: int, seed: int) -> list[int]:
    """Numbers of utterances, in an order that depends on the seed alone, of at least ``wanted`` frames together (all of
    them where there are fewer)."""
    order = np.random.default_rng(seed).permutation(len(utterances))
    reached = np.cumsum([frames_of(utterances[number].num_samples) for number in order])
    return order[: int(np.searchsorted(reached, wanted)) + 1].tolist()


class FrameSample:
    """Frames in a file that grows, with a note of how far it has come beside it.

    Args:
        folder: of both files; made where it is missing.
        about: all that the frames depend on; a sample of anything else is begun anew.
        width: D.
    """

    def __init__(self, folder: Path, about: dict, width: int):
        self.folder, self.about, self.width = folder, about, width
        self.path, self.note = folder / "frames.f32", folder / "progress.json"

    def fill(self, utterances: Sequence[Utterance], states_of: Callable[[Utterance], Tensor]) -> np.ndarray:
        """The frames of all ``utterances``, those that are there already not computed again.

        Returns:
            F x D, float32, mapped from the file.

        Raises:
            StarError: the folder cannot be written to, or an audio file not be read.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            done, num_bytes = self._progress()
            with open(self.path, "r+b" if self.path.exists() else "w+b") as file:
                file.truncate(num_bytes)  # what was written after the last note
                file.seek(num_bytes)
                bar = tqdm(utterances[done:], "taking frames", len(utterances), unit="utt", initial=done, disable=None)
                for number, utterance in enumerate(bar, start=done + 1):
                    file.write(states_of(utterance).float().cpu().contiguous().numpy().tobytes())
                    if number % SAVE_EVERY == 0 or number == len(utterances):
                        file.flush()
                        os.fsync(file.fileno())
                        self._write_progress(number, file.tell())
        except OSError as error:
            raise StarError(
                f"--out: {self.folder} cannot be written to ({error.strerror}); make room, or lower --frames"
            ) from error
        return np.memmap(self.path, np.float32, mode="r").reshape(-1, self.width)

    def _progress(self) -> tuple[int, int]:
        """Utterances and bytes that are there; none where they are of anything else."""
        try:
            noted = json.loads(self.note.read_text(encoding="utf-8"))
            if noted["about"] == self.about and self.path.stat().st_size >= noted["bytes"]:
                return noted["utterances"], noted["bytes"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return 0, 0

    def _write_progress(self, utterances: int, num_bytes: int) -> None:
        with replacing(self.note) as temporary:
            temporary.write_text(json.dumps({"about": self.about, "utterances": utterances, "bytes": num_bytes}))

    def remove(self) -> None:
        """Delete both files, and the folder."""
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)
        self.folder.rmdir()
