"""``fairseq-star slice``: a file that is a student, a table of sizes, and refusals in one line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from fairseq_star.cli import main
from fairseq_star.deploy.streaming import Streams
from fairseq_star.deploy.targets import load_target
from fairseq_star.formats import export, load_student, load_teacher
from fairseq_star.slicing.make import HELD_OUT, int8_bytes
from fairseq_star.slicing.measures import star_losses, variance_kept
from fairseq_star.slicing.sample import draw_sample
from fairseq_star.slicing.shapes import count_parameters, superb_macs
from tests.support import convert_cases, tiny, tiny_teachers


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """Utterances that all are long enough to be used."""
    root = tmp_path_factory.mktemp("speech")
    for split, count, seed in (("train", 8, 0), ("valid", 4, 1)):
        audio = tiny.write_audio(root / "audio" / split, [0.6 + 0.1 * number for number in range(count)], seed=seed)
        tiny.write_tsv(root / f"{split}.tsv", audio)
    return root


@pytest.fixture(scope="module")
def sliced(teacher_path, speech, tmp_path_factory) -> Path:
    """A student's file, made by the command."""
    path = tmp_path_factory.mktemp("sliced") / "student.pt"
    main(["slice", str(teacher_path), "--data", str(speech), "--out", str(path), "--params", "0.7"])
    return path


def test_the_file_is_a_student_of_at_most_these_parameters(sliced, teacher_path):
    student, teacher = load_student(str(sliced)), load_teacher(str(teacher_path))
    assert student.num_parameters <= 0.7 * teacher.num_parameters
    assert student.num_parameters > 0.5 * teacher.num_parameters
    assert (student.config.num_layers, student.config.num_heads) == (3, 2)
    assert (student.sample_rate, student.normalize) == (16_000, False)
    assert student.hidden_states([torch.randn(8000)], 16_000)[0][-1].shape == (24, student.config.embed_dim)


def test_what_is_printed_is_what_it_is(sliced, teacher_path, speech, tmp_path, capsys):
    command = ["slice", str(teacher_path), "--data", str(speech), "--out", str(tmp_path / "again.pt")]
    main([*command, "--params", "0.7", "--json"])
    found = json.loads(capsys.readouterr().out)
    student, teacher = load_student(str(sliced)), load_teacher(str(teacher_path))
    assert found["parameters"] == student.num_parameters == count_parameters(student.config)
    assert found["macs"] == superb_macs(student.config)
    assert (found["width"], found["units"]) == (student.config.embed_dim, student.config.ffn_embed_dim)
    assert found["convolutions"] == [layer.channels for layer in student.config.conv_layers]
    held_out = draw_sample(speech / "valid.tsv", count=HELD_OUT, seed=1, normalize=False).sources
    loss, zero = star_losses(teacher.model, student.model, held_out, [1, 2, 3])
    assert found["loss"] == found["report"]["loss"] == pytest.approx(loss, rel=1e-4)
    assert found["loss_of_zero"] == pytest.approx(zero, rel=1e-5)
    assert loss < 0.5 * zero
    kept = variance_kept(teacher.model, student.model, held_out, [1, 2, 3])
    assert found["variance_kept"] == pytest.approx(kept, rel=1e-4)
    assert found["report"]["held_out"] == 4
    assert found["report"]["utterances"] == 8
    # The same command gives the same student, bit for bit.
    again = load_student(str(tmp_path / "again.pt"))
    assert all(torch.equal(value, again.weights()[key]) for key, value in student.weights().items())


def test_people_are_told_in_lines(teacher_path, speech, tmp_path, capsys):
    out = tmp_path / "student.pt"
    main(["slice", str(teacher_path), "--data", str(speech), "--out", str(out), "--utterances", "3", "--layers", "1"])
    shown = capsys.readouterr().out
    student = load_student(str(out))
    assert student.num_parameters <= 0.25 * load_teacher(str(teacher_path)).num_parameters
    assert re.search(r"^first weights sliced from the teacher's layers [123] with 3 utterances", shown)
    assert f"{out}: {student.num_parameters:,} parameters" in shown
    assert "of the teacher's variance kept" in shown


