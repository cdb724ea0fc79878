"""torchaudio can be imported beside a torch that was built for another CUDA."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

IMPORT = """
import sys, torch
torch.version.cuda = sys.argv[1]
from fairseq_star.runtime.torchaudio_import import import_torchaudio
torchaudio = import_torchaudio()
assert torch.version.cuda == sys.argv[1]
import torchaudio as again
assert again is torchaudio
print(torchaudio.functional.resample(torch.ones(441), 44_100, 16_000).shape[0])
"""


# What releases of torchaudio say: 2.11.0 and older, 2.11.1.
MINOR = "Detected that PyTorch and TorchAudio were compiled with different CUDA versions. PyTorch has CUDA version 12.8"
MAJOR = MINOR.replace("CUDA versions", "CUDA major versions")
FAKE = """
import torch
if torch.version.cuda is not None:
    raise RuntimeError({message!r})
"""
FAKED = """
import sys, torch
sys.path.insert(0, sys.argv[1])
torch.version.cuda = "12.8"
from fairseq_star.runtime.torchaudio_import import import_torchaudio
print(import_torchaudio().__file__, torch.version.cuda)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )


def run_faked(folder: Path, message: str) -> subprocess.CompletedProcess:
    """Import a torchaudio that refuses any torch of CUDA with a message."""
    (folder / "torchaudio.py").write_text(FAKE.format(message=message))
    return run(FAKED, str(folder))


@pytest.mark.parametrize("cuda", ["99.9", "13.0"])
def test_any_torch_will_do(cuda):
    done = run(IMPORT, cuda)
    assert done.stdout.split() == ["160"], done.stderr


@pytest.mark.parametrize("message", [MINOR, MAJOR])
def test_releases_refuse_in_other_words(tmp_path, message):
    done = run_faked(tmp_path, message)
    assert done.stdout.split() == [str(tmp_path / "torchaudio.py"), "12.8"], done.stderr


def test_another_fault_of_cuda_is_told(tmp_path):
    done = run_faked(tmp_path, "CUDA driver version is insufficient for CUDA runtime version")
    assert done.returncode
    assert "insufficient" in done.stderr


def test_what_is_really_broken_is_told():
    broken = "import sys; sys.modules['torchaudio._extension'] = None\n" + IMPORT
    done = run(broken, "13.0")
    assert done.returncode
    assert "torchaudio._extension" in done.stderr
