"""Runs that begin with weights sliced out of the teacher: ``model.init=sliced`` through fairseq's own trainer."""

import math
import re
import signal
import sys
from pathlib import Path

import pytest
import torch

from fairseq_star.analysis.evaluate import evaluate
from fairseq_star.analysis.runs import load_run
from fairseq_star.fairseq_hooks.sliced import FILE, read_report
from fairseq_star.formats import load_student, load_teacher
from fairseq_star.models.starhubert import StarHubertConfig, StarHubertModel
from fairseq_star.slicing.sample import draw_sample
from fairseq_star.slicing.shapes import count_parameters, student_shape
from fairseq_star.slicing.slicer import slice_student
from tests.support import runs, tiny
from tests.support.runs import saved, start_workers
from tests.support.steps import build

TARGET = 16_000  # of the tiny teacher's 24,000 parameters
SLICED = ["model.init=sliced", "model.init_utterances=6", f"model.target_params={TARGET}"]
OPTIONS = [*SLICED, "checkpoint.save_interval_updates=2", "task.max_sample_size=12000", "optimization.max_update=8"]


def arguments(corpus, teacher_path, folder, *more) -> list[str]:
    return runs.hydra_arguments(corpus, teacher_path, folder, *OPTIONS, *more)


def shape_of(teacher_path):
    return student_shape(load_teacher(str(teacher_path)).config, target_params=TARGET)


