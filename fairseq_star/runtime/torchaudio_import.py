"""Import torchaudio next to any torch, also where it refuses the combination."""

import importlib
import re
import sys
from types import ModuleType

import torch


def import_torchaudio() -> ModuleType:
    """Import torchaudio for this whole process, so that ``import torchaudio`` works in other libraries as well.

    torchaudio refuses to be imported where torch was built for another version of CUDA, up to 2.11.0 also for another
    minor version, as what ``pip install torch torchaudio`` gives from torch 2.15 on, since 2.11.1 for another major one
    (torchaudio/_extension/utils.py, ``_check_cuda_version``).
    That could matter to its own CUDA kernels alone (forced alignment, RNN-T loss), which nothing here uses. So where it
    refuses for that reason, the import is repeated as if torch had no CUDA.

    Raises:
        ImportError, OSError, RuntimeError: it is missing, or broken in any other way.
    """
    try:
        return importlib.import_module("torchaudio")
    except RuntimeError as error:
        if not re.search(r"different CUDA\b.*\bversions", str(error)):
            raise
    for name in [name for name in sys.modules if name.startswith("torchaudio.")]:
        del sys.modules[name]  # left over from the failed import; older releases fail on them
    cuda = torch.version.cuda
    torch.version.cuda = None
    try:
        return importlib.import_module("torchaudio")
    finally:
        torch.version.cuda = cuda
