"""``environment.py MODULE ...``: print libraries of an environment as JSON, and which of these modules it lacks."""

import ctypes
import importlib.metadata
import importlib.util
import json
import sys

import torch

LIBRARIES = ("torch", "torchaudio", "espnet-s3prl", "s3prl", "huggingface_hub")


def has(module: str) -> bool:
    """Return True where a module can be imported; its parents are imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def has_sox() -> bool:
    """Return True where the system has the library that torchaudio loads for sox's effects."""
    try:
        ctypes.CDLL("libsox.so")
    except OSError:
        return False
    return True


def main(modules: list[str]) -> None:
    """Print versions, missing modules, s3prl's folder, and the presence of a GPU and of sox."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    s3prl = importlib.util.find_spec("s3prl")
    found = {
        "versions": {"Python": sys.version.split()[0], **versions},
        "missing": [name for name in modules if not has(name)],
        "package": s3prl and next(iter(s3prl.submodule_search_locations)),
        "cuda": torch.cuda.is_available(),
        "sox": has_sox(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
