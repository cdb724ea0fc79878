"""The benchmark of long manifests, run on short ones: every way counts every entry, and the report is written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_all_ways_are_measured(tmp_path):
    command = [sys.executable, "-m", "benchmarks.manifests", "--entries", "2000", "--scratch", str(tmp_path)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "results")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (report,) = (tmp_path / "results").glob("*.json")
    rows = {row["way"]: row for row in json.loads(report.read_text())["rows"]}
    assert {way: row["entries"] for way, row in rows.items()} == {
        "table": 1960, "folder": 2000, "check": 1980, "dataset": 1980,
    }  # fmt: skip
    assert all(100 < row["peak_mib"] < 1024 for row in rows.values())
    assert [path.name for path in tmp_path.iterdir()] == ["results"]  # the links are gone
