"""s3prl's own downstream runner, unedited, on an exported student; and the keyword corpus it runs on."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks import s3prl_keywords
from fairseq_star.deploy.targets import load_target
from fairseq_star.errors import StarError
from fairseq_star.formats import export
from fairseq_star.superb.programs import launch
from manifests.demo import keywords as demo_keywords
from tests.support import ROOT, convert_cases
from tests.support.runs import TRAIN

pytest.importorskip("espeakng_loader")


@pytest.fixture(scope="module")
def keywords(tmp_path_factory) -> Path:
    """A corpus of one speaker in each part."""
    out = tmp_path_factory.mktemp("corpus") / "keywords"
    demo_keywords.main([str(out), "--train-speakers", "1", "--valid-speakers", "1", "--test-speakers", "1"])
    return out


def test_corpus_is_what_s3prl_reads(keywords):
    launch.stand_in()
    from s3prl.downstream.speech_commands.dataset import CLASSES, SpeechCommandsDataset, SpeechCommandsTestingDataset
    from s3prl.downstream.speech_commands.expert import split_dataset

    train, valid = split_dataset(keywords / "train")
    words = [*demo_keywords.KEYWORDS, *demo_keywords.OTHER_WORDS]
    for part in (train, valid):
        assert Counter(word for word, _ in part) == dict.fromkeys(words, demo_keywords.TAKES)
    speakers = [{path.name.split("_")[0] for _, path in part} for part in (train, valid)]
    listed = [
        set((keywords / "train" / name).read_text().split()) for name in ("validation_list.txt", "testing_list.txt")
    ]
    assert listed[0] == {f"{word}/{path.name}" for word, path in valid}
    speakers += [{name.split("/")[1].split("_")[0] for name in listed[1]}]
    assert all(len(part) == 1 for part in speakers)
    assert len(set.union(*speakers)) == 3

    roots = {"speech_commands_root": keywords / "train", "speech_commands_test_root": keywords / "test"}
    weights = SpeechCommandsDataset(train, **roots).sample_weights
    assert len(weights) == len(train) + demo_keywords.NOISE_FILES
    test = SpeechCommandsTestingDataset(**roots)
    assert {word for word, _ in test.data} == set(CLASSES)
    samples, label, _ = test[0]
    assert samples.shape == (16_000,)
    assert CLASSES[label] == test.data[0][0]
    audio, sample_rate = soundfile.read(test.data[0][1], dtype="float32")
    assert sample_rate == 16_000
    assert abs(samples - audio * 10 ** (-3 / 20)).max() < 1e-6  # s3prl's gain of -3 dB


def test_corpus_is_the_same_again_and_never_over_another(keywords, tmp_path):
    again = tmp_path / "again"
    demo_keywords.main([str(again), "--train-speakers", "1", "--valid-speakers", "1", "--test-speakers", "1"])
    names = sorted(path.relative_to(again) for path in again.rglob("*.wav"))
    assert len(names) == 3 * 20 * 2 + 20 + 2 + 2 + 6
    assert all((again / name).read_bytes() == (keywords / name).read_bytes() for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    with pytest.raises(StarError, match="is there already"):
        demo_keywords.main([str(again)])


def test_runner_trains_and_evaluates_an_exported_student(keywords, tmp_path):
    student = convert_cases.tiny_student(tmp_path)
    path = export(student, load_target("s3prl")(), tmp_path / "student.pt").path
    folder = tmp_path / "experiment"
    accuracy = s3prl_keywords.accuracy(["-u", "wav2vec2_local", "-k", str(path)], keywords, 2, 1, folder)
    assert 0 <= accuracy <= 1
    predicted = (folder / "test_predict.txt").read_text().split()[1::2]
    assert len(predicted) == 24
    truth = (folder / "test_truth.txt").read_text().split()[1::2]
    assert accuracy == pytest.approx(sum(map(str.__eq__, predicted, truth)) / 24)


def test_silence_and_rate_stand_in_for_soxs(tmp_path, capsys):
    launch._reported.clear()
    tone = 0.1 * np.sin(np.arange(8000) * 0.3)
    for gap, expected in ((8000, 16_000), (640, 16_640)):  # half a second is removed, 0.04 s is not
        soundfile.write(tmp_path / "a.wav", np.concatenate([tone, np.zeros(gap), tone]), 16_000)
        samples, sample_rate = launch.apply_effects_file(tmp_path / "a.wav", [["rate", "16000"], launch.SILENCE])
        assert (samples.shape, sample_rate) == ((1, expected), 16_000)
    soundfile.write(tmp_path / "quiet.wav", np.zeros(8000), 8000)
    samples, sample_rate = launch.apply_effects_file(tmp_path / "quiet.wav", [launch.SILENCE, ["rate", "16000"]])
    assert (samples.shape, sample_rate) == ((1, 16_000), 16_000)
    assert capsys.readouterr().err.count("stand-in: sox's effects") == 1


def test_effects_that_need_sox_are_refused(tmp_path):
    soundfile.write(tmp_path / "stereo.wav", [[0.1, 0.2]] * 10, 16_000)
    with pytest.raises(ValueError, match=r"'channels', '1'.* is not there without sox"):
        launch.apply_effects_file(tmp_path / "stereo.wav", [["channels", "1"]])
    with pytest.raises(ValueError, match="'reverb'"):
        launch.apply_effects_file(tmp_path / "stereo.wav", [["reverb"]])


@pytest.mark.slow
def test_distilled_student_beats_fbank(tmp_path):
    """The whole way at a small size: demo corpus, distillation, export, s3prl's train and evaluate."""

    def run(*command: str) -> None:
        finished = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr[-3000:]

    run("manifests/demo/corpus.py", str(tmp_path / "demo"), "--minutes", "15")
    run(
        "-c", TRAIN, "--config-dir", "configs", "--config-name", "demo", "common.user_dir=fairseq_star",
        f"task.data={tmp_path / 'demo'}", "task.teacher=assets/demo_teacher/demo_hubert.pt",
        f"checkpoint.save_dir={tmp_path / 'run'}", "common.tensorboard_logdir=null", "optimization.max_update=100",
    )  # fmt: skip
    corpus = tmp_path / "keywords"
    run("manifests/demo/keywords.py", str(corpus), "--train-speakers", "16", "--valid-speakers", "4",
        "--test-speakers", "8")  # fmt: skip
    run("-m", "benchmarks.s3prl_keywords", str(tmp_path / "run" / "checkpoint_best.pt"), "--corpus", str(corpus),
        "--steps", "240", "--seeds", "1", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"))  # fmt: skip
    [result] = (tmp_path / "out").glob("s3prl-keywords-*.json")
    accuracies = {name: values[0] for name, values in json.loads(result.read_text())["accuracies"].items()}
    assert accuracies["student"] > accuracies["FBANK"] + 0.05
    assert accuracies["student"] > 2 / 12