@pytest.fixture(scope="module")
def whole(corpus, teacher_path, tmp_path_factory):
    """A run that nothing interrupted: its folder, and what it logged."""
    folder = tmp_path_factory.mktemp("sliced") / "run"
    finished = runs.run(arguments(corpus, teacher_path, folder))
    assert finished.returncode == 0, finished.stderr
    return folder, finished.stdout


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return saved(folder / FILE)["model"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_the_log_says_what_was_sliced_and_how_near_it_is(whole, teacher_path):
    folder, logged = whole
    report = read_report(folder)
    for line in report.lines():
        assert line in logged
    # Of the validation set's three utterances two are shorter than half a second.
    assert (report.utterances, report.held_out, report.layers) == (6, 1, [1, 2, 3])
    assert len(report.unexplained) == 4
    assert 0 < report.loss < report.loss_of_zero
    shape = shape_of(teacher_path)
    assert f"student of at most target_params={TARGET}: width {shape.embed_dim}, {shape.ffn_embed_dim} feed" in logged
    assert f"student: {count_parameters(shape):,} (" in logged
    first = float(re.search(r" loss=([\d.]+)", logged)[1])
    assert math.isfinite(first)


def test_the_run_begins_with_what_slicing_gives(whole, corpus, teacher_path):
    """Computed here from the same utterances, and kept in the run's folder."""
    folder, _ = whole
    teacher, shape = load_teacher(str(teacher_path)), shape_of(teacher_path)
    seed = saved(folder / "checkpoint_last.pt")["cfg"]["common"]["seed"]
    sample = draw_sample(corpus / "train.tsv", count=6, seed=seed, normalize=False)
    student = StarHubertModel(StarHubertConfig(**shape.fairseq_settings(), padded_group_norm=False))
    slice_student(teacher, student, sample.sources, layers=[1, 2, 3])
    kept = weights_of(folder)
    for key, value in student.state_dict().items():
        assert torch.allclose(value, kept[key], atol=1e-4), key
    assert read_report(folder).skipped == sample.skipped


def test_a_finished_student_has_the_sizes_that_were_found(whole, teacher_path):
    folder, _ = whole
    student, shape = load_student(str(folder / "checkpoint_last.pt")), shape_of(teacher_path)
    assert student.config == shape
    assert student.num_parameters == count_parameters(shape) <= TARGET


def test_a_killed_run_goes_on_from_the_same_first_weights(whole, corpus, teacher_path, tmp_path):
    folder, _ = whole
    mine = tmp_path / "run"
    process = runs.start(arguments(corpus, teacher_path, mine))
    for line in process.stdout:
        if "num_updates=5" in line:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    process.stderr.close()
    assert same(weights_of(mine), weights_of(folder))
    before = (mine / FILE).read_bytes()
    resumed = runs.run(arguments(corpus, teacher_path, mine))
    assert resumed.returncode == 0, resumed.stderr
    assert "Loaded checkpoint" in resumed.stdout
    assert f"first weights: those this run began with, from {mine / FILE}" in resumed.stdout
    assert "first weights sliced from the teacher's layers" in resumed.stdout, "its log is whole by itself"
    assert (mine / FILE).read_bytes() == before
    expected, got = (saved(one / "checkpoint_last.pt") for one in (folder, mine))
    assert got["optimizer_history"][-1]["num_updates"] == 8
    assert same(expected["model"], got["model"])


def test_two_workers_have_the_first_weights_of_one(whole, corpus, teacher_path, tmp_path):
    """Bit for bit, whatever the number of data workers; worker 1 starts from what worker 0 computed."""
    folder, _ = whole
    processes = start_workers(
        tmp_path / "two", arguments(corpus, teacher_path, tmp_path / "two", "dataset.batch_size=2")
    )
    [first, second] = runs.finish(processes)
    assert same(weights_of(tmp_path / "two"), weights_of(folder))
    assert "first weights sliced" in first
    assert "first weights sliced" not in second
    # No update is made: what is saved at the end is what all began with.
    still = arguments(corpus, teacher_path, tmp_path / "still", "dataset.num_workers=2", "optimization.lr=[0.0]",
                      "optimization.max_update=1")  # fmt: skip
    finished = runs.run(still)
    assert finished.returncode == 0, finished.stderr
    assert same(weights_of(tmp_path / "still"), weights_of(folder))
    assert same(saved(tmp_path / "still" / "checkpoint_last.pt")["model"], weights_of(folder))


def test_evaluate_begins_where_the_run_did(whole, corpus, teacher_path, tmp_path):
    """From the kept file, even if the manifest of the training set has changed since; without the file, anew."""
    folder, _ = whole
    kept = weights_of(folder)
    assert same(load_run(str(folder / "checkpoint_last.pt")).model.state_dict(), kept)
    result = evaluate(str(folder / "checkpoint_last.pt"))
    assert result.before["loss"] < 0.5 * read_report(folder).loss_of_zero
    alone = tmp_path / "checkpoint_last.pt"
    alone.write_bytes((folder / "checkpoint_last.pt").read_bytes())
    again = load_run(str(alone)).model.state_dict()
    assert max((again[key] - kept[key]).abs().max().item() for key in kept) < 1e-4
    assert not (tmp_path / FILE).exists(), "looking at a run leaves nothing behind"


def test_a_folder_with_another_runs_checkpoint_keeps_its_first_weights(whole, corpus, teacher_path, tmp_path):
    folder, _ = whole
    mine = tmp_path / "run"
    mine.mkdir()
    for name in ("checkpoint_last.pt", FILE):
        (mine / name).write_bytes((folder / name).read_bytes())
    before = (mine / FILE).read_bytes()
    finished = runs.run(arguments(corpus, teacher_path, mine, "model.target_params=13000"))
    assert finished.returncode != 0
    assert "is of another student" in finished.stderr
    assert (mine / FILE).read_bytes() == before


def test_another_runs_first_weights_without_a_checkpoint_are_replaced(whole, corpus, teacher_path, tmp_path):
    folder, _ = whole
    mine = tmp_path / "run"
    mine.mkdir()
    (mine / FILE).write_bytes((folder / FILE).read_bytes())
    _, student, _ = build(corpus, teacher_path, model=sliced(), save_dir=str(mine))
    assert same(weights_of(mine), student.state_dict())
    assert not same(weights_of(mine), weights_of(folder))


def test_so_are_those_of_the_same_sizes_computed_from_something_else(corpus, teacher_path, tmp_path):
    """Of another teacher, or from other utterances: the record tells, not the shapes."""
    other = tmp_path / "other.pt"
    torch.save(tiny.hubert_state(seed=1), other)
    folder = str(tmp_path / "run")
    kept = []
    for teacher, utterances in ((teacher_path, 4), (teacher_path, 3), (other, 3), (teacher_path, 4)):
        _, student, _ = build(corpus, teacher, model=sliced(init_utterances=utterances), save_dir=folder)
        kept.append(weights_of(tmp_path / "run"))
        assert same(kept[-1], student.state_dict())
    assert not same(kept[0], kept[1])
    assert not same(kept[1], kept[2])
    assert same(kept[0], kept[3])


def test_through_fairseq_train(corpus, teacher_path, tmp_path):
    program = "import sys; from fairseq_cli.train import cli_main; sys.argv[0] = 'fairseq-train'; cli_main()"
    command = [
        sys.executable, "-c", program, str(corpus), "--user-dir", "fairseq_star", "--task", "star_distillation",
        "--teacher", str(teacher_path), "--arch", "starhubert", "--encoder-layers", "3", "--criterion", "star_tgm",
        "--init", "sliced", "--target-params", str(TARGET), "--init-utterances", "6",
        "--optimizer", "adam", "--lr", "1e-3", "--max-update", "1", "--batch-size", "4",
        "--save-dir", str(tmp_path), "--num-workers", "0", "--log-format", "simple",
    ]  # fmt: skip
    finished = runs.run(command)
    assert finished.returncode == 0, finished.stderr
    assert (
        "first weights sliced from the teacher's layers 1 to 3 with 6 utterances" in finished.stdout + finished.stderr
    )
    assert count_parameters(load_student(str(tmp_path / "checkpoint_last.pt")).config) <= TARGET
    assert read_report(tmp_path).utterances == 6


# Without a trainer.
FITTING = {"conv_feature_layers": "[(8,10,5)] + [(8,3,2)] * 4 + [(12,2,2)] * 2"}


def sliced(**options: object) -> dict:
    return {**FITTING, "init": "sliced", "init_utterances": 4, **options}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_embed_dim": 32}, r"model\.encoder_embed_dim=32 must be at most the teacher's 24"),
        ({"encoder_ffn_embed_dim": 64}, r"model\.encoder_ffn_embed_dim=64 must be at most the teacher's 48"),
        ({"encoder_attention_heads": 4}, r"model\.encoder_attention_heads=4 must be the teacher's 2"),
        ({"conv_feature_layers": tiny.STUDENT["conv_feature_layers"]}, r"model\.conv_feature_layers=.*kernels and str"),
        ({"conv_feature_layers": "[(8,10,5)] + [(8,3,2)] * 4 + [(D,2,2)] * 2"}, r"the last of model\.conv_feature_lay"),
        ({"layer_norm_first": True}, r"model\.layer_norm_first=True must be the teacher's False"),
        ({"activation_fn": "relu"}, r"model\.activation_fn=relu must be the teacher's gelu"),
        ({"extractor_mode": "layer_norm"}, r"model\.extractor_mode=layer_norm must be the teacher's default"),
        ({"init_layers": [1]}, r"model\.init=sliced slices all parts out of the teacher; leave model\.init_layers"),
        ({"init_feature_extractor": True}, r"leave model\.init_layers and model\.init_feature_extractor out"),
        ({"init_utterances": 0}, r"model\.init_utterances=0 must be 1 or more"),
        ({"target_params": 1e9}, r"model\.target_params=1e\+09: the teacher is no larger than that"),
        ({"target_params": 100.0}, r"model\.target_params=100: even the narrowest student"),
        ({"target_macs": 100.0}, r"model\.target_macs=100: even the narrowest student"),
        ({"encoder_layers": 2}, r"cannot be matched evenly"),
    ],
)
def test_what_cannot_be_ends_in_one_line_that_names_the_option(options, message, corpus, teacher_path):
    with pytest.raises(SystemExit, match=message) as error:
        build(corpus, teacher_path, model=sliced(**options))
    assert "\n" not in str(error.value)


