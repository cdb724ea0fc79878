"""End to end through fairseq's own trainer: what is written, resumed, accumulated and distributed."""

import signal
import time

import pytest
import torch
import yaml

import fairseq_star  # noqa: F401  (registers, as --user-dir does)
from fairseq_star.teacher.provider import teacher_digest
from tests.support import runs
from tests.support.runs import NO_DROPOUT, difference, saved

# One step of plain SGD with rate 1e-2 and no clipping moves the weights along the gradient itself.
SGD_STEP = {
    "optimizer": {"_name": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": "${optimization.lr}"},
    "lr_scheduler": {"_name": "fixed"},
    "optimization": {"max_update": 1, "lr": [1e-2], "update_freq": [1], "clip_norm": 0.0, "sentence_avg": True},
}


def test_training_learns_and_saves_the_student_alone(train, teacher_path, tmp_path):
    finished = train("optimization.max_update=30", "optimization.lr=[0.01]")
    assert finished.returncode == 0, finished.stderr
    losses = [float(line.split("loss=")[1].split(",")[0]) for line in finished.stdout.splitlines() if " loss=" in line]
    assert len(losses) == 30
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    for term in ("layerwise=", "intra_layer="):
        assert term in finished.stdout
    assert "valid on 'valid' subset | loss" in finished.stdout

    best, last = tmp_path / "run" / "checkpoint_best.pt", tmp_path / "run" / "checkpoint_last.pt"
    assert best.is_file()
    state = saved(last)
    assert not any("teacher" in name for name in state["model"])
    assert state["criterion"] is None
    digest = teacher_digest(str(teacher_path))
    assert state["task_state"] == {"sample_rate": 16_000, "normalize": False, "teacher_digest": digest}
    [trained] = {group["lr"] for group in state["last_optimizer_state"]["param_groups"]}
    assert 0 <= trained < 0.01


def test_a_finished_student_loads_without_its_teacher(train, tmp_path, teacher_path):
    from fairseq.checkpoint_utils import load_model_ensemble_and_task

    assert train("optimization.max_update=1", teacher=teacher_path).returncode == 0
    path = str(tmp_path / "run" / "checkpoint_last.pt")
    [model], _, task = load_model_ensemble_and_task([path], arg_overrides={"teacher": "moved/away.pt", "data": "gone"})
    assert task.teacher is None
    assert model.extract_features(torch.randn(1, 8000))[0].shape == (1, 24, 16)


def test_a_killed_run_resumes_bit_for_bit(train, tmp_path, corpus, teacher_path):
    """SIGKILL in mid-epoch, after a save and some updates more; dropout, random crops and shuffling all on."""
    options = ["optimization.max_update=14", "checkpoint.save_interval_updates=4", "task.max_sample_size=12000"]
    arguments = runs.hydra_arguments(corpus, teacher_path, tmp_path / "whole", *options)
    whole = runs.run(arguments, preloaded=False)  # with another hash seed too, then
    assert whole.returncode == 0, whole.stderr

    process = runs.start(runs.hydra_arguments(corpus, teacher_path, tmp_path / "killed", *options))
    for line in process.stdout:
        if "num_updates=7" in line:  # 3 updates an epoch, so in mid-epoch; the last save was at 4
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    process.stderr.close()
    before = saved(tmp_path / "killed" / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"]
    assert 4 <= before < 14

    resumed = train(*options, save_dir=tmp_path / "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert "Loaded checkpoint" in resumed.stdout
    expected, got = (saved(tmp_path / name / "checkpoint_last.pt") for name in ("whole", "killed"))
    assert difference(expected["model"], got["model"]) == 0
    first, second = (state["last_optimizer_state"]["state"][0]["exp_avg"] for state in (expected, got))
    assert torch.equal(first, second)


def test_two_workers_and_accumulation_give_the_gradient_of_the_whole_batch(tmp_path, corpus, teacher_path):
    """The same 12 ragged utterances in one batch, in two with update_freq, and in four on two gloo processes."""
    (tmp_path / "sgd.yaml").write_text(yaml.safe_dump({**runs.recipe("starhubert_100h"), **SGD_STEP}))

    def start(name: str, *options: str):
        arguments = runs.hydra_arguments(corpus, teacher_path, tmp_path / name, config="sgd", config_dir=tmp_path)
        dropped = [part for part in arguments if not part.startswith(("lr_scheduler.", "optimization."))]
        return runs.start([*dropped, *NO_DROPOUT, *options])

    gloo = [
        "common.cpu=true", "distributed_training.distributed_world_size=2",
        "distributed_training.distributed_no_spawn=true", "distributed_training.distributed_backend=gloo",
        "distributed_training.ddp_backend=legacy_ddp",
        f"distributed_training.distributed_init_method=file://{tmp_path}/rendezvous",
    ]  # fmt: skip
    accumulate = "optimization.update_freq=[2]"
    processes = [
        start("initial", "dataset.batch_size=12", "optimization.lr=[0.0]"),
        start("whole", "dataset.batch_size=12"),
        start("accumulated", "dataset.batch_size=6", accumulate),
        start("distributed", "dataset.batch_size=3", accumulate, *gloo, "distributed_training.distributed_rank=0"),
        start("distributed", "dataset.batch_size=3", accumulate, *gloo, "distributed_training.distributed_rank=1"),
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * 5, outputs

    def step(name: str) -> torch.Tensor:
        weights, initial = (saved(tmp_path / run / "checkpoint_last.pt")["model"] for run in (name, "initial"))
        return torch.cat([(weights[key].double() - initial[key]).flatten() for key in initial])

    whole = step("whole")
    assert whole.norm() > 0
    for name in ("accumulated", "distributed"):
        assert (step(name) - whole).norm() / whole.norm() < 1e-5, name
    assert "bsz 12" in outputs[3][0], "the log must count the utterances of all workers"


def test_fairseq_train_with_flags(corpus, teacher_path, tmp_path):
    import sys

    program = "import sys; from fairseq_cli.train import cli_main; sys.argv[0] = 'fairseq-train'; cli_main()"
    arguments = [
        sys.executable, "-c", program, str(corpus), "--user-dir", "fairseq_star", "--task", "star_distillation",
        "--teacher", str(teacher_path), "--arch", "starhubert_xs", "--encoder-layers", "3", "--criterion", "star_tgm",
        "--intra-layer-weight", "0.5", "--layer-convention", "reimplementation",
        "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--lr", "1e-3", "--max-update", "2", "--batch-size", "4",
        "--save-dir", str(tmp_path), "--num-workers", "0", "--log-format", "simple",
    ]  # fmt: skip
    finished = runs.run(arguments, preloaded=False)
    assert finished.returncode == 0, finished.stderr
    state = saved(tmp_path / "checkpoint_last.pt")
    assert state["cfg"]["criterion"]["intra_layer_weight"] == 0.5
    assert state["cfg"]["model"]["_name"] == "starhubert_xs"
    assert state["model"]["encoder.layer_norm.weight"].shape == (272,)
    weights = sum(value.numel() * 4 for value in state["model"].values())
    optimizer = sum(
        value.numel() * value.element_size()
        for moments in state["last_optimizer_state"]["state"].values()
        for value in moments.values()
        if torch.is_tensor(value)
    )
    assert (tmp_path / "checkpoint_last.pt").stat().st_size < 1.1 * (weights + optimizer)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("criterion.layerwise_wieght=2", "layerwise_wieght"),
        ("+task.teachr=x", "teachr"),
        ("criterion.layer_convention=papers", "papers"),
        ("+model.encoder_embed_dims=8", "encoder_embed_dims"),
    ],
)
def test_a_mistyped_option_is_refused_by_name(train, override, named):
    finished = train(override)
    assert finished.returncode != 0
    assert named in finished.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16", "amp"])
def test_half_precisions_on_a_gpu(train, precision):
    finished = train(f"common.{precision}=true", "common.cpu=false", "optimization.max_update=10")
    assert finished.returncode == 0, finished.stderr
    assert "num_updates=10" in finished.stdout
    assert "nan" not in finished.stdout.lower()


def test_ctrl_c_ends_the_run_and_the_same_command_goes_on(train, tmp_path, corpus, teacher_path):
    options = ["optimization.max_update=100000", "checkpoint.save_interval_updates=3"]
    process = runs.start(runs.hydra_arguments(corpus, teacher_path, tmp_path / "run", *options))
    for line in process.stdout:
        if "num_updates=5," in line:
            process.send_signal(signal.SIGINT)
            break
    deadline = time.monotonic() + 60
    process.communicate(timeout=60)
    assert time.monotonic() < deadline
    assert process.returncode != 0
    resumed = train("optimization.max_update=8", "checkpoint.save_interval_updates=3")
    assert resumed.returncode == 0, resumed.stderr
    assert "Loaded checkpoint" in resumed.stdout
