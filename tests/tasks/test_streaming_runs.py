"""fairseq's trainer on a streaming student: from a recipe, resumed bit for bit, read again as what it is."""

import re
import shutil

import pytest
import torch

from fairseq_star.deploy.targets import load_target
from fairseq_star.errors import StarError
from fairseq_star.formats import export, load_student
from fairseq_star.runtime.names import TARGETS
from tests.support.runs import saved

STREAM = ("model._name=starhubert_stream", "model.left_context_frames=6")


def test_a_run_resumes_bit_for_bit_and_is_read_as_it_was_trained(train, tmp_path):
    saving = ("checkpoint.save_interval_updates=2", "checkpoint.keep_interval_updates=-1")
    whole = train(*STREAM, *saving, save_dir=tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    (tmp_path / "part").mkdir()
    shutil.copy(tmp_path / "whole" / "checkpoint_1_2.pt", tmp_path / "part" / "checkpoint_last.pt")
    part = train(*STREAM, *saving, save_dir=tmp_path / "part")
    assert part.returncode == 0, part.stderr
    assert "Loaded checkpoint" in part.stdout
    one, other = (saved(tmp_path / name / "checkpoint_last.pt") for name in ("whole", "part"))
    assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])
    assert len(re.findall(r" loss=([0-9.]+)", whole.stdout)) >= 6

    student = load_student(tmp_path / "whole" / "checkpoint_last.pt")
    config = student.config
    assert (config.chunk_frames, config.left_context_frames, config.right_context_frames) == ((16, 4, 8, 32, 0), 6, 0)
    audio = [torch.randn(9_000)]
    [in_use] = student.hidden_states(audio, 16_000)
    student.use_chunks(0)
    [at_once] = student.hidden_states(audio, 16_000)
    assert (in_use[-1] - at_once[-1]).abs().max() > 1e-4
    with pytest.raises(StarError, match="chunks of -1 frames cannot be"):
        student.use_chunks(-1)
    for name in TARGETS:
        if not load_target(name).streams:
            with pytest.raises(StarError, match="can hold chunked attention or a running norm"):
                export(student, load_target(name)(), tmp_path / "out")

    another = train(*STREAM, "model.chunk_frames=[16]", save_dir=tmp_path / "part")
    assert another.returncode == 1
    assert "of another student, with model.chunk_frames=[16, 4, 8, 32, 0] (now [16])" in another.stderr
