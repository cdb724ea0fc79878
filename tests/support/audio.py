"""Audio files of noise, of any rate and number of channels."""

from pathlib import Path

import numpy as np
import soundfile


def write_audio(path: Path, num_samples: int = 1600, rate: int = 16_000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(num_samples).uniform(-0.5, 0.5, (num_samples, channels))
    soundfile.write(path, noise, rate, subtype="PCM_16")
    return path