def test_a_table_of_sizes(teacher_path, speech, capsys):
    command = ["slice", str(teacher_path), "--data", str(speech), "--utterances", "4", "--sizes", "0.8", "0.5", "9e3"]
    main(command)
    table = capsys.readouterr().out.splitlines()
    main([*command, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(table) == 1 + 1 + 3 + 1
    heads = ["parameters", "GMACs", "int8 file", "width", "units", "loss", "variance kept"]
    assert table[0] == " ".join(head.rjust(13) for head in heads)
    teacher = load_teacher(str(teacher_path))
    assert "teacher" in table[1]
    assert f"{count_parameters(teacher.config) / 1e6:,.2f} M" in table[1]
    budgets = [0.8 * teacher.num_parameters, 0.5 * teacher.num_parameters, 9e3]
    for line, size, budget in zip(table[2:5], found, budgets, strict=True):
        assert size["parameters"] <= budget
        assert f"{size['parameters'] / 1e6:,.2f} M" in line
        assert f"{size['loss']:,.1f}" in line
        assert f"{100 * size['variance_kept']:.1f} %" in line
    assert found[0]["parameters"] > found[1]["parameters"] > found[2]["parameters"]
    assert found[0]["variance_kept"] > found[2]["variance_kept"]
    assert table[5].startswith("loss: STaR's on 4 held-out utterances, untrained; of zeros ")


def test_by_operations(teacher_path, speech, tmp_path, capsys):
    teacher = load_teacher(str(teacher_path))
    macs = 0.6 * superb_macs(teacher.config)
    out = str(tmp_path / "student.pt")
    main(["slice", str(teacher_path), "--data", str(speech), "--out", out, "--macs", str(macs), "--utterances", "2"])
    config = load_student(out).config
    assert 0.4 * macs < superb_macs(config) <= macs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --out FILE for one student, or --sizes"),
        (["--out", "OUT", "--sizes", "0.5"], "give --out FILE for one student, or --sizes"),
        (["--sizes", "0.5", "--params", "0.5"], "--params and --macs apply to one student"),
        (["--out", "OUT", "--split", "none"], r"none\.tsv: cannot read the manifest"),
        (["--out", "OUT", "--test-split", "none"], r"none\.tsv: cannot read the manifest"),
        (["--out", "OUT", "--utterances", "0"], "--utterances 0 must be 1 or more"),
        (["--out", "OUT", "--params", "1e9"], r"--params=1e\+09: the teacher is no larger than that"),
        (["--out", "OUT", "--params", "0.0001"], "--params=.*: even the narrowest student"),
        (["--out", "OUT", "--macs", "1"], "--macs=1: even the narrowest student"),
        (["--out", "OUT", "--layers", "2"], "--layers 2 does not divide the teacher's 3"),
        (["--out", "OUT", "--layers", "4"], "--layers 4 does not divide the teacher's 3"),
        (["--out", "OUT", "--layers", "-1"], "--layers -1 must be 1 or more"),
        (["--out", "OUT", "--layers", "0"], "--layers 0 must be 1 or more"),
        (["--out", "OUT", "--seed", "-1"], "--seed -1 must be 0 or more"),
        (["--sizes", "0.5", "1e9"], "the teacher is no larger than that"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(arguments, message, teacher_path, speech, tmp_path):
    out = tmp_path / "student.pt"
    arguments = [str(out) if part == "OUT" else part for part in arguments]
    with pytest.raises(SystemExit, match=message) as error:
        main(["slice", str(teacher_path), "--data", str(speech), *arguments])
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_with_force_alone(teacher_path, speech, tmp_path):
    out = tmp_path / "student.pt"
    out.write_text("mine")
    command = ["slice", str(teacher_path), "--data", str(speech), "--out", str(out), "--utterances", "2"]
    with pytest.raises(SystemExit, match="--force") as error:
        main(command)
    assert "\n" not in str(error.value)
    assert out.read_text() == "mine"
    main([*command, "--force"])
    load_student(str(out))


def test_no_teacher_is_one_line(speech, tmp_path):
    with pytest.raises(SystemExit, match=r"none\.pt") as error:
        main(["slice", str(tmp_path / "none.pt"), "--data", str(speech), "--sizes", "0.5"])
    assert "\n" not in str(error.value)


def test_a_streaming_student_loads_and_streams(teacher_path, speech, tmp_path):
    """Fed in pieces it gives what it gives of whole utterances in the same chunks."""
    out = str(tmp_path / "student.pt")
    main(["slice", str(teacher_path), "--data", str(speech), "--out", out, "--params", "0.7",
          "--arch", "starhubert_stream"])  # fmt: skip
    student = load_student(out)
    assert student.config.chunk_frames == (16, 4, 8, 32, 0)
    samples, _ = soundfile.read(speech / "audio" / "valid" / "utt003.wav", dtype="float32")
    audio, live = torch.from_numpy(np.tile(samples, 3)), Streams.of(student, chunk_frames=4)
    frames = torch.cat([live.feed([piece])[0] for piece in audio.split(1000)] + live.flush(), dim=1)
    student.use_chunks(4)
    expected = torch.stack(student.hidden_states([audio], 16_000)[0])
    assert (frames - expected).abs().max() < 1e-4 * expected.abs().max()


def test_no_stream_of_a_teacher_whose_audio_is_normalized(speech, tmp_path):
    teacher = tiny_teachers.hubert(tmp_path / "large.pt", normalize=True).path
    with pytest.raises(
        SystemExit, match="audio is normalized over the whole utterance, which no stream can be"
    ) as error:
        main(["slice", str(teacher), "--data", str(speech), "--sizes", "0.5", "--arch", "starhubert_stream"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["fairseq", "torchaudio"])
def test_it_is_exported_as_any_student(sliced, name, tmp_path):
    """Each export's own proof compares all hidden states."""
    assert export(load_student(str(sliced)), load_target(name)(), tmp_path / "out").path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s3prl", "huggingface", "onnx"])
def test_it_is_exported_to_all_others(sliced, name, tmp_path):
    assert export(load_student(str(sliced)), load_target(name)(), tmp_path / "out.onnx").path.exists()


@pytest.mark.slow
def test_it_is_exported_in_int8_of_about_the_size_that_was_said(teacher_path, tmp_path, capsys):
    """A student large enough for its weights to be most of the file."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra [onnx])")
    path = convert_cases.write_checkpoint(tmp_path / "wide.pt", encoder_layers=4)
    main(["export", str(path), "--to", "onnx", "--int8", "--out", str(tmp_path / "int8.onnx")])
    size = (tmp_path / "int8.onnx").stat().st_size
    assert size == pytest.approx(int8_bytes(load_student(str(path)).model), rel=0.25)
