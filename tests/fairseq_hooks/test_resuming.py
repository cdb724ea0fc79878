"""Whether a run may go on from a checkpoint: its own, however old; not another student's, teacher's or loss's."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fairseq_star.analysis.runs import locate
from fairseq_star.cli import main
from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks.preflight import Start
from fairseq_star.fairseq_hooks.resuming import TEACHER, check_start
from fairseq_star.losses.centroids import Centroids
from tests.support import runs, tiny
from tests.support.runs import saved, start_workers
from tests.support.steps import build


def trainer_of(task, student, criterion, **model: object) -> SimpleNamespace:
    options = {"_name": "starhubert", **tiny.STUDENT, **tiny.NO_DROPOUT, **model}
    return SimpleNamespace(
        cfg=OmegaConf.create({"model": options}), task=task,
        get_model=lambda: student, get_criterion=lambda: criterion,
    )  # fmt: skip


@pytest.fixture
def trainer(corpus, teacher_path) -> SimpleNamespace:
    return trainer_of(*build(corpus, teacher_path))


def checkpoint_of(trainer: SimpleNamespace, path: Path, **changes: object) -> Path:
    """As fairseq's trainer would save it."""
    state = {
        "cfg": OmegaConf.to_container(trainer.cfg),
        "model": trainer.get_model().state_dict(),
        "criterion": trainer.get_criterion().state_dict() or None,
        "optimizer_history": [{"num_updates": 3}],
        "last_optimizer_state": {"state": {0: {}}},
        "extra_state": {},
        "task_state": trainer.task.state_dict(),
    }
    torch.save({**state, **changes}, path)
    return path


def start(path: Path, weights_alone: bool = False) -> Start:
    return Start(str(path), "checkpoint.save_dir", weights_alone)


def refused(trainer: SimpleNamespace, path: Path, message: str, **options: bool) -> None:
    with pytest.raises(StarError, match=message) as error:
        check_start(start(path, **options), trainer)
    assert str(error.value).startswith(f"checkpoint.save_dir: {path} ")
    assert "\n" not in str(error.value)


def test_a_runs_own_checkpoint_and_one_from_before_the_record(trainer, tmp_path):
    check_start(start(checkpoint_of(trainer, tmp_path / "own.pt")), trainer)
    old = {name: value for name, value in trainer.task.state_dict().items() if name != TEACHER}
    check_start(start(checkpoint_of(trainer, tmp_path / "old.pt", task_state=old)), trainer)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("encoder_embed_dim", 32),
        ("encoder_ffn_embed_dim", 64),
        ("encoder_layers", 1),
        # These have the same weights: fairseq would go on with another student.
        ("encoder_attention_heads", 4),
        ("activation_fn", "relu"),
        ("layer_norm_first", True),
        ("conv_feature_layers", "[(8,10,5)] + [(8,1,1)] + [(8,3,2)]*4 + [(D,1,1)] + [(D,2,1)]*2"),
    ],
)
def test_another_architecture_is_named_by_its_option(option, value, trainer, tmp_path):
    path = checkpoint_of(trainer, tmp_path / "t.pt")
    now = trainer_of(trainer.task, trainer.get_model(), trainer.get_criterion(), **{option: value})
    told = ".*" if option == "conv_feature_layers" else f"{tiny.STUDENT.get(option, '(gelu|False)')} \\(now {value}\\)"
    refused(now, path, rf"of another student, with model\.{option}={told}.* name another checkpoint\.save_dir")
    refused(now, path, rf"model\.{option}=", weights_alone=True)


def test_what_does_not_shape_the_student_may_change(trainer, tmp_path):
    path = checkpoint_of(trainer, tmp_path / "t.pt")
    same = "[(8, 10, 5)] + [(8, 1, 1)] + [(8, 3, 2)] * 4 + [(16, 1, 1)] + [(16, 2, 2)] * 2"
    options = {"dropout": 0.3, "checkpoint_activations": True, "conv_feature_layers": same}
    check_start(start(path), trainer_of(trainer.task, trainer.get_model(), trainer.get_criterion(), **options))


