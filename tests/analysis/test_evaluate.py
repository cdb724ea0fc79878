"""``fairseq-star evaluate``: what the trainer logged, and the student the run began with."""

import re

import numpy as np
import pytest
import torch

from fairseq_star.analysis import runs
from fairseq_star.analysis.evaluate import evaluate
from fairseq_star.cli import main
from fairseq_star.losses.centroids import Centroids
from fairseq_star.teacher.provider import teacher_digest
from tests.support import tiny


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

    state = torch.load(tmp_path / "trained" / "checkpoint_last.pt", weights_only=True)
    for name, kept in {
        "averaged": {**state, "optimizer_history": [], "extra_state": None, "last_optimizer_state": None},
        "weights and config": {name: state[name] for name in ("cfg", "model")},
    }.items():
        torch.save(kept, tmp_path / f"{name}.pt")
        slim = evaluate(
            str(tmp_path / f"{name}.pt"), data=state["cfg"]["task"]["data"], teacher=state["cfg"]["task"]["teacher"]
        )
        assert (slim.after, slim.num_updates) == (result.after, 0)

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


def test_a_run_that_kept_a_compressed_cache_is_evaluated_without_it(train, tmp_path):
    cache = [
        f"task.teacher_cache={tmp_path / 'cache'}",
        "task.teacher_cache_compression=pca",
        "task.teacher_cache_dim=8",
    ]
    done = train(*cache)
    assert done.returncode == 0, done.stderr
    assert evaluate(str(tmp_path / "run" / "checkpoint_last.pt")).num_updates == 6


def test_a_streaming_student_is_evaluated_in_chunks(train, tmp_path, capsys):
    streaming = ["+model.chunk_frames=[4,0]", "+model.extractor_mode=running_norm"]
    assert train(*streaming).returncode == 0
    checkpoint = str(tmp_path / "run" / "checkpoint_last.pt")
    losses = {chunk: evaluate(checkpoint, chunk_frames=chunk).after["loss"] for chunk in (None, 4, 0)}
    assert losses[None] == losses[4] != losses[0]
    main(["evaluate", checkpoint, "--chunk-frames", "0"])
    assert f"{losses[0]:.4f}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="chunks of -1 frames cannot be"):
        main(["evaluate", checkpoint, "--chunk-frames", "-1"])


@pytest.fixture
def noisy(train, teacher_path, tmp_path):
    """A run with noise and two sets of units whose files lie in a folder ``scratch``."""
    scratch = tmp_path / "scratch"
    manifest = tiny.write_tsv(scratch / "noise.tsv", tiny.write_audio(scratch / "noise", [1.0], seed=7))
    files = [scratch / f"units{number}.npz" for number in (1, 2)]
    for number, file in enumerate(files, start=1):
        vectors = np.random.default_rng(number).standard_normal((5, 24)).astype(np.float32)
        Centroids(vectors, 2, teacher_digest(str(teacher_path))).write(file)
    done = train(
        f"task.noise_manifest={manifest}", f"criterion.units=[{files[0]},head,{files[1]}]", "task.mask_prob=0.5",
        "task.mask_length=2", "criterion.unit_weight=1.0", "optimization.max_update=3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return str(tmp_path / "run" / "checkpoint_last.pt"), scratch


def test_noise_and_units_that_are_elsewhere_are_named_or_left_out(noisy, tmp_path, caplog):
    checkpoint, scratch = noisy

    def warnings() -> list[str]:
        return [record.message for record in caplog.records if record.name == runs.__name__]

    expected = evaluate(checkpoint).after
    assert warnings() == []
    moved = scratch.rename(tmp_path / "moved")
    without = evaluate(checkpoint).after
    said = "\n".join(warnings())
    assert re.search(r"evaluate: task\.noise_manifest=\S+ .* is not there.*: measured without; --noise names", said)
    assert re.search(r"evaluate: criterion\.units: \S+units1\.npz .* is not there: losses are without units", said)
    assert len(warnings()) == 2
    assert without.keys() == expected.keys() - {"units", "unit_accuracy"}
    assert without["layerwise"] != expected["layerwise"], "noise matters"

    caplog.clear()
    tiny.write_tsv(moved / "noise.tsv", moved / "noise")
    units = [str(moved / f"units{number}.npz") for number in (1, 2)]
    assert evaluate(checkpoint, noise=str(moved / "noise.tsv"), units=units).after == expected
    assert warnings() == []
    for options, message in [
        (["--units", units[0]], "--units: the run has 2 files of units"),
        (["--noise", "nowhere.tsv"], "--noise nowhere.tsv is not there"),
        (["--units", units[0], str(moved / "noise.tsv")], "criterion.units: .*noise.tsv holds no centroids"),
    ]:
        with pytest.raises(SystemExit, match=message):
            main(["evaluate", checkpoint, *options])


def test_a_loss_of_units_alone_needs_its_units(noisy, tmp_path):
    checkpoint, scratch = noisy
    state = torch.load(checkpoint, weights_only=True)
    state["cfg"]["criterion"] |= {"layerwise_weight": 0.0, "intra_layer_weight": 0.0}
    torch.save(state, tmp_path / "units_alone.pt")
    scratch.rename(tmp_path / "gone")
    with pytest.raises(SystemExit, match="the loss consists of units alone; --units names the current places"):
        main(["evaluate", str(tmp_path / "units_alone.pt")])