def test_so_it_does_in_a_run(train):
    finished = train("model.init=sliced")  # with the recipe's front end
    assert finished.returncode == 1
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith("fairseq-star: model.init=sliced: model.conv_feature_layers=[(8, 10, 5), (8, 1, 1)")
    assert "Traceback" not in finished.stderr


def test_audio_that_cannot_be_used_is_one_line(teacher_path, tmp_path):
    tiny.write_tsv(tmp_path / "train.tsv", tiny.write_audio(tmp_path / "audio", [0.2, 0.3]))
    with pytest.raises(SystemExit, match=r"train\.tsv: none of the 2 files opened can be used") as error:
        build(tmp_path, teacher_path, model=sliced())
    assert "\n" not in str(error.value)


def test_sizes_by_cost_alone_with_random_weights(corpus, teacher_path):
    """``target_params`` without slicing: the sizes, and weights that the seed draws."""
    _, student, _ = build(corpus, teacher_path, model={"target_params": float(TARGET)})
    shape = shape_of(teacher_path)
    assert student.config == shape
    torch.manual_seed(0)
    drawn = StarHubertModel(StarHubertConfig(**shape.fairseq_settings(), padded_group_norm=False))
    assert same(student.state_dict(), drawn.state_dict())


def test_random_first_weights_are_what_the_seed_draws(corpus, teacher_path, tmp_path):
    """As before there were others (``test_golden.py`` holds them to what they were); no file is written."""
    _, student, _ = build(corpus, teacher_path, save_dir=str(tmp_path / "run"))
    torch.manual_seed(0)
    drawn = StarHubertModel(StarHubertConfig(**tiny.STUDENT, padded_group_norm=False))
    assert same(student.state_dict(), drawn.state_dict())
    assert not (tmp_path / "run").exists()
    assert read_report(tmp_path / "run") is None