def test_another_teacher_is_refused_and_the_same_is_known_by_its_content(trainer, corpus, teacher_path, tmp_path):
    path = checkpoint_of(trainer, tmp_path / "t.pt")
    (tmp_path / "moved.pt").write_bytes(teacher_path.read_bytes())
    check_start(start(path), trainer_of(*build(corpus, tmp_path / "moved.pt")))
    torch.save(tiny.hubert_state(seed=1), tmp_path / "other.pt")
    other = trainer_of(*build(corpus, tmp_path / "other.pt"))
    refused(other, path, rf"another teacher than task\.teacher={tmp_path}/other\.pt .*checkpoint\.reset_optimizer=true")
    check_start(start(path, weights_alone=True), other)


FOREIGN = {
    "a teacher": (lambda trainer, path: torch.save(tiny.hubert_state(), path), "no student of this project"),
    "no config": (lambda trainer, path: torch.save({"model": {}}, path), "no student of this project"),
    "no history": (lambda trainer, path: checkpoint_of(trainer, path, optimizer_history=[]), "lacks parts of a run"),
    "lost weights": (lambda trainer, path: checkpoint_of(trainer, path, model={}), "does not describe"),
    "no dict": (lambda trainer, path: checkpoint_of(trainer, path, model=[1], task_state=2), "does not describe"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_checkpoints(case, trainer, tmp_path):
    make, message = FOREIGN[case]
    make(trainer, tmp_path / "t.pt")
    refused(trainer, tmp_path / "t.pt", message)


@pytest.mark.parametrize("missing", [None, {}])
def test_no_run_goes_on_without_its_optimizer_state(missing, trainer, tmp_path):
    """fairseq would begin at update 0 and save over the good checkpoint."""
    path = checkpoint_of(trainer, tmp_path / "t.pt", last_optimizer_state=missing)
    refused(trainer, path, "no optimizer state.*checkpoint.finetune_from_model=")
    check_start(start(path, weights_alone=True), trainer)
    fresh = checkpoint_of(trainer, path, last_optimizer_state=missing, optimizer_history=[{"num_updates": 0}])
    check_start(start(fresh), trainer)  # an imported student: nothing to go on from, and nothing lost


def test_a_criterion_with_heads_needs_their_weights(trainer, tmp_path):
    path = checkpoint_of(trainer, tmp_path / "t.pt")
    heads = trainer_of(trainer.task, trainer.get_model(), torch.nn.Linear(2, 3))
    refused(heads, path, "has other heads than this run's criterion, or none")
    check_start(start(checkpoint_of(heads, tmp_path / "heads.pt")), heads)


def test_units_that_were_fitted_anew_under_the_same_name_are_refused(trainer, corpus, teacher_path, tmp_path):
    file = tmp_path / "units.npz"

    def on_units(seed: int) -> SimpleNamespace:
        vectors = np.random.default_rng(seed).standard_normal((5, 24)).astype(np.float32)
        Centroids(vectors, 2, trainer.task.state_dict()[TEACHER]).write(file)
        task, student, _ = build(corpus, teacher_path)
        loss = {"_name": "star_tgm", "units": [str(file)], "unit_unmasked_weight": 1.0}
        return trainer_of(task, student, task.build_criterion(OmegaConf.create(loss)))

    path = checkpoint_of(on_units(1), tmp_path / "t.pt")
    check_start(start(path), on_units(1))
    refused(on_units(2), path, "learned other units than those of criterion.units")
    check_start(start(path, weights_alone=True), on_units(2))


@pytest.mark.parametrize("name", ["data", "teacher"])
def test_a_run_is_rebuilt_from_another_folder(name, tmp_path, monkeypatch):
    """Relative paths are those of the folder it was started in, which the place of its checkpoint tells."""
    cfg = OmegaConf.create({"task": {name: "deep/er/x.pt"}, "checkpoint": {"save_dir": "some/run"}})
    last = tmp_path / "some" / "run" / "checkpoint_last.pt"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StarError, match=rf"evaluate: .*trained with task\.{name}=deep/er/x\.pt.*--{name}$"):
        locate(str(last), cfg, name, "evaluate")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "x.pt").touch()
    assert locate(str(last), cfg, name, "evaluate") == "deep/er/x.pt"
    monkeypatch.chdir("/")
    assert locate(str(last), cfg, name, "evaluate") == str(tmp_path / "deep" / "er" / "x.pt")
    for save_dir in ("elsewhere/run", str(last.parent)):
        cfg.checkpoint.save_dir = save_dir
        with pytest.raises(StarError, match=f"--{name}$"):
            locate(str(last), cfg, name, "evaluate")


