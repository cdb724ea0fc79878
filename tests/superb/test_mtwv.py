import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.errors import StarError
from fairseq_star.superb import scorers

DOCUMENTS = ["a", "b", "c", "d"]
SCORES = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3"]),
    st.fixed_dictionaries({name: st.sampled_from([-1.0, 0.0, 0.5, 2.0]) for name in DOCUMENTS}),
    min_size=1,
)
TRUTH = st.fixed_dictionaries({f"q{number}": st.sets(st.sampled_from(DOCUMENTS), max_size=3) for number in (1, 2, 3)})


@settings(max_examples=200, deadline=None)
@given(SCORES, TRUTH)
def test_best_of_all_thresholds(scores, truth):
    if not any(truth.get(query) for query in scores):
        with pytest.raises(StarError, match="no query"):
            scorers.best_twv(scores, truth)
        return
    thresholds = {value for documents in scores.values() for value in documents.values()} | {99.0}
    slow = max(scorers.twv(scores, truth, threshold) for threshold in thresholds)
    assert scorers.best_twv(scores, truth) == pytest.approx(slow, abs=1e-12)


def test_ends():
    truth = {"q": {"a"}}
    assert scorers.best_twv({"q": {"a": 2.0, "b": 1.0}}, truth) == 1
    assert scorers.best_twv({"q": {"a": 1.0, "b": 2.0}}, truth) == 0  # one false alarm costs more than the hit brings
    assert pytest.approx(12.49) == scorers.BETA


def test_files(tmp_path):
    (tmp_path / "found.xml").write_text(
        '<stdlist><detected_termlist termid="q"><term file="a" score="1.5"/><term file="b" score="-2"/>'
        "</detected_termlist></stdlist>"
    )
    (tmp_path / "truth.rttm").write_text("SPEAKER a\nLEXEME a 1 0.0 1.0 q lex <NA> <NA>\n")
    assert scorers.maximum_twv(tmp_path / "found.xml", tmp_path / "truth.rttm") == 1
    (tmp_path / "truth.rttm").write_text("LEXEME a 1\n")
    with pytest.raises(StarError, match=r"truth\.rttm:1: expected LEXEME"):
        scorers.read_truth(tmp_path / "truth.rttm")
    (tmp_path / "found.xml").write_text("<stdlist>")
    with pytest.raises(StarError, match="evaluate again"):
        scorers.read_detections(tmp_path / "found.xml")
