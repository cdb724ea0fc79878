"""``fairseq-star transcribe``: the greedy text of fairseq's log-probabilities, or one sentence on audio or model."""

import io
import sys

import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_star.cli import main
from fairseq_star.deploy import transcribe as module
from fairseq_star.deploy.targets import load_target
from fairseq_star.deploy.transcribe import Recognizer, load_recognizer
from fairseq_star.errors import StarError
from fairseq_star.formats import export, load_tuned, target
from fairseq_star.formats.ctc import Tokens
from tests.support import convert_cases, tuned


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint ``tuned.pt``, folders ``onnx``, ``pt2`` and ``sherpa-onnx``, and audio files."""
    folder = tmp_path_factory.mktemp("transcribe")
    student = load_tuned(tuned.write(folder), "export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "LONG_SAMPLES", (32_000,))
        for name in ("onnx", "pt2", "sherpa-onnx"):
            export(student, load_target(name)(), folder / name)
    for name, length in (("a", 16_000), ("b", 9_999), ("tenth", 1_600)):
        write(folder / f"{name}.wav", length)
    return folder


def write(path, length: int, rate: int = 16_000, channels: int = 1) -> torch.Tensor:
    samples = 0.1 * tuned.noise([length * channels], seed=length)[0].reshape(-1, channels)
    soundfile.write(path, samples.numpy(), rate, subtype="FLOAT")
    return samples


def expected(folder, name: str) -> str:
    student = load_tuned(folder / "tuned.pt", "export")
    samples = torch.from_numpy(soundfile.read(folder / f"{name}.wav", dtype="float32")[0])
    return student.head.text(student.reference([samples])[0])


@pytest.mark.parametrize("model", ["tuned.pt", "onnx", "onnx/model.onnx", "pt2"])
def test_the_text_is_that_of_fairseqs_log_probabilities(folder, model, capsys):
    files = [str(folder / f"{name}.wav") for name in ("a", "b", "tenth")]
    main(["transcribe", str(folder / model), *files])
    told = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert told == [[file, expected(folder, name)] for file, name in zip(files, ("a", "b", "tenth"), strict=True)]
    assert len({text for _, text in told}) == 3
    main(["transcribe", str(folder / model), files[0]])
    assert capsys.readouterr().out == expected(folder, "a") + "\n"


def test_a_file_through_standard_input(folder, capsys, monkeypatch):
    class Stdin:
        buffer = io.BytesIO((folder / "a.wav").read_bytes())

    monkeypatch.setattr(sys, "stdin", Stdin)
    main(["transcribe", str(folder / "onnx"), "-"])
    assert capsys.readouterr().out == expected(folder, "a") + "\n"
    for data in (b"", b"\0" * 4000):
        Stdin.buffer = io.BytesIO(data)
        with pytest.raises(
            SystemExit, match=r"transcribe: standard input: [^;]*; pipe a WAV, FLAC or Ogg file into it$"
        ):
            main(["transcribe", str(folder / "onnx"), "-"])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit, match="standard input is closed"):
        main(["transcribe", str(folder / "onnx"), "-"])


def test_audio_of_another_form_is_named_or_converted(folder, capsys):
    write(folder / "fast.wav", 24_000, rate=48_000, channels=2)
    command = ["transcribe", str(folder / "onnx"), str(folder / "fast.wav")]
    with pytest.raises(SystemExit, match=r"fast\.wav has 48000 Hz and 2 channel\(s\); .* convert it with --resample"):
        main(command)
    main([*command, "--resample"])
    import torchaudio

    samples = torch.from_numpy(soundfile.read(folder / "fast.wav", dtype="float32")[0]).mean(1)
    student = load_tuned(folder / "tuned.pt", "export")
    outputs = student.reference([torchaudio.functional.resample(samples, 48_000, 16_000)])[0]
    assert capsys.readouterr().out == student.head.text(outputs) + "\n"


def test_audio_that_is_none_is_one_sentence(folder):
    def told(path) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["transcribe", str(folder / "onnx"), str(path)])
        assert len(str(ended.value).splitlines()) == 1
        return str(ended.value)

    write(folder / "empty.wav", 0)
    assert "holds no samples" in told(folder / "empty.wav")
    (folder / "nothing.wav").write_bytes(b"")
    assert "is empty" in told(folder / "nothing.wav")
    assert "no such file" in told(folder / "gone.wav")
    (folder / "cut.wav").write_bytes((folder / "a.wav").read_bytes()[:9_000])
    assert "cut short" in told(folder / "cut.wav")
    write(folder / "short.wav", 399)
    assert "holds 399 samples, fewer than a frame takes" in told(folder / "short.wav")
    soundfile.write(folder / "nan.wav", [float("nan")] * 900, 16_000, subtype="FLOAT")
    assert "has a sample of nan, which no recording has" in told(folder / "nan.wav")


def test_a_model_that_is_none_is_one_sentence(folder, tmp_path):
    def told(model, *more) -> str:
        with pytest.raises(StarError) as error:
            load_recognizer(str(model), *more)
        assert len(str(error.value).splitlines()) == 1
        return str(error.value)

    assert "is an encoder; fine-tune it first" in told(convert_cases.write_checkpoint(tmp_path / "student.pt"))
    assert "holds no model.onnx and no model.pt2" in told(tmp_path)
    assert "was written for sherpa-onnx; give one that was exported --to onnx" in told(folder / "sherpa-onnx")
    assert "--dictionary is for checkpoints" in told(folder / "onnx", "dict.ltr.txt")
    for suffix in ("onnx", "pt2"):
        (tmp_path / f"damaged.{suffix}").write_bytes((folder / suffix / f"model.{suffix}").read_bytes()[:5_000])
        assert "cannot be loaded (" in told(tmp_path / f"damaged.{suffix}")
    encoder = tmp_path / "encoder.onnx"
    export(convert_cases.tiny_student(tmp_path), load_target("onnx")(), encoder)
    assert "is an exported encoder without a head" in told(encoder)


@given(length=st.integers(400, 60_000))
def test_windows_of_long_audio_join_without_a_seam(length):
    """A program whose frame is the sum of its own 400 samples gives the same in windows as at once."""

    def run(source, num_samples):
        frames = source[0, : int(num_samples)].double().unfold(0, 400, 320).sum(1)
        return [frames[None, :, None], torch.tensor([len(frames)])]

    with pytest.MonkeyPatch.context() as patch:
        for name, seconds in (("AT_ONCE", 1), ("WINDOW", 1), ("CONTEXT", 0.2)):
            patch.setattr(module, name, seconds)
        recognizer = Recognizer(run, Tokens(("<s>",), "letter"), 16_000, 320)
        samples = torch.arange(length).float() % 997
        whole = run(samples[None], torch.tensor([length]))[0][0]
        assert torch.equal(recognizer.log_probs(samples), whole)


@pytest.mark.slow
def test_ten_minutes(folder, tmp_path):
    samples = 0.1 * tuned.noise([9_600_000])[0]
    for model in ("tuned.pt", "onnx"):
        log_probs = load_recognizer(str(folder / model)).log_probs(samples)
        assert len(log_probs) == (9_600_000 - 400) // 320 + 1
