"""s3prl's own ``run_downstream.py``, unchanged, with substitutes for libraries that are missing.

    python fairseq_star/superb/programs/launch.py -m train -u wav2vec2_local -k student.pt -d speech_commands ...

It runs by path in s3prl's environment, which need not have this package or fairseq, substitutes what s3prl imports or
calls and does not find, and starts s3prl. A substitute that could change a number is printed on standard error at its
first use (``stand-in: ...``). With nothing missing, ``python run_downstream.py`` of a clone does the same.

* ``HfFolder``, ``Repository`` of huggingface_hub: removed in 1.0, used for uploads alone.
* ``torchaudio.sox_effects``: removed in 2.9, and before it unusable without the system's libsox.
* ``torchaudio.set_audio_backend``: removed in 2.9; a choice between readers that no longer exists.
* ``catalyst``, ``sox``: imported by tasks that use neither in a run of one process. Current pips refuse every release
  of catalyst that current Pythons can import.
* ``Tensor.cuda()``, which speaker verification calls whatever the device: without a GPU it leaves a tensor as it is.

``argparse.Namespace`` is declared harmless to torch, as s3prl keeps its options in checkpoints.

``--features FOLDER BYTES`` before s3prl's options stores the upstream's features, see ``features.py``;
``--only-repeated`` those that are computed twice.
"""

import argparse
import ctypes
import importlib
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

import huggingface_hub
import numpy as np
import soundfile
import torch


def _load(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


torchaudio = _load(Path(__file__).resolve().parents[2] / "runtime" / "torchaudio_import.py").import_torchaudio()

SILENCE = ["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"]  # speaker verification's
_reported: set[str] = set()  # a plain set, as joblib passes this file's functions to its workers by value


def apply_effects_file(path: str, effects: list[list[str]]) -> tuple[torch.Tensor, int]:
    """Apply the sox effects of SUPERB's tasks to a mono file.

    They are a channel, a rate (by torchaudio's resampling), a gain, and the removal of silence: 0.1 s or more below a
    thousandth of full scale, measured in windows of 20 ms as sox does.

    Returns:
        float32 samples, 1 x num_samples, and their rate.

    Raises:
        ValueError: any other effect, or a file that would need mixing.
    """
    _report("sox's effects, as the system has no libsox")
    samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    for effect in effects:
        match effect:
            case ["channels", "1"] if samples.shape[1] == 1:
                pass
            case ["rate", rate]:
                if int(rate) != sample_rate:
                    signal_ = torch.from_numpy(samples.T)
                    samples = torchaudio.functional.resample(signal_, sample_rate, int(rate)).numpy().T
                    sample_rate = int(rate)
            case ["gain", decibel]:
                samples = np.clip(samples * np.float32(10 ** (float(decibel) / 20)), -1, 1)
            case _ if effect == SILENCE:
                samples = _without_silence(samples, sample_rate)
            case _:
                raise ValueError(f"{path}: the effect {effect} is not there without sox")
    return torch.from_numpy(np.ascontiguousarray(samples.T)), sample_rate


def _without_silence(samples: np.ndarray, sample_rate: int, threshold: float = 1e-3, seconds: float = 0.1):
    """``samples`` (num_samples x 1) without runs of quiet windows that last ``seconds`` or longer."""
    window = sample_rate // 50
    num_windows = -(-len(samples) // window)
    padded = np.zeros(num_windows * window, np.float32)
    padded[: len(samples)] = samples[:, 0]
    quiet = np.sqrt((padded.reshape(num_windows, window) ** 2).mean(1)) < threshold
    edges = np.flatnonzero(np.diff(np.concatenate([[0], quiet.astype(int), [0]])))
    keep = np.ones(num_windows, bool)
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        if (last - first) * window >= seconds * sample_rate:
            keep[first:last] = False
    kept = np.repeat(keep, window)[: len(samples)]
    return samples[kept] if kept.any() else samples


def _report(what: str) -> None:
    if what not in _reported:
        _reported.add(what)
        print(f"\nstand-in: {what}", file=sys.stderr, flush=True)  # on a line of its own, after a progress bar


def _stay(tensor: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    _report("Tensor.cuda(), which leaves tensors on the CPU")
    return tensor


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


class Transformer:
    """The Python wrapper of sox's name, which ``sv_voxceleb1`` imports and does not use."""


def _module_with(name: str, **attributes: object) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)  # importlib.util.find_spec reads it
    module.__dict__.update(attributes)
    sys.modules[name] = module
    return module


def stand_in() -> None:
    """Substitute the missing names."""
    for name in ("HfFolder", "Repository"):
        if not hasattr(huggingface_hub, name):
            setattr(huggingface_hub, name, type(name, (), {}))
    if not hasattr(torchaudio, "set_audio_backend"):
        torchaudio.set_audio_backend = lambda backend: None
    if _missing("torchaudio.sox_effects"):
        torchaudio.sox_effects = _module_with("torchaudio.sox_effects", apply_effects_tensor=None)
    if torchaudio.sox_effects.apply_effects_tensor is None or not _has_sox():
        importlib.import_module("torchaudio.sox_effects").apply_effects_file = apply_effects_file
    if _missing("catalyst"):
        for name in ("catalyst", "catalyst.data"):
            _module_with(name)
        _module_with("catalyst.data.sampler", DistributedSamplerWrapper=DistributedSamplerWrapper)
    if _missing("sox"):
        _module_with("sox", Transformer=Transformer)
    if not torch.cuda.is_available():
        torch.Tensor.cuda = _stay
    torch.serialization.add_safe_globals([argparse.Namespace])


def store_features(arguments: list[str]) -> list[str]:
    """Do as ``--features`` says and return the other arguments."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--features", nargs=2, metavar=("FOLDER", "BYTES"))
    parser.add_argument("--only-repeated", action="store_true")
    own, others = parser.parse_known_args(arguments)
    if own.features:
        from s3prl import hub

        folder, limit = own.features
        features = _load(Path(__file__).with_name("features.py"))
        features.store_features(hub, Path(folder), int(limit), only_repeated=own.only_repeated)
    return others


if __name__ == "__main__":
    stand_in()
    sys.argv[1:] = store_features(sys.argv[1:])
    from s3prl.run_downstream import main

    main()
