"""Audio through a pipe: a FIFO, process substitution, /dev/stdin; the same samples as from the file."""

import io
import os
import struct
import threading
import time

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairseq_star.audio.file import check_audio, open_audio, open_to_the_end, probe_audio
from fairseq_star.errors import StarError
from fairseq_star.manifest import ManifestEntry, read_manifest
from manifests import audio_list, labels

SAMPLES = (0.1 * np.random.default_rng(0).standard_normal(20_000)).astype("float32")
FORMATS = {
    "WAV": "PCM_16", "WAVEX": "PCM_24", "RF64": "FLOAT", "W64": "PCM_16", "AU": "PCM_16", "AIFF": "PCM_16",
    "CAF": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS", "MP3": None, "NIST": "PCM_16", "RIFX": "PCM_16",
}  # fmt: skip


def file_of(kind: str) -> bytes:
    file = io.BytesIO()
    endian, kind_of_file = ("BIG", "WAV") if kind == "RIFX" else (None, kind)
    soundfile.write(file, SAMPLES, 16_000, format=kind_of_file, subtype=FORMATS[kind], endian=endian)
    return file.getvalue()


@pytest.fixture
def pipe(tmp_path):
    """A function that sends pieces through a named pipe, and returns its path."""
    threads = []

    def sent(*pieces: bytes | threading.Event) -> str:
        path = tmp_path / f"pipe{len(threads)}"
        os.mkfifo(path)

        def write() -> None:
            with open(path, "wb", buffering=0) as file:
                for piece in pieces:
                    try:
                        piece.wait(30) if isinstance(piece, threading.Event) else file.write(piece)
                    except BrokenPipeError:
                        return

        threads.append(threading.Thread(target=write))
        threads[-1].start()
        return str(path)

    yield sent
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def read_all(path: str) -> np.ndarray:
    pieces, held = [], 0
    with open_to_the_end(path) as (audio, stated):
        while wanted := 1280 if stated is None else min(1280, stated - held):
            pieces.append(audio.read(wanted, dtype="float32"))
            held += len(pieces[-1])
            if len(pieces[-1]) < wanted:
                break
    assert stated is None or held == stated
    return np.concatenate(pieces)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_pipe_gives_the_files_samples(kind, pipe, tmp_path):
    whole = file_of(kind)
    (tmp_path / "file").write_bytes(whole)
    expected = read_all(str(tmp_path / "file"))

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.integers(1, 200), max_size=6))
    def holds(places):
        cuts = [0, *sorted(set(places)), len(whole)]
        assert np.array_equal(read_all(pipe(*map(whole.__getitem__, map(slice, cuts, cuts[1:])))), expected)

    holds()


@pytest.mark.parametrize("size", [0, 2**32 - 1, 0x7FFFF000])
def test_wav_of_unknown_size_with_a_chunk_before_its_audio_comes_as_it_is_written(size, pipe):
    """As ffmpeg and arecord write it; the first samples are there while the rest is still to come."""
    whole = file_of("WAV")
    place = whole.index(b"data")
    note = b"LIST" + struct.pack("<I", 26) + b"INFOISFT\x0e\0\0\0Lavf58.29.100\0"
    head = whole[:place] + note + b"data" + struct.pack("<I", size)
    arrived = threading.Event()
    path = pipe(head + whole[place + 8 : place + 8 + 4000], arrived, whole[place + 8 + 4000 :])
    with open_to_the_end(path) as (audio, stated):
        first = audio.read(1000, dtype="float32")
        assert not arrived.is_set()
        assert stated is None
        assert len(first) == 1000
        arrived.set()
        rest = [audio.read(4096, dtype="float32") for _ in range(6)]
    assert np.abs(np.concatenate([first, *rest]) - SAMPLES).max() < 1e-4


def test_a_reader_that_stops_early_does_not_wait_for_the_writer(pipe):
    never = threading.Event()
    start = time.monotonic()
    with open_to_the_end(pipe(file_of("WAV")[:8000], never)) as (audio, _):
        audio.read(100)
    assert time.monotonic() - start < 10
    never.set()


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_pipe_that_ends_too_early(kind, pipe):
    whole = file_of(kind)
    with pytest.raises((StarError, soundfile.SoundFileError, AssertionError)):
        read_all(pipe(whole[: len(whole) // 2]))


def test_a_pipe_that_brings_nothing_or_no_audio(pipe):
    with pytest.raises(StarError, match="nothing came through this pipe"):
        read_all(pipe())
    with pytest.raises(StarError, match="cannot be read as audio"):
        read_all(pipe(b"no audio" * 1000))


def test_what_is_read_again_and_again_is_no_pipe(tmp_path):
    """It would wait for ever: nothing writes into this one."""
    os.mkfifo(tmp_path / "pipe")
    for read in (probe_audio, lambda path: open_audio(path).__enter__()):
        with pytest.raises(StarError, match="is a pipe, which can be read only once"):
            read(tmp_path / "pipe")
    [problem] = check_audio(tmp_path, [ManifestEntry("pipe", 1)], progress=False)
    assert "is a pipe" in problem


def test_lists_and_manifests_of_audio_through_a_pipe(pipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.flac", SAMPLES, 16_000)
    listed = b"".join(f"{number}.flac\n".encode() for number in range(3))
    assert audio_list.main([pipe(listed), "--out", str(tmp_path / "m"), "--name", "all"]) == 0
    root, entries = read_manifest(tmp_path / "m" / "all.tsv")
    assert root == str(tmp_path)
    assert [entry.path for entry in entries] == ["0.flac", "1.flac", "2.flac"]
    manifest = (tmp_path / "m" / "all.tsv").read_bytes()
    assert audio_list.main([pipe(manifest[:20], manifest[20:]), "--out", str(tmp_path / "n"), "--name", "all"]) == 0
    assert (tmp_path / "n" / "all.tsv").read_bytes() == manifest
    os.mkfifo(tmp_path / "audio.flac")
    out = ["--out", str(tmp_path / "o"), "--name", "all", "--resample", str(tmp_path / "16k")]
    assert audio_list.main([pipe(listed + b"audio.flac\n"), *out]) == 1
    assert "is a pipe" in capsys.readouterr().err
    texts = pipe(b"".join(f"{number} hello\n".encode() for number in range(3)))
    assert labels.main([str(tmp_path / "m" / "all.tsv"), "--text", texts, "--out", str(tmp_path / "m")]) == 0
