"""``fairseq-star stream``: a file and a pipe give the student's own frames, as the audio arrives."""

import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from fairseq_star.cli import main
from fairseq_star.deploy.streaming import live
from fairseq_star.errors import StarError
from fairseq_star.runtime import names
from tests.support import ROOT, convert_cases

ENTRY = "from fairseq_star.cli import main; main()"
CHUNK, HOP = 4, 4 * 320


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return convert_cases.streaming_student(tmp_path_factory.mktemp("student"), right_context_frames=1)


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(20_000) * 3_000
    return noise.astype("<i2")


def frames_in(told: str) -> np.ndarray:
    lines = [line.split("\t") for line in told.splitlines() if not line.startswith("#")]
    assert [int(line[0]) for line in lines] == list(range(len(lines)))
    assert [float(line[1]) for line in lines] == pytest.approx([0.02 * number for number in range(len(lines))])
    return np.array([[float(value) for value in line[2].split()] for line in lines])


def expected(student, samples: np.ndarray, chunk: int) -> np.ndarray:
    student.use_chunks(chunk)
    return student.hidden_states([samples / 2.0**15], 16_000)[0][-1].numpy()


def test_a_file_gives_the_students_frames(student, samples, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    for options, chunk, width in (([], 4, 4), (["--chunk-frames", "9", "--values", "-1"], 9, 16)):
        main(["stream", student.origin, str(tmp_path / "a.wav"), *options])
        told = capsys.readouterr()
        assert np.abs(frames_in(told.out) - expected(student, samples, chunk)[:, :width]).max() < 1e-4
        assert "62 frames of 1.25 s" in told.err
        assert f"algorithmic latency {(chunk + 1) * 20 + 5:g} ms" in told.err


def test_a_file_that_states_no_length_is_heard_to_its_end(student, samples, tmp_path, capsys):
    soundfile.write(tmp_path / "piped.wav", samples, 16_000)
    whole = bytearray((tmp_path / "piped.wav").read_bytes())
    whole[4:8] = whole[40:44] = b"\xff" * 4  # as ffmpeg leaves them where it cannot go back
    (tmp_path / "piped.wav").write_bytes(whole)
    main(["stream", student.origin, str(tmp_path / "piped.wav"), "--chunk-frames", str(CHUNK)])
    assert "62 frames of 1.25 s" in capsys.readouterr().err


def test_through_a_pipe_frames_come_as_the_audio_does(student, samples):
    process = subprocess.Popen(
        [sys.executable, "-c", ENTRY, "stream", student.origin, "-"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    data, lines = samples.tobytes(), []
    window = HOP + 320 + 80
    process.stdin.write(data[: 2 * window - 1])  # half of the last sample that the first chunk waits for
    process.stdin.flush()
    time.sleep(0.5)
    process.stdin.write(data[2 * window - 1 : 2 * window])
    process.stdin.flush()
    while not (lines and lines[-1].startswith("#")):
        lines.append(process.stdout.readline().decode())
    assert lines[-1].startswith(f"# received {window / 16_000:.3f} s, real-time factor ")
    assert len(lines) == CHUNK + 1
    rest, told = process.communicate(data[2 * window :], timeout=60)
    frames = frames_in("".join(lines) + rest.decode())
    assert process.returncode == 0
    assert np.abs(frames - expected(student, samples, CHUNK)[:, :4]).max() < 1e-4
    assert b"62 frames of 1.25 s in chunks of 4: real-time factor " in told


def test_what_cannot_be_heard_ends_in_one_line(student, samples, tmp_path, monkeypatch):
    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as told:
            main(["stream", *arguments])
        assert "\n" not in str(told.value)
        return str(told.value)

    soundfile.write(tmp_path / "slow.wav", samples, 8_000)
    soundfile.write(tmp_path / "short.wav", samples[:399], 16_000)
    assert "has 8000 Hz and 1 channels; this student receives 16000 Hz" in refused(
        student.origin, str(tmp_path / "slow.wav")
    )
    assert "holds 399 samples, fewer than the 400" in refused(student.origin, str(tmp_path / "short.wav"))
    assert "no such file" in refused(student.origin, str(tmp_path / "none.wav"))
    assert "chunks of 0 frames are whole" in refused(student.origin, str(tmp_path / "slow.wav"), "--chunk-frames", "0")
    soundfile.write(tmp_path / "cut.flac", samples, 16_000)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:20_000])
    assert "cut.flac is cut short or damaged" in refused(student.origin, str(tmp_path / "cut.flac"))
    soundfile.write(tmp_path / "cut.wav", samples, 16_000)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:20_000])
    assert "cut.wav: is cut short: holds 19956 of the 40000 bytes of audio" in refused(
        student.origin, str(tmp_path / "cut.wav")
    )
    plain = convert_cases.tiny_student(tmp_path)
    assert "processes whole utterances only" in refused(plain.origin, str(tmp_path / "slow.wav"))
    with (tmp_path / "slow.wav").open("rb") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert "standard input holds a file (WAV), not raw samples" in refused(student.origin, "-")


