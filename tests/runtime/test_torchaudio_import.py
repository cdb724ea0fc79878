"""torchaudio can be imported beside a torch that was built for another CUDA."""

import subprocess
import sys

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


def run(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize("cuda", ["99.9", "13.0"])
def test_any_torch_will_do(cuda):
    done = run(IMPORT, cuda)
    assert done.stdout.split() == ["160"], done.stderr


def test_what_is_really_broken_is_told():
    broken = "import sys; sys.modules['torchaudio._extension'] = None\n" + IMPORT
    done = run(broken, "13.0")
    assert done.returncode
    assert "torchaudio._extension" in done.stderr
