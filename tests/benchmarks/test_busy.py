"""The benchmark of a busy machine; and what it promises, where the machine has nothing else to do."""

import subprocess
import sys

import psutil
import pytest

from benchmarks import busy
from tests.support import ROOT


def test_every_way_runs_and_is_told(monkeypatch, tmp_path, capsys):
    seen = []

    def train(way, corpus, updates):
        seen.append((way, len(psutil.Process().children())))
        return 10.0 + len(seen), 1000.0

    monkeypatch.setattr(busy, "train", train)
    busy.main(["--rounds", "1", "--out", str(tmp_path)])
    assert [way for way, _ in seen] == [*busy.WAYS] * 2
    beside = [children for _, children in seen]
    assert {after - before for before, after in zip(beside[:3], beside[3:], strict=True)} == {psutil.cpu_count()}
    assert "| fairseq-star | 11.0 | 14.0 | 1.27 | 1000 |" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
@pytest.mark.skipif((psutil.cpu_count() or 1) < 2, reason="one core has no threads that wait")
def test_neighbours_take_their_share_and_no_more(tmp_path):
    pytest.importorskip("espeakng_loader")
    corpus = tmp_path / "corpus"
    subprocess.run([sys.executable, ROOT / "manifests" / "demo" / "corpus.py", corpus, "--minutes", "10"], check=True)
    row = busy.measure(corpus, updates=30, rounds=1, ways=[busy.PLUGIN])[busy.PLUGIN]
    assert row["busy_to_idle"] < 2.2
    assert row["peak_mib"] < 2000
