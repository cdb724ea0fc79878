"""Runs that hide, add noise and ask for more: resumed bit for bit, the same on two processes, begun from older ones."""

import copy
import shutil

import numpy as np
import pytest
import soundfile
import torch

from fairseq_star.analysis.evaluate import evaluate
from fairseq_star.cli import main
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.encoder.running_norm import measure_statistics
from fairseq_star.formats import load_student
from fairseq_star.manifest import read_manifest
from tests.support import runs, tiny
from tests.support.runs import NO_DROPOUT, difference, finish, saved, start_workers
from tests.support.steps import build

HIDING = ["task.mask_prob=0.5", "task.mask_length=3", "task.mask_channel_prob=0.2", "task.mask_channel_length=2"]
ASKED = [
    "criterion.units=[head]", "criterion.unit_weight=50", "criterion.unit_unmasked_weight=5", "criterion.unit_dim=8",
    "criterion.frame_mse_weight=1", "criterion.frame_cosine_weight=0.5",
]  # fmt: skip


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> list[str]:
    """Options of noise and babble."""
    folder = tmp_path_factory.mktemp("noise")
    path = tiny.write_tsv(folder / "noise.tsv", tiny.write_audio(folder / "audio", [0.4, 2.0], seed=9))
    return [f"task.noise_manifest={path}", "task.noise_prob=0.7", "task.babble_prob=0.5"]


def test_a_resumed_run_is_the_same_whoever_loads_the_data(train, noise, tmp_path):
    options = [*HIDING, *ASKED, *noise, "dataset.validate_interval_updates=3", "checkpoint.save_interval_updates=2"]
    options.append("checkpoint.keep_interval_updates=4")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = train(*options, save_dir=whole)
    assert done.returncode == 0, done.stderr
    for name in ("units", "units_unmasked", "unit_accuracy", "frames", "layerwise", "masked"):
        assert f" {name}=" in done.stdout, name
    parts.mkdir()
    [middle] = whole.glob("checkpoint_1_2.pt")
    shutil.copy(middle, parts / "checkpoint_last.pt")
    second = train(*options, "dataset.num_workers=1", save_dir=parts)
    assert second.returncode == 0, second.stderr
    one, two = saved(whole / "checkpoint_last.pt"), saved(parts / "checkpoint_last.pt")
    for section in ("model", "criterion"):
        assert one[section].keys() == two[section].keys()
        assert all(torch.equal(value, two[section][key]) for key, value in one[section].items()), section
    assert {"mask_emb"} < set(one["model"])
    assert {"heads.0.weight", "unit_heads.0.label_embs"} < set(one["criterion"])


def test_two_processes_are_one_process(uneven, teacher_path, noise, tmp_path):
    options = [
        *HIDING, *ASKED, *noise, *NO_DROPOUT, "common.cpu=true", "dataset.batch_size=2", "optimization.clip_norm=0.0",
        "optimization.max_update=8", "optimization.lr=[1e-3]",
    ]  # fmt: skip

    def arguments(name: str, update_freq: int) -> list[str]:
        return runs.hydra_arguments(
            uneven, teacher_path, tmp_path / name, *options, f"optimization.update_freq=[{update_freq}]"
        )

    finish([runs.start(arguments("one", 2))])
    finish(start_workers(tmp_path / "two", arguments("two", 1)))
    one, two = (saved(tmp_path / name / "checkpoint_last.pt") for name in ("one", "two"))
    assert difference(one["model"], two["model"]) < 1e-5
    assert difference(one["criterion"], two["criterion"]) < 1e-5


