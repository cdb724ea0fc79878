"""Exports of students that give each utterance one label or one vector: fairseq's own scores, whatever the batch."""

import sys

import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.cli import main
from fairseq_star.deploy.classify import Classifier, classify, load_classifier
from fairseq_star.deploy.targets import load_target
from fairseq_star.encoder.pooling import UtteranceClassifier
from fairseq_star.errors import StarError
from fairseq_star.formats import export, load_tuned, target
from fairseq_star.formats.classification import embed
from tests.support import classifiers, convert_cases, tuned

PROGRAMS = {"torchscript": "model.ts", "onnx": "model.onnx", "pt2": "model.pt2"}


@pytest.fixture(scope="module", autouse=True)
def shorter_comparison():
    """Two seconds in place of two minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "LONG_SAMPLES", (32_000,))
        yield


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return load_tuned(classifiers.write(tmp_path_factory.mktemp("student")), "export")


@pytest.fixture(scope="module")
def exports(student, tmp_path_factory):
    """The target and folder of each program."""
    folder, made = tmp_path_factory.mktemp("exports"), {}
    for name in PROGRAMS:
        toolkit = load_target(name)()
        exported = export(student, toolkit, folder / name)
        assert max(exported.alone, exported.batched) < 5e-5
        made[name] = (toolkit, exported.path)
    return made


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    path = tmp_path_factory.mktemp("audio") / "a.wav"
    soundfile.write(path, tuned.noise([16_000])[0].numpy() * 0.1, 16_000, subtype="FLOAT")
    return path


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4), extra=st.integers(0, 5), seed=st.integers(0, 99))
def test_pooling_depends_on_neither_padding_nor_batch(lengths, extra, seed):
    generator = torch.Generator().manual_seed(seed)
    head = UtteranceClassifier(3, 4, 2)
    head.pooling.weights.data.normal_()
    states = torch.randn(3, len(lengths), max(lengths) + extra + 1, 4, generator=generator)
    pooled = head.pooling(states, torch.tensor(lengths))
    shares = torch.softmax(head.pooling.weights, 0)
    for number, length in enumerate(lengths):
        expected = torch.zeros(4)
        if length:
            expected = sum(share * state[number, :length].mean(0) for share, state in zip(shares, states, strict=True))
        assert torch.allclose(pooled[number], expected, atol=1e-5)


@settings(max_examples=5)
@given(lengths=st.lists(st.integers(720, 9_000), min_size=1, max_size=3))
def test_exports_give_fairseqs_scores_and_labels_at_any_lengths(student, exports, lengths):
    sources = tuned.noise(lengths)
    expected = student.reference(sources)
    for toolkit, path in exports.values():
        for padded in (False, True):
            got = toolkit.head_outputs(path, sources, padded=padded)
            for [one], [other] in zip(got, expected, strict=True):
                assert one.shape == other.shape == (1, len(classifiers.LABELS))
                assert float((one - other).abs().max()) < 5e-4
            clear = [number for number, one in enumerate(expected) if student.head.margin(one) > 1e-3]
            assert [student.head.text(got[n]) for n in clear] == [student.head.text(expected[n]) for n in clear]


def test_labels_lie_beside_the_program(exports):
    for name, (_, path) in exports.items():
        assert sorted(file.name for file in path.iterdir()) == sorted(["labels.txt", PROGRAMS[name]])
        assert (path / "labels.txt").read_text(encoding="utf-8").splitlines() == classifiers.LABELS


@pytest.mark.parametrize("case", ["projection", "pre_norm"])
def test_other_students(case, tmp_path):
    student = load_tuned(classifiers.write(tmp_path, case), "export")
    exported = export(student, load_target("onnx")(), tmp_path / "onnx")
    assert max(exported.alone, exported.batched) < 5e-5


def test_a_head_that_comes_out_otherwise_is_refused(student, tmp_path):
    class Careless(load_target("onnx")):
        def write(self, student, path):
            student.head.classifier.pooling.weights[1] += 0.5
            try:
                super().write(student, path)
            finally:
                student.head.classifier.pooling.weights[1] -= 0.5

    with pytest.raises(StarError, match=r"differ by .* was not written"):
        export(student, Careless(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_embeddings_are_the_mean_over_valid_frames(tmp_path):
    plain, fine_tuned = convert_cases.tiny_student(tmp_path), load_tuned(classifiers.write(tmp_path), "export")
    sources = tuned.noise([9_000, 5_000])
    for name, student in (("plain", plain), ("tuned", fine_tuned)):
        embed(student)
        toolkit = load_target("onnx")()
        path = export(student, toolkit, tmp_path / name).path
        shares = torch.softmax(student.head.pooling.weights, 0)
        assert (shares == shares[0]).all() == (name == "plain")
        states = student.hidden_states(sources, 16_000)
        for [got], one in zip(toolkit.head_outputs(path, sources, padded=True), states, strict=True):
            expected = sum(share * state.mean(0) for share, state in zip(shares, one, strict=True))
            assert float((got[0] - expected).abs().max()) < 1e-4
    with pytest.raises(StarError, match="is a recognizer; --embedding is for encoders and classifiers: leave it out"):
        embed(load_tuned(tuned.write(tmp_path), "export"))
    streaming = convert_cases.streaming_student(tmp_path)
    embed(streaming)
    with pytest.raises(StarError, match="streams, and heads are of whole utterances; leave --embedding out"):
        export(streaming, load_target("onnx")(), tmp_path / "stream-onnx")


def test_by_command(exports, tmp_path, wav, capsys):
    checkpoint = classifiers.write(tmp_path)
    main(["export", str(checkpoint), "--to", "onnx", "--int8", "--out", str(tmp_path / "int8")])
    assert "log-probabilities of labels against fairseq's, 1 - cosine" in capsys.readouterr().out
    main(["export", str(checkpoint), "--to", "onnx", "--embedding", "--out", str(tmp_path / "vector")])
    assert "embedding against the student's" in capsys.readouterr().out
    told = set()
    for model in (checkpoint, exports["onnx"][1], exports["pt2"][1] / "model.pt2"):
        main(["classify", str(model), str(wav)])
        told.add(capsys.readouterr().out)
    [line] = told
    label, probability = line.rstrip("\n").split("\t")
    assert label in classifiers.LABELS
    assert 1 / len(classifiers.LABELS) < float(probability) <= 1
    main(["classify", str(checkpoint), str(wav), str(wav)])
    assert capsys.readouterr().out == f"{wav}\t{line}" * 2


def test_long_audio_is_the_mean_over_all_frames(student, monkeypatch):
    monkeypatch.setattr("fairseq_star.deploy.classify.AT_ONCE", 2)
    head = student.head

    def run(source, num_samples):
        states = source.unfold(1, 320, 320)[..., : student.config.embed_dim]  # a frame of every 320 samples
        return [*head([states] * len(head.classifier.pooling.weights), num_samples // 320), num_samples // 320]

    classifier = Classifier(run, head.labels, 16_000, 320)
    [samples] = tuned.noise([5 * 16_000 + 640])
    whole = run(samples[None], torch.tensor([len(samples)]))[0][0]
    assert float((classifier.log_probs(samples) - whole).abs().max()) < 1e-4
    assert classifier.log_probs(samples[:300]) is None


def test_faults_are_one_sentence(exports, tmp_path, wav, monkeypatch):
    checkpoint = classifiers.write(tmp_path)
    short = tmp_path / "short.wav"
    soundfile.write(short, [0.1] * 300, 16_000)

    def refused(fault, call, *arguments):
        with pytest.raises(StarError, match=fault):
            call(*arguments)

    refused("classify: .* holds 300 samples, fewer than a frame takes", lambda: list(classify(checkpoint, [short])))
    recognizer = tuned.write(tmp_path)
    refused(r"of another kind \(ctc\); classify runs students fine-tuned with configs/finetune_cl", load_classifier,
            recognizer)  # fmt: skip
    refused("has a head of another kind .classification.; transcribe runs", main_error, "transcribe", checkpoint, wav)
    refused("has a head of another kind", main_error, "transcribe", exports["onnx"][1], wav)
    refused("classify: .* is an encoder; fine-tune it first", load_classifier, tmp_path / "tiny.pt")
    refused("--dictionary is for CTC", load_tuned, checkpoint, "export", "dict.txt")
    monkeypatch.setattr(sys, "stdin", None)
    refused("classify: standard input is closed", lambda: list(classify(checkpoint, ["-"])))
    state = torch.load(checkpoint)
    state["task_state"].pop("labels")
    torch.save(state, tmp_path / "unlabelled.pt")
    refused("holds no labels; give a checkpoint", load_tuned, tmp_path / "unlabelled.pt", "export")
    state["task_state"]["labels"] = ["one", "two"]
    torch.save(state, tmp_path / "fewer.pt")
    refused("its head has 3 labels and its record 2", load_tuned, tmp_path / "fewer.pt", "export")


def main_error(command, model, file):
    from fairseq_star.deploy.transcribe import transcribe

    assert command == "transcribe"
    list(transcribe(str(model), [str(file)]))


def test_targets_of_recognizers_hold_no_labels(student, tmp_path):
    for name in ("huggingface", "torchaudio", "sherpa-onnx"):
        with pytest.raises(StarError, match=r"can hold the head of .*; take --to onnx"):
            export(student, load_target(name, check=False)(), tmp_path / name)
