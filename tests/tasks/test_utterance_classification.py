"""Fine-tuning on one label an utterance: ``configs/finetune_classification.yaml`` on tones, and what it refuses."""

import re
import sys
from dataclasses import fields

import pytest
import soundfile
import torch
import yaml
from omegaconf import OmegaConf

from fairseq_star.formats import load_tuned
from fairseq_star.models.classifier import ClassifierConfig
from fairseq_star.tasks.utterance_classification import UtteranceClassificationConfig, UtteranceClassificationTask
from tests.support import ROOT, convert_cases, labelled, tiny, tuned
from tests.support.runs import TRAIN, run, saved


@pytest.fixture
def data(tmp_path):
    return labelled.write_labelled(tmp_path / "data")


@pytest.fixture
def student(tmp_path):
    return convert_cases.write_checkpoint(tmp_path / "student.pt", **tiny.STUDENT, **tiny.NO_DROPOUT)


def finetune(data, student, save_dir, *overrides: str):
    return run(
        [
            sys.executable, "-c", TRAIN, "--config-dir", "configs", "--config-name", "finetune_classification",
            "common.user_dir=fairseq_star", f"task.data={data}", f"model.student={student}",
            f"checkpoint.save_dir={save_dir}", "common.tensorboard_logdir=null", "dataset.num_workers=0",
            "dataset.batch_size=4", *overrides,
        ]
    )  # fmt: skip


@pytest.mark.parametrize("freeze", [True, False])
def test_a_run_learns_resumes_and_is_exported(data, student, tmp_path, freeze):
    options = [f"model.freeze_encoder={freeze}", "optimization.lr=[0.01]", "task.gain_prob=0.5", "task.mask_prob=0.1",
               "task.mask_length=2"]  # fmt: skip
    done = finetune(data, student, tmp_path / "run", "optimization.max_update=4", *options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "accuracy" in done.stdout + done.stderr
    more = finetune(data, student, tmp_path / "run", "optimization.max_update=6", *options)
    assert more.returncode == 0, (more.stdout + more.stderr)[-3000:]
    state, first = saved(tmp_path / "run" / "checkpoint_last.pt"), saved(student)["model"]
    assert state["optimizer_history"][-1]["num_updates"] == 6
    moved = [name for name, value in first.items() if not torch.equal(state["model"][f"student.{name}"], value)]
    assert bool(moved) != freeze
    assert state["model"]["classifier.pooling.weights"].abs().max() > 0
    tuned_student = load_tuned(tmp_path / "run" / "checkpoint_last.pt", "export")
    assert tuned_student.head.labels == ("a", "e", "i")
    [source] = tuned.noise([9_000])
    states = tuned_student.hidden_states([source], 16_000)[0]
    [ours] = tuned_student.head([one[None] for one in states], torch.tensor([len(states[0])]))
    [[theirs]] = tuned_student.reference([source])
    assert float((ours - theirs).abs().max()) < 1e-5


def test_the_recipe_lists_every_option():
    text = (ROOT / "configs" / "finetune_classification.yaml").read_text(encoding="utf-8")
    assert "--config-name finetune_classification common.user_dir=fairseq_star " in text.splitlines()[1]
    recipe = yaml.safe_load(text)
    for section, options in (("task", UtteranceClassificationConfig), ("model", ClassifierConfig)):
        assert set(recipe[section]) == {field.name for field in fields(options)}, section


def faults():
    """What is done to the data, and the sentence."""

    def line(data, split, number, text):
        path = data / f"{split}.keyword"
        lines = path.read_text().splitlines()
        lines[number - 1 : number] = [] if text is None else [text]
        path.write_text("".join(f"{one}\n" for one in lines))

    return {
        "unknown": (
            lambda data: line(data, "valid", 3, "x"),
            r"valid\.keyword:3: the label 'x' is not in .*train\.key",
        ),
        "blank": (lambda data: line(data, "train", 2, " "), r"train\.keyword:2: no label; write one"),
        "fewer": (lambda data: line(data, "train", 2, None), r"train\.keyword: 15 lines, but the manifest .* has 16"),
        "empty": (lambda data: (data / "train.keyword").write_text(""), r"train\.keyword: 0 lines, but the manifest"),
        "missing": (lambda data: (data / "train.keyword").unlink(), r"train\.keyword: cannot read the keyword labels"),
        "one": (lambda data: (data / "train.keyword").write_text("a\n" * 16), r"train\.keyword: all labels are 'a'"),
    }


def task_of(data, student) -> UtteranceClassificationTask:
    options = {"data": str(data), "seed": 1, "train_subset": "train"}
    task = UtteranceClassificationTask.setup_task(OmegaConf.structured(UtteranceClassificationConfig(**options)))
    model = ClassifierConfig(student=str(student))
    model._name = "starhubert_classifier"
    task.build_model(OmegaConf.create({"model": model}).model)
    return task


@pytest.mark.parametrize("fault", faults())
def test_faults_of_labels_are_one_sentence(data, student, fault, capsys):
    spoil, sentence = faults()[fault]
    spoil(data)

    def load():
        task = task_of(data, student)
        for split in ("train", "valid"):
            task.load_dataset(split)

    with pytest.raises(SystemExit) as ended:
        load()
    told = str(ended.value) + capsys.readouterr().err
    assert re.search(sentence, told), told


def test_labels_follow_their_utterances_past_those_left_out(data, student):
    """A manifest's utterance of less than a frame is left out, and its label with it."""
    lines = (data / "train.tsv").read_text().splitlines()
    lines.insert(3, "short.wav\t300")
    (data / "train.tsv").write_text("".join(f"{line}\n" for line in lines))
    soundfile.write(data / "train" / "short.wav", [0.0] * 300, 16_000)
    labels = (data / "train.keyword").read_text().splitlines()
    (data / "train.keyword").write_text("".join(f"{label}\n" for label in [*labels[:2], "i", *labels[2:]]))
    task = task_of(data, student)
    task.load_dataset("train")
    dataset = task.datasets["train"]
    batch = dataset.collater([dataset[number] for number in range(len(dataset))])
    assert [task.state.labels[number] for number in batch["target"]] == labels


def test_a_resumed_run_on_other_labels_is_refused(data, student, capsys):
    task = task_of(data, student)
    task.load_state_dict({"labels": ["a", "e", "i"]})
    with pytest.raises(SystemExit) as ended:
        task.load_state_dict({"labels": ["a", "e", "o"]})
    assert "holds other labels than the checkpoint" in str(ended.value) + capsys.readouterr().err
