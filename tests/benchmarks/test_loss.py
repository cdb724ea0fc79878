"""The loss benchmark runs, compares equal numbers and writes what it says."""

import json
import subprocess
import sys

import pytest

from tests.support import ROOT


@pytest.mark.slow
def test_quick_run_writes_table_numbers_and_picture(tmp_path):
    command = [sys.executable, "-m", "benchmarks.loss", "--quick", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (numbers,) = tmp_path.glob("loss-*-quick.json")
    content = json.loads(numbers.read_text())
    assert {"date", "commit", "hardware", "versions", "command"} <= content["made_with"].keys()
    assert [row["frames"] for row in content["rows"]] == [40, 90]
    for row in content["rows"]:
        assert all(row[way]["median_ms"] > 0 for way in ("naive", "auto", "gram", "tiled", "recompute"))
    assert content["rows"][1]["memory_mib"]["naive"] >= 0
    table = numbers.with_suffix(".md").read_text()
    assert content["made_with"]["hardware"] in table
    assert len([line for line in table.splitlines() if line.startswith("| ")]) == 1 + len(content["rows"])


def test_cpu_clock_with_more_threads_is_refused(tmp_path):
    command = [sys.executable, "-m", "benchmarks.loss", "--clock", "cpu", "--threads", "2", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "--threads 1" in result.stderr
