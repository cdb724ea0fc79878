"""The benchmark of the whole step at tiny sizes: it runs, compares all ways, and says what it did."""

import os
import re
import subprocess
import sys

import pytest

from tests.support import ROOT


@pytest.mark.slow
def test_step_smoke(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.step", "--quick", "--threads", "1", "--out", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    losses = dict(
        re.findall(
            r"^\| (naive|naive, host settled|fast|cached|cached, pca) \|.*\| ([\d.]+) \|$", finished.stdout, re.M
        )
    )
    assert len(losses) == 5
    assert losses["fast"] == losses["naive"]
    assert "| `aten::convolution_backward` |" in finished.stdout
    assert not list(tmp_path.iterdir())  # tiny sizes are no result
