"""Exports of fine-tuned students: fairseq's own log-probabilities, and the same texts in runtimes that decode."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.cli import main
from fairseq_star.deploy import sherpa_onnx as sherpa
from fairseq_star.deploy.targets import load_target
from fairseq_star.errors import StarError
from fairseq_star.formats import export, load_teacher, load_tuned, target
from fairseq_star.formats.head import METADATA
from fairseq_star.formats.target import target_outputs
from tests.support import convert_cases, tuned

PROGRAMS = ("torchscript", "onnx", "pt2")
TARGETS = (*PROGRAMS, "huggingface", "torchaudio", "sherpa-onnx")
FILES = {
    "torchscript": ["model.ts", "tokens.txt"],
    "onnx": ["model.onnx", "tokens.txt"],
    "sherpa-onnx": ["model.onnx", "tokens.txt"],
    "pt2": ["model.pt2", "tokens.txt"],
    "torchaudio": ["model.pt", "tokens.txt"],
    "huggingface": [
        *("README.md", "config.json", "model.safetensors", "preprocessor_config.json"),
        *("tokenizer_config.json", "vocab.json"),
    ],
}


@pytest.fixture(scope="module", autouse=True)
def shorter_comparison():
    """Half a minute in place of two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "LONG_SAMPLES", (32_000, 480_000))
        yield


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return load_tuned(tuned.write(tmp_path_factory.mktemp("student")), "export")


@pytest.fixture(scope="module")
def exports(student, tmp_path_factory):
    """The tiny fine-tuned student for every target: the target and its folder."""
    folder = tmp_path_factory.mktemp("exports")
    made = {}
    for name in TARGETS:
        made[name] = load_target(name)()
        exported = export(student, made[name], folder / name)
        assert max(exported.alone, exported.batched) < 5e-5
        made[name] = (made[name], exported)
    return made


def apart(got, expected) -> float:
    assert [one.shape for [one] in got] == [one.shape for [one] in expected]
    return max(float((one - other).abs().max()) for [one], [other] in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", TARGETS)
def test_a_folder_with_its_labels(exports, name):
    _, exported = exports[name]
    assert sorted(path.name for path in exported.path.iterdir()) == sorted(FILES[name])
    runtime = {"onnx": "onnx_asr", "sherpa-onnx": "sherpa_onnx", "huggingface": "transformers"}.get(name)
    assert bool(exported.runtimes) == (runtime is not None and importlib.util.find_spec(runtime) is not None)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=6)
@given(lengths=st.lists(st.integers(720, 9_000), min_size=1, max_size=3))
def test_log_probabilities_are_fairseqs_at_any_lengths(student, exports, name, lengths):
    toolkit, exported = exports[name]
    sources = tuned.noise(lengths)
    expected = student.reference(sources)
    assert apart(toolkit.head_outputs(exported.path, sources, padded=False), expected) < 5e-4
    if name in (*PROGRAMS, "sherpa-onnx"):  # others' group norm runs over the padded batch
        assert apart(toolkit.head_outputs(exported.path, sources, padded=True), expected) < 5e-4
    else:
        expected = target_outputs(student, sources, toolkit)
        assert apart(toolkit.head_outputs(exported.path, sources, padded=True), expected) < 5e-4


@settings(max_examples=15)
@given(length=st.integers(400, 40_000), level=st.floats(1e-3, 1), mean=st.floats(-0.01, 0.01))
def test_sherpa_onnx_restores_the_level_that_it_takes_away(student, exports, length, level, mean):
    toolkit, exported = exports["sherpa-onnx"]
    [source] = tuned.noise([length], seed=length)
    [[expected]], [[got]] = (
        outputs([level * source + mean])
        for outputs in (student.reference, lambda given: toolkit.head_outputs(exported.path, given, padded=False))
    )
    assert (got - expected).abs().max() < 2e-3
    [[other]] = student.reference([source * 30 * level])
    if level < 0.003:
        assert (other - expected).abs().max() > 0.02  # the level matters to it


@pytest.mark.parametrize("kind", list(tuned.KINDS))
@pytest.mark.parametrize("name", ["onnx", "sherpa-onnx", "huggingface"])
def test_runtimes_read_what_fairseq_reads(kind, name, tmp_path):
    toolkit = load_target(name)()
    student = load_tuned(tuned.write(tmp_path, kind), "export")
    path = export(student, toolkit, tmp_path / name).path
    # What the comparison of an export compares, so that it is not of empty texts.
    sources = toolkit.text_sources()
    outputs = student.reference(sources)
    clear = [number for number, one in enumerate(outputs) if student.head.margin(one) > 1e-3]
    texts = [student.head.text(outputs[number]) for number in clear]
    assert len(clear) >= 4
    assert len(set(texts)) >= 4
    assert any(" " in text for text in texts)
    for told in toolkit.texts(path, [sources[number] for number in clear]).values():
        assert [" ".join(text.split()) for text in told] == texts