@pytest.mark.parametrize("command", ["evaluate", "report", "probe"])
@pytest.mark.parametrize("lost", ["data", "teacher"])
def test_commands_say_how_to_name_what_is_elsewhere(command, lost, corpus, teacher_path, tmp_path):
    if command == "report":
        pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra [report])")
    task = {"_name": "star_distillation", "data": str(corpus), "teacher": str(teacher_path), lost: "left/be/hind"}
    best = tmp_path / "checkpoint_best.pt"
    torch.save({"cfg": {"task": task, "criterion": {"_name": "star_tgm"}}}, best)
    with pytest.raises(SystemExit, match=rf"{command}: .*task\.{lost}=left/be/hind, .* with --{lost}$"):
        main([command, str(tmp_path if command == "report" else best)])


def test_a_missing_restore_file_is_told_by_all_ranks_and_touches_nothing(corpus, teacher_path, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "checkpoint_best.pt").write_bytes(b"a week of work")
    options = ["checkpoint.restore_file=checkpoint_best.pt", "optimization.max_update=1"]
    workers = start_workers(run_dir, runs.hydra_arguments(corpus, teacher_path, run_dir, *options))
    for worker in workers:
        stdout, stderr = worker.communicate(timeout=120)
        assert worker.returncode == 1
        last_line = stderr.strip().splitlines()[-1]
        assert last_line.startswith("fairseq-star: checkpoint.restore_file: checkpoint_best.pt is not there")
        assert "Traceback" not in stderr
        assert "loading train data" not in stdout
    assert [path.name for path in run_dir.iterdir()] == ["checkpoint_best.pt"]
    assert (run_dir / "checkpoint_best.pt").read_bytes() == b"a week of work"


@pytest.mark.slow
def test_a_run_that_is_given_other_options_in_the_same_folder(train, tmp_path):
    """fairseq's own checks of criterion and optimizer too; and what a run of before the record does."""
    assert train("optimization.max_update=3").returncode == 0
    last = tmp_path / "run" / "checkpoint_last.pt"
    before, state = last.read_bytes(), saved(last)
    half, history = tmp_path / "half.pt", state["optimizer_history"]
    torch.save({**state, "optimizer_history": [{**history[-1], "optimizer_name": "FP16Optimizer"}]}, half)
    other = tmp_path / "other.pt"
    torch.save(tiny.hubert_state(seed=1), other)
    again = "optimization.max_update=5"
    for options, files, message in [
        (["model.encoder_embed_dim=32"], {}, r"model\.encoder_embed_dim=16 \(now 32\)"),
        ([], {"teacher": other}, "another teacher"),
        ([f"checkpoint.restore_file={half}"], {}, r"Optimizer does not match \(FP16Optimizer, now FairseqAdam\)"),
        (["dataset.batch_size=0"], {}, r"dataset\.batch_size=0 must be 1 or more"),
    ]:
        finished = train(again, *options, **files)
        assert finished.returncode == 1, options
        assert re.match(f"fairseq-star: .*{message}", finished.stderr.strip().splitlines()[-1]), finished.stderr
        assert last.read_bytes() == before
    del state["task_state"][TEACHER]
    torch.save(state, last)
    finished = train(again, teacher=other)
    assert finished.returncode == 0, finished.stderr
    assert "Loaded checkpoint" in finished.stdout
