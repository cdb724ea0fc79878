"""The benchmark of units runs, and finds more phones in tones' clusters than chance would."""

import pytest

from benchmarks import units
from fairseq_star.errors import StarError
from tests.support import labelled


@pytest.mark.slow
def test_a_smoke_run_writes_no_result(tmp_path, capsys):
    corpus = labelled.write_labelled(tmp_path / "corpus")
    units.main(["--data", str(corpus), "--clusters", "6", "--quick", "--out", str(tmp_path / "results")])
    told = capsys.readouterr().out
    assert f"| {units.MFCC} | " in told
    assert "| layer 6 | " in told
    assert "k-means of 20,000 frames" in told
    assert not (tmp_path / "results").exists()


def test_a_missing_corpus_is_told(tmp_path):
    with pytest.raises(StarError, match="make the demo corpus"):
        units.main(["--data", str(tmp_path)])