@pytest.mark.parametrize("case", ["projection", "pre_norm"])
def test_other_students(case, tmp_path):
    student = load_tuned(tuned.write(tmp_path, case=case), "export")
    for name in ("onnx", "huggingface"):
        exported = export(student, load_target(name)(), tmp_path / name)
        assert max(exported.alone, exported.batched) < 5e-5


def test_int8_by_command_and_by_cosine(tmp_path, capsys):
    path = tuned.write(tmp_path, case="starhubert_s")
    for name in ("onnx", "sherpa-onnx"):
        main(["export", str(path), "--to", name, "--int8", "--out", str(tmp_path / name)])
        told = capsys.readouterr().out
        assert "log-probabilities against fairseq's, 1 - cosine" in told
        assert (tmp_path / name / "model.onnx").stat().st_size < 0.4 * path.stat().st_size
    toolkit = load_target("onnx")(int8=True)
    toolkit.head = load_tuned(path, "export").head
    log_probs = torch.log_softmax(torch.randn(5, 7), -1)
    assert toolkit.difference(log_probs + 9, log_probs) < 1e-6  # a number for each frame tells nothing
    assert toolkit.difference(-log_probs, log_probs) > 1


@pytest.mark.parametrize("name", TARGETS)
def test_a_head_that_comes_out_otherwise_is_refused(student, name, tmp_path):
    class Careless(load_target(name)):
        def write(self, student, path):
            student.head.proj.bias[5] += 0.01
            try:
                super().write(student, path)
            finally:
                student.head.proj.bias[5] -= 0.01

    with pytest.raises(StarError, match=r"differ by .* was not written"):
        export(student, Careless(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_runtime_that_reads_otherwise_is_refused(student, tmp_path):
    class Misread(load_target("onnx")):
        def texts(self, path, sources):
            return {"somebody": ["E" for _ in sources]}

    with pytest.raises(StarError, match=r"export: somebody reads 'E' where the ONNX file says .*; it was not written"):
        export(student, Misread(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_cannot_hold_a_head_is_one_sentence(student, tmp_path):
    for name in ("s3prl", "fairseq"):
        with pytest.raises(StarError, match=r"can hold the head of .*; take --to onnx, or `fairseq-star import`"):
            export(student, load_target(name)(), tmp_path / "out")
    with pytest.raises(StarError, match=r"is exported as a folder; give a name without \.onnx"):
        export(student, load_target("onnx")(), tmp_path / "student.onnx")


def test_what_sherpa_onnx_cannot_run_is_one_sentence(tmp_path):
    def refused(student, fault):
        with pytest.raises(StarError, match=fault):
            export(student, load_target("sherpa-onnx")(), tmp_path / "out")

    refused(convert_cases.tiny_student(tmp_path), r"sherpa-onnx runs recognizers, and .* is an encoder; fine-tune it")
    student = load_tuned(tuned.write(tmp_path), "export")
    student.sample_rate = 8_000
    refused(student, "takes audio of 16000 Hz and 320 samples a frame; .* has 8000 Hz and 320")
    student = load_tuned(tuned.write(tmp_path, case="pre_norm"), "export")
    sherpa._check(student)  # it takes normalized audio
    student.normalize = False
    refused(student, "to unit variance, which changes what .* computes")
    student = load_tuned(tuned.write(tmp_path), "export")
    student.head.tokens = tuned_tokens = student.head.tokens.__class__(("<s>", "<pad>", "</s>", "<unk>", "ƙ"), "letter")
    assert max("".join(tuned_tokens.pieces).encode()) == 0xC6
    refused(student, "for byte-level subwords")


def test_the_file_says_what_its_outputs_are(student, exports):
    for name in PROGRAMS[1:]:
        path = exports[name][1].path
        told = json.loads(load_target(name).load(path / load_target(name).file)[1][METADATA])
        assert told["kind"] == "ctc"
        assert told["labels"]["symbols"] == list(student.head.tokens.symbols)
        assert (told["inputs"], told["sample_rate"], told["downsample_rate"]) == (
            ["source", "num_samples"],
            16_000,
            320,
        )
    extra = {"fairseq_star.head": ""}
    torch.jit.load(exports["torchscript"][1].path / "model.ts", _extra_files=extra)
    assert json.loads(extra["fairseq_star.head"])["kind"] == "ctc"


def test_encoders_are_read_back_without_the_head(student, exports):
    source = tuned.noise([9_000])
    expected = student.hidden_states(source, 16_000)[0][-1]
    for name, file in (("huggingface", ""), ("torchaudio", "model.pt")):
        encoder = load_teacher(exports[name][1].path / file)
        assert np.abs(encoder.hidden_states(source, 16_000)[0][-1] - expected).max() < 1e-5
