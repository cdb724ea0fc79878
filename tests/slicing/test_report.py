"""The lines of a run's log, and the record that a run keeps."""

import json
from dataclasses import replace

from fairseq_star.slicing.report import SlicingReport

REPORT = SlicingReport(
    utterances=64, seconds_of_audio=500.4, layers=[1, 2, 3], unexplained=[0.05, 0.1234, 0.2, 0.5], at_zero=[],
    left_out=[], scale=(0.5, 2.0), wall_seconds=12.3,
)  # fmt: skip


def test_lines_of_a_run():
    assert REPORT.lines() == [
        "first weights sliced from the teacher's layers 1 to 3 with 64 utterances (500 s of audio) in 12 s",
        "unexplained variance of the kept channels, by state: 0: 5.0%, 1: 12.3%, 2: 20.0%, 3: 50.0%",
        "sliced: convolutions, projection, positional convolution, attention, feed-forward parts and norms; all of it",
    ]


def test_what_was_not_sliced_the_loss_and_what_was_skipped_are_told():
    report = replace(
        REPORT, layers=[2, 4], at_zero=["positional convolution (a stack)"], left_out=["relative position bias"],
        loss=1234.56, loss_of_zero=9876.5, held_out=16, skipped=["a.wav: is silent", "b.wav: is silent"],
    )  # fmt: skip
    lines = report.lines()
    assert "layers 2, 4 with" in lines[0]
    assert lines[2].endswith(
        "; not sliced: positional convolution (a stack), which begins at zero; relative position bias of the teacher, "
        "which the student does not have"
    )
    assert lines[3] == (
        "loss before the first update: 1,234.6 on 16 utterances of the validation set (a student of zeros: 9,876.5)"
    )
    assert lines[4] == "not used to slice: a.wav: is silent and 1 more"
    assert replace(report, skipped=report.skipped[:1]).lines()[4] == "not used to slice: a.wav: is silent"


def test_the_record_comes_back_as_it_was():
    report = replace(REPORT, loss=1.0, loss_of_zero=2.0, held_out=3, skipped=["a: b"])
    assert SlicingReport.from_dict(report.to_dict()) == report
    assert SlicingReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_a_student_worse_than_none_is_warned_of():
    values = {
        "utterances": 1, "seconds_of_audio": 3.0, "layers": [1, 2], "unexplained": [0.1, 0.2, 0.3], "at_zero": [],
        "left_out": [], "scale": (0.9, 1.2), "wall_seconds": 1.0, "loss_of_zero": 100.0, "held_out": 2,
    }  # fmt: skip
    assert not any("warning" in line for line in SlicingReport(**values, loss=99.0).lines())
    [warning] = [line for line in SlicingReport(**values, loss=101.0).lines() if line.startswith("warning")]
    assert "1 utterances" in warning