def test_a_finished_student_goes_on_with_new_heads_and_a_mask_but_no_run_does(train, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    done = train("optimization.max_update=2", "lr_scheduler.warmup_updates=1", save_dir=old)
    assert done.returncode == 0, done.stderr
    for options, told in (
        (HIDING, "without masked frames (task.mask_prob)"),
        (ASKED, "other heads than this run's criterion, or none"),
    ):
        more = [option for option in options if "unit_weight" not in option]
        refused = train(*more, "optimization.max_update=4", save_dir=old)
        assert refused.returncode != 0
        assert told in refused.stderr.splitlines()[-1]
    checkpoint = old / "checkpoint_last.pt"
    begun = train(
        *HIDING, *ASKED, f"checkpoint.finetune_from_model={checkpoint}", "optimization.max_update=1",
        "lr_scheduler.warmup_updates=0",
        "optimization.lr=[0.0]", save_dir=new,
    )  # fmt: skip
    assert begun.returncode == 0, begun.stderr
    before, after = saved(checkpoint)["model"], saved(new / "checkpoint_last.pt")["model"]
    assert set(after) - set(before) == {"mask_emb"}
    assert all(torch.equal(value, after[key]) for key, value in before.items())

    result = evaluate(str(new / "checkpoint_last.pt"))
    assert {"units", "frames", "layerwise", "loss"} <= set(result.after)
    exported = tmp_path / "student.fairseq.pt"
    main(["export", str(new / "checkpoint_last.pt"), "--to", "fairseq", "--out", str(exported)])
    assert torch.equal(saved(exported)["model"]["mask_emb"], after["mask_emb"])
    assert not any("heads" in key for key in saved(exported)["model"])
    student = load_student(new / "checkpoint_last.pt")
    assert "mask_emb" not in student.weights()
    audio = np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    [states], [expected] = (loaded.hidden_states([audio], 16_000) for loaded in (student, load_student(checkpoint)))
    assert all(torch.equal(one, other) for one, other in zip(states, expected, strict=True))
    assert isinstance(student, FrozenEncoder) is False


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["model.init_layers=[1,2]"], "model.init_layers: the teacher's layer 1 does not fit the student"),
        (["model.init_layers=[1,2,3,3]"], r"model.init_layers=[1, 2, 3, 3] must name at most 3"),
        (["model.init_feature_extractor=true"], "model.init_feature_extractor: the teacher's feature_extractor"),
    ],
)
def test_first_weights_that_do_not_fit_end_in_one_line(train, options, told):
    done = train(*options)
    assert done.returncode != 0
    assert told in done.stderr.splitlines()[-1]


def test_a_student_begins_as_its_teachers_layers(corpus, teacher_path):
    sizes = {
        "encoder_embed_dim": 24, "encoder_ffn_embed_dim": 48, "encoder_layers": 2,
        "conv_feature_layers": tiny.TEACHER_CONV,
    }  # fmt: skip
    first = {"init_layers": [1, 3], "init_feature_extractor": True}
    task, student, _ = build(corpus, teacher_path, {"teacher_layers": [1, 3]}, sizes | first)
    mine, theirs = student.state_dict(), task.teacher.model.state_dict()
    for key, value in mine.items():
        assert torch.equal(value, theirs[key.replace("encoder.layers.1.", "encoder.layers.2.")]), key
    _, random, _ = build(corpus, teacher_path, {"teacher_layers": [1, 3]}, sizes)
    assert not torch.equal(random.state_dict()["encoder.layers.0.fc1.weight"], mine["encoder.layers.0.fc1.weight"])


def test_a_streaming_student_begins_so_too_and_measures_what_it_alone_has(corpus, teacher_path):
    sizes = {
        "encoder_embed_dim": 24, "encoder_ffn_embed_dim": 48, "encoder_layers": 2, "extractor_mode": "running_norm",
        "conv_feature_layers": tiny.TEACHER_CONV, "chunk_frames": [4], "init_layers": [1, 3],
        "init_feature_extractor": True,
    }  # fmt: skip
    task, student, _ = build(corpus, teacher_path, {"teacher_layers": [1, 3]}, sizes)
    mine, theirs = student.state_dict(), task.teacher.model.state_dict()
    norm = "feature_extractor.conv_layers.0.2."
    for key in mine.keys() - {f"{norm}mean", f"{norm}variance"}:
        assert torch.equal(mine[key], theirs[key.replace("encoder.layers.1.", "encoder.layers.2.")]), key
    expected = copy.deepcopy(student.feature_extractor)
    root, entries = read_manifest(corpus / "train.tsv")
    audio = [soundfile.read(f"{root}/{entry.path}", dtype="float32")[0] for entry in entries]
    measure_statistics(expected, map(torch.from_numpy, audio))
    for name in ("mean", "variance"):
        torch.testing.assert_close(mine[f"{norm}{name}"], getattr(expected.conv_layers[0][2], name))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16", "amp"])
def test_half_precisions_on_a_gpu(train, noise, precision):
    done = train(*HIDING, *ASKED, *noise, f"common.{precision}=true", "common.fp16_init_scale=4")
    assert done.returncode == 0, done.stderr
    assert " units=" in done.stdout
    assert "nan" not in done.stdout.lower()


def test_two_processes_go_on_from_a_student_of_other_heads(uneven, teacher_path, tmp_path):
    """Each of them, not only the one that looks at the checkpoint."""
    few = ["common.cpu=true", "optimization.max_update=2", "lr_scheduler.warmup_updates=1"]
    finish([runs.start(runs.hydra_arguments(uneven, teacher_path, tmp_path / "old", *few))])
    options = [*few, *HIDING, *ASKED, f"checkpoint.finetune_from_model={tmp_path / 'old' / 'checkpoint_last.pt'}"]
    arguments = runs.hydra_arguments(uneven, teacher_path, tmp_path / "new", *options)
    finish(start_workers(tmp_path / "two", arguments))
    criterion = saved(tmp_path / "new" / "checkpoint_last.pt")["criterion"]
    assert {"heads.0.weight", "unit_heads.0.label_embs"} < set(criterion)