def test_slicing_draws_no_random_numbers(corpus, teacher_path):
    """What follows in a run (dropout, crops) is the same whatever the number of utterances."""
    states = []
    for utterances in (2, 4):
        build(corpus, teacher_path, model=sliced(init_utterances=utterances))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_a_mask_embedding_stays_as_it_was_drawn(corpus, teacher_path, tmp_path):
    masked = {"mask_prob": 0.5, "save_dir": str(tmp_path)}
    embeddings = [build(corpus, teacher_path, model=model, **masked)[1].mask_emb for model in (sliced(), FITTING)]
    assert torch.equal(*embeddings)
    assert "mask_emb" not in weights_of(tmp_path)


def test_a_streaming_student(corpus, teacher_path, tmp_path):
    """Its first norm's statistics are kept with its weights; it processes audio in chunks."""
    streaming = {"chunk_frames": [4, 0], "extractor_mode": "running_norm"}
    _, student, _ = build(corpus, teacher_path, model=sliced(**streaming), save_dir=str(tmp_path))
    assert student.chunk_frames == 4
    kept = weights_of(tmp_path)
    assert same(student.state_dict(), kept)
    assert kept["feature_extractor.conv_layers.0.2.variance"].min() > 0
    assert not torch.equal(kept["feature_extractor.conv_layers.0.2.variance"], torch.ones(8))


def test_chosen_layers_of_a_deeper_teacher(corpus, tmp_path):
    """``criterion.teacher_layers`` says which outputs the student's layers stand for; of each span one is taken."""
    teacher = tiny.write_teacher(tmp_path / "deep.pt", encoder_layers=4)
    options = {"save_dir": str(tmp_path / "run"), "teacher_layers": [1, 4]}
    build(corpus, teacher, model=sliced(encoder_layers=2), **options)
    report = read_report(tmp_path / "run")
    assert report.layers[0] == 1
    assert report.layers[1] in (2, 3, 4)


def test_another_corpus_is_sliced_anew(corpus, teacher_path, tmp_path):
    """In the folder of a run that ended before its first checkpoint; the same audio elsewhere is the same corpus."""
    mine, moved, other = tmp_path / "run", tmp_path / "moved", tmp_path / "other"
    root, *lines = (corpus / "train.tsv").read_text(encoding="utf-8").splitlines()
    for folder, listed in ((moved, lines), (other, lines[:-1])):
        folder.mkdir()
        (folder / "valid.tsv").write_bytes((corpus / "valid.tsv").read_bytes())
        (folder / "train.tsv").write_text("\n".join([root, *listed, ""]), encoding="utf-8")
    kept = "first weights: those this run began with"
    for data, expected in ((corpus, False), (moved, True), (other, False), (other, True)):
        run = runs.run(arguments(data, teacher_path, mine, "checkpoint.no_save=true", "optimization.max_update=1"))
        assert run.returncode == 0, run.stderr
        assert (kept in run.stdout) == expected, data