def fed(student, data: bytes, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", ENTRY, "stream", student.origin, "-", "--chunk-frames", "4", "--values", "-1"]
    return subprocess.run([*command, *options], cwd=ROOT, input=data, capture_output=True)


@pytest.mark.parametrize(
    ("name", "channels"), [("s16le", 1), ("s16be", 1), ("s32le", 2), ("f32le", 1), ("f32le", 3), ("f32be", 1)]
)
def test_raw_samples_of_every_format_and_more_channels(student, samples, name, channels):
    kind, scale = live.RAW_FORMATS[name]
    raw = np.repeat(samples / 2.0**15 * scale, channels).astype(kind).tobytes()
    done = fed(student, raw, "--format", name, "--channels", str(channels))
    assert done.returncode == 0, done.stderr
    assert np.abs(frames_in(done.stdout.decode()) - expected(student, samples, 4)).max() < 1e-3
    assert b"mean magnitude" not in done.stderr


@pytest.mark.parametrize("taken", ["f32le", "s16be"])
def test_samples_of_another_format_are_reported(student, samples, taken):
    kind, scale = live.RAW_FORMATS[taken]
    done = fed(student, (np.tile(samples, 2) / 2.0**15 * scale).astype(kind).tobytes())
    assert b"which no speech has: are these samples s16le" in done.stderr


def test_nan_in_raw_samples_ends_in_one_line(student, samples):
    wrong = (samples / 2.0**15).astype("<f4")
    wrong[3_000] = np.nan
    done = fed(student, wrong.tobytes(), "--format", "f32le")
    assert done.returncode == 1
    assert b"stream: -, after 0.160 s: audio[0] has a sample of nan, which no recording has" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["AU", "AIFF", "RF64", "W64", "CAF", "MP3", "NIST", "WAV", "FLAC", "OGG"])
def test_files_in_standard_input_are_known_by_their_content(kind, samples, tmp_path):
    soundfile.write(tmp_path / "a", samples / 2.0**15, 16_000, format=kind)
    found = live.container_of((tmp_path / "a").read_bytes())
    assert found is not None
    assert found.upper().startswith({"RF64": "WAV"}.get(kind, kind))


@pytest.mark.parametrize("beginning", [b"ID3\x03", b"\x1aE\xdf\xa3", b"\0\0\0\x20ftypM4A ", b"RIFX"])
def test_and_those_that_libsndfile_does_not_write(beginning):
    assert live.container_of(beginning + bytes(100)) is not None


@given(st.binary(max_size=4000))
def test_raw_speech_is_rarely_taken_for_a_file(data):
    """Quiet samples, as speech begins with, never are."""
    quiet = (np.frombuffer(data[: len(data) // 2 * 2], "<i2") // 64).astype("<i2").tobytes()
    assert live.container_of(quiet) in (None, "MP3") if quiet[:1] == b"\xff" else live.container_of(quiet) is None


def test_a_file_whose_first_bytes_come_one_by_one_is_known_all_the_same(samples, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    whole = (tmp_path / "a.wav").read_bytes()
    pieces = iter([whole[:1], whole[1:3], whole[3:], b""])
    monkeypatch.setattr(live.os, "read", lambda number, size: next(pieces))
    with (tmp_path / "a.wav").open("rb") as file:
        monkeypatch.setattr(sys, "stdin", file)
        with pytest.raises(StarError, match=r"a file \(WAV\).*-ar 8000"):
            list(live._from_stdin(8_000, 1_280, "s16le", 1))


def test_a_closed_standard_input_and_options_of_raw_samples_for_a_file_are_one_line(student, samples, tmp_path):
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    command = [sys.executable, "-c", ENTRY, "stream", student.origin]
    closed = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *command, "-"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    options = [["--format", "s16le"], ["--channels", "1"]]
    given = [
        subprocess.run([*command, str(tmp_path / "a.wav"), *one], cwd=ROOT, capture_output=True, text=True)
        for one in options
    ]
    for done, message in zip(
        [closed, *given],
        ["standard input is closed", *2 * ["for raw samples through -, not for the file"]],
        strict=True,
    ):
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_the_commands_formats_are_those_that_are_read():
    assert tuple(live.RAW_FORMATS) == names.RAW_FORMATS


def test_standard_input_and_process_substitution_as_files(student, samples, tmp_path):
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    command = f"exec {sys.executable} -c '{ENTRY}' stream {student.origin}"
    for audio in (f"/dev/stdin < <(cat {tmp_path}/a.wav)", f"<(cat {tmp_path}/a.wav)"):
        done = subprocess.run(["bash", "-c", f"{command} {audio}"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert np.abs(frames_in(done.stdout) - expected(student, samples, 4)[:, :4]).max() < 1e-4


def test_bytes_that_are_no_whole_sample_are_reported(student, samples):
    done = fed(student, samples.tobytes() + b"\x01")
    assert done.returncode == 0
    assert b"the last 1 byte(s) are no whole sample of s16le with 1 channel(s) and were left out" in done.stderr
    assert np.abs(frames_in(done.stdout.decode()) - expected(student, samples, 4)).max() < 1e-4
