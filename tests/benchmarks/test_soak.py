"""The soak benchmark for a moment."""

import sys

import pytest

from tests.support import tiny


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_soak_smoke(tmp_path, teacher_path, monkeypatch):
    """``benchmarks/soak.py`` for a moment: it runs, stops the run by SIGTERM, and writes a table and a picture."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    from benchmarks import soak

    tiny.write_corpus(tmp_path / "corpus", train=8, valid=2)
    student = [f"model.{name}={value!r}" for name, value in tiny.STUDENT.items() if name != "encoder_layers"]
    arguments = [
        str(tmp_path / "corpus"), "--minutes", "0.05", "--teacher", str(teacher_path), "--out", str(tmp_path / "out"),
        "--config-name", "starhubert_100h", "model.encoder_layers=3", "optimization.update_freq=[1]", *student,
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["soak.py", *arguments])
    soak.main()
    [table] = (tmp_path / "out").glob("soak-*.md")
    text = table.read_text()
    for row in ("resident memory, trainer", "open descriptors", "updates a second"):
        assert row in text
    assert (tmp_path / "out" / f"{table.stem}.png").stat().st_size > 1000 or "matplotlib" not in sys.modules
