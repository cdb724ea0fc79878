"""The benchmark of attention in ONNX files: every way writes a file that says the same, and has its row."""

import pytest

from benchmarks import onnx_attention
from benchmarks.models import QUICK_STUDENT, write_student


@pytest.mark.slow
def test_each_way_has_a_row(tmp_path, capsys):
    checkpoint = write_student(tmp_path / "student.pt", **QUICK_STUDENT)
    options = ["--seconds", "1", "--threads", "1", "--rounds", "1", "--out", str(tmp_path)]
    onnx_attention.main(["--checkpoint", str(checkpoint), *options])
    told = capsys.readouterr().out
    for weights in ("float32", "int8"):
        for way in onnx_attention.WAYS:
            assert f"| 1 s | 1 | {weights} | {way} | " in told
    assert len(list(tmp_path.glob("onnx-attention-*"))) == 2
