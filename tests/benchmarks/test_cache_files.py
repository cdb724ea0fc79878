"""The benchmark of a cache's files: both ways give every entry, and a row each."""

import json

from benchmarks import cache_files


def test_both_ways_are_read_and_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache_files, "FORGET", tmp_path / "not root")
    monkeypatch.setattr(cache_files, "SHARD", 2)
    cache_files.main(["--entries", "5", "--dim", "8", "--rounds", "1", "--readers", "1", "--out", str(tmp_path)])
    [numbers] = tmp_path.glob("cache-files-*.json")
    rows = json.loads(numbers.read_text())["rows"]
    assert [row["way"] for row in rows] == [cache_files.ONE_EACH, cache_files.LARGE]
    assert all(row["MB/s"] > 0 for row in rows)
    assert "5 utterances of 0.06 MB" in capsys.readouterr().out
