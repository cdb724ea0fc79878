"""s3prl's own ``run_downstream.py``, unchanged, beside newer libraries than it was written for.

    python benchmarks/run_s3prl.py -m train -u wav2vec2_local -k student.pt -d speech_commands -c config.yaml ...

s3prl imports names that newer releases of its dependencies no longer have: ``HfFolder`` and ``Repository`` of
huggingface_hub (gone in 1.0, used for uploads alone), ``torchaudio.sox_effects`` (gone in 2.9, and before it of no use
where the system has no sox), and one class of catalyst, of use with several processes alone: current pips refuse every
release of it that current Pythons can import. Here they are put in their place before it starts, and torch is told that
the options s3prl keeps in its checkpoints are harmless. Where the libraries still have them theirs are used, and
``python run_downstream.py`` of a clone does the same.
"""

import argparse
import ctypes
import importlib.util
import sys
import types
from pathlib import Path

import huggingface_hub
import numpy as np
import soundfile
import torch

# By its place: of the plugin no more is needed here, and s3prl's environment may have no fairseq.
_spec = importlib.util.spec_from_file_location(
    "torchaudio_import", Path(__file__).resolve().parents[1] / "fairseq_star" / "audio" / "torchaudio_import.py"
)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
torchaudio = _module.import_torchaudio()


def apply_effects_file(path: str, effects: list[list[str]]) -> tuple[torch.Tensor, int]:
    """What sox makes of a mono file by the effects that ``speech_commands`` asks for: a channel, its own rate, a gain.

    Raises:
        ValueError: any other effect, or a file that would need resampling or mixing.
    """
    samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    for effect in effects:
        match effect:
            case ["channels", "1"] if samples.shape[1] == 1:
                pass
            case ["rate", rate] if int(rate) == sample_rate:
                pass
            case ["gain", decibel]:
                samples = np.clip(samples * np.float32(10 ** (float(decibel) / 20)), -1, 1)
            case _:
                raise ValueError(f"{path}: the effect {effect} is not there without sox")
    return torch.from_numpy(samples.T), sample_rate


def _missing(module: str) -> bool:
    return module not in sys.modules and importlib.util.find_spec(module) is None


def _has_sox() -> bool:
    try:
        ctypes.CDLL("libsox.so")  # as torchaudio loads it
    except OSError:
        return False
    return True


class DistributedSamplerWrapper:
    """catalyst's name, for runs of one process, which never make one."""

    def __init__(self, sampler: object):
        raise NotImplementedError("s3prl needs catalyst to share a weighted sampler among processes; run one process")


def stand_in() -> None:
    """Put the missing names in their place, if they are missing."""
    for name in ("HfFolder", "Repository"):
        if not hasattr(huggingface_hub, name):
            setattr(huggingface_hub, name, type(name, (), {}))
    if _missing("torchaudio.sox_effects") or not _has_sox():
        torchaudio.sox_effects = types.ModuleType("torchaudio.sox_effects")
        torchaudio.sox_effects.apply_effects_file = apply_effects_file
        sys.modules["torchaudio.sox_effects"] = torchaudio.sox_effects
    if _missing("catalyst"):
        sampler = types.ModuleType("catalyst.data.sampler")
        sampler.DistributedSamplerWrapper = DistributedSamplerWrapper
        for name in ("catalyst", "catalyst.data"):
            sys.modules.setdefault(name, types.ModuleType(name))
        sys.modules[sampler.__name__] = sampler
    torch.serialization.add_safe_globals([argparse.Namespace])


if __name__ == "__main__":
    stand_in()
    from s3prl.run_downstream import main

    main()
