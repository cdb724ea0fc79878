"""What an environment has, as JSON: ``look.py MODULE ...`` also tells which of these modules it lacks."""

import importlib.metadata
import importlib.util
import json
import sys

import torch

LIBRARIES = ("torch", "torchaudio", "espnet-s3prl", "s3prl", "huggingface_hub")


def main(modules: list[str]) -> None:
    """Print it."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    s3prl = importlib.util.find_spec("s3prl")
    found = {
        "versions": {"Python": sys.version.split()[0], **versions},
        "missing": [name for name in modules if importlib.util.find_spec(name) is None],
        "package": s3prl and next(iter(s3prl.submodule_search_locations)),
        "cuda": torch.cuda.is_available(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
