"""``fairseq-star evaluate``: what the trainer logged, and the student the run began with."""

import re

import pytest
import torch

from fairseq_star.cli import main
from fairseq_star.evaluation.evaluate import evaluate


def logged_losses(stdout: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"valid on 'valid' subset \| loss ([\d.]+)", stdout)]


def test_before_is_the_start_of_the_run_and_after_its_end(train, tmp_path, capsys):
    still = train("optimization.max_update=1", "optimization.lr=[0.0]", save_dir=tmp_path / "still")
    trained = train("optimization.max_update=20", "optimization.lr=[0.01]", save_dir=tmp_path / "trained")
    assert still.returncode == trained.returncode == 0, still.stderr + trained.stderr

    result = evaluate(str(tmp_path / "trained" / "checkpoint_last.pt"))
    assert result.before["loss"] == pytest.approx(logged_losses(still.stdout)[-1], rel=1e-3)
    assert result.after["loss"] == pytest.approx(logged_losses(trained.stdout)[-1], rel=1e-3)
    assert result.after["loss"] < result.before["loss"]
    for losses in (result.before, result.after):
        assert losses["loss"] == pytest.approx(losses["layerwise"] + losses["intra_layer"], rel=1e-5)
    assert (result.num_updates, result.num_utterances) == (20, 3)

    main(["evaluate", str(tmp_path / "trained" / "checkpoint_last.pt")])
    shown = capsys.readouterr().out
    assert f"{result.student_parameters:,} parameters" in shown
    assert f"{result.after['layerwise']:.4f}" in shown


@pytest.mark.parametrize(
    ("content", "message"), [(None, "is not there"), ({"model": {}}, "not written by a star_distillation run")]
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "x.pt"
    if content is not None:
        torch.save(content, path)
    with pytest.raises(SystemExit, match=message):
        main(["evaluate", str(path)])
