"""Lengths that a header states or a library guesses: what is listed is what was written and what training decodes."""

import functools
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.audio.file import check_audio, open_to_the_end, probe_audio
from fairseq_star.errors import StarError
from fairseq_star.manifest import ManifestEntry, read_manifest
from manifests import audio_folder, audio_list, resampling

QUICK = settings(deadline=None, derandomize=True)
MONO = {"samplerate": 16_000, "channels": 1}
SAYS_NOTHING = {"PAF", "PVF", "IRCAM", "XI", "SDS"}  # of its length, in any field that libsndfile tells
BEHIND_ITS_HEADER = {"FLAC", "MP3"}  # a cut there is seen by decoding alone
# Headerless; two files in one; and one that is always of 8 kHz.
KINDS = sorted(set(soundfile.available_formats()) - {"RAW", "SD2", "WVE"})
MORE_KINDS = ["WAV/PCM_U8", "WAV/PCM_24", "WAV/FLOAT", "WAV/ULAW", "WAV/MS_ADPCM", "WAV/GSM610", "AIFF/IMA_ADPCM",
              "AU/G721_32", "CAF/ALAC_16", "OGG/OPUS"]  # fmt: skip


@functools.cache
def written(kind: str, num_samples: int) -> bytes:
    """Noise as a file of a format, or of ``format/subtype``."""
    file = io.BytesIO()
    format, _, subtype = kind.partition("/")
    noise = np.random.default_rng(num_samples).uniform(-0.5, 0.5, num_samples)
    with soundfile.SoundFile(file, "w", format=format, subtype=subtype or None, **MONO) as audio:
        audio.write(noise)
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray:
    with soundfile.SoundFile(io.BytesIO(data)) as audio:
        return audio.read(audio.frames, dtype="float32")


def look_at(path: Path, **options) -> int | str:
    try:
        return probe_audio(path, **options)
    except StarError as error:
        told = str(error)
    assert told.startswith(f"{path}: ")
    return told


def convert(path: Path) -> tuple[int | str, np.ndarray | None]:
    try:
        entry = resampling.convert_into(path.parent / "copies", str(path), path.name)
    except StarError as error:
        return str(error), None
    return entry.num_samples, soundfile.read(entry.path, dtype="float32")[0]


@pytest.mark.parametrize("kind", [*KINDS, *MORE_KINDS])
def test_a_whole_file_is_listed_where_it_states_its_length_and_else_converted(tmp_path, kind):
    path = tmp_path / "x.wav"
    path.write_bytes(written(kind, 9001))
    samples = decoded(written(kind, 9001))
    for read_end in (True, False):
        found = look_at(path, read_end=read_end)
        if kind in SAYS_NOTHING:
            assert "x.wav: does not state its length" in found
        else:
            assert found == len(samples) >= 9001
    if kind != "XI":  # of 44.1 kHz whatever is written
        assert convert(path)[0] == len(samples)
        np.testing.assert_allclose(convert(path)[1], samples, atol=2 / 2**15)


@QUICK
@given(st.sampled_from(sorted({*KINDS, *MORE_KINDS} - SAYS_NOTHING)), st.sampled_from([1, 700, 9001]), st.data())
def test_a_file_cut_anywhere_is_named_or_is_as_it_was(tmp_path_factory, kind, num_samples, data):
    whole = written(kind, num_samples)
    expected = decoded(whole)
    length = data.draw(st.integers(1, len(whole) - 1) | st.integers(max(1, len(whole) - 60), len(whole) - 1))
    path = tmp_path_factory.mktemp("cut") / "x.wav"
    path.write_bytes(whole[:length])
    found = look_at(path)
    if not isinstance(found, str):
        assert found == len(expected) == len(decoded(whole[:length]))
    seen = look_at(path, read_end=False)
    assert isinstance(seen, str) or seen == len(expected)  # what was there, never a number that libsndfile made up
    if kind.split("/")[0] not in BEHIND_ITS_HEADER:
        assert seen == found
    num_converted, samples = convert(path)
    if samples is not None:
        assert num_converted == len(expected) == len(samples)
        if kind != "WAV/GSM610":  # of whose last block libsndfile makes more than there is
            np.testing.assert_allclose(samples, expected, atol=2 / 2**15)


CUT = ["WAV", "WAVEX", "RF64", "AIFF", "AU", "W64", "NIST", "OGG", "OGG/OPUS", "FLAC", "MP3", "WAV/GSM610"]


@pytest.mark.parametrize("kind", CUT)
def test_a_cut_file_is_told_as_such_everywhere(tmp_path, kind, capsys):
    whole = written(kind, 64_000)
    path = tmp_path / "a" / ("x.opus" if kind.endswith("OPUS") else f"x.{kind[:4].lower().rstrip('/')}")
    path.parent.mkdir()
    path.write_bytes(whole[: len(whole) // 2])
    for options in ([], ["--resample", str(tmp_path / "16k")], ["--headers-only"]):
        if options == ["--headers-only"] and kind in BEHIND_ITS_HEADER:
            continue
        with pytest.raises(StarError, match="no audio to list"):
            audio_folder.main(
                [str(path.parent), "--name", "t", "--out", str(tmp_path / "m"), "--ext", path.suffix, *options]
            )
        [told] = [line for line in capsys.readouterr().err.splitlines() if str(path) in line]
        assert "cut short" in told
        assert "restore it" in told
    assert not list(tmp_path.glob("16k/*"))
    num_samples = len(decoded(whole))
    problems = list(check_audio(path.parent, [ManifestEntry(path.name, num_samples)], progress=False))
    assert all("is cut short" in problem for problem in problems)
    assert len(problems) == (kind not in BEHIND_ITS_HEADER)


def without_total(flac: bytes) -> bytes:
    """As ffmpeg writes FLAC to a pipe: 36 bits of STREAMINFO, the total number of samples, are zero."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]


def without_xing(mp3: bytes) -> bytes:
    """Without the first frame, which states the number of frames; the second begins as the others do."""
    start = mp3.index(b"\xff", 24)
    while mp3[start + 1] & 0xE0 != 0xE0 or mp3[start + 1] != mp3[1]:
        start = mp3.index(b"\xff", start + 1)
    return mp3[start:]


def stating(data: bytes, name: bytes, size: int, fields: str) -> bytes:
    """With another size behind a chunk's name (in AU: the third number)."""
    place = data.index(name) + (8 if name == b".snd" else len(name))
    return data[:place] + struct.pack(fields, size) + data[place + struct.calcsize(fields) :]


STREAMED = {
    **{f"WAV {size:x}": stating(written("WAV", 9001), b"data", size, "<I")
       for size in (0, 0x7F000000, 0x7FFFF000, 2**31, 2**32 - 1)},
    "WAV unclosed": stating(stating(written("WAV", 9001), b"RIFF", 0, "<I"), b"data", 0, "<I"),
    "WAVEX 0": stating(written("WAVEX", 9001), b"data", 0, "<I"),
    "AIFF 0": stating(written("AIFF", 9001), b"SSND", 0, ">I"),
    "AIFF": stating(written("AIFF", 9001), b"SSND", 0x7F000008, ">I"),
    "AU": stating(written("AU", 9001), b".snd", 2**32 - 1, ">I"),
    "W64": stating(written("W64", 9001), bytes.fromhex("64617461f3acd3118cd100c04f8edb8a"), 2**64 - 1, "<Q"),
    "NIST": written("NIST", 9001).replace(b"sample_count", b"simple_count"),
    "FLAC": without_total(written("FLAC", 9001)),
}  # fmt: skip


@pytest.mark.parametrize("more", [b"", b"LIST\4\0\0\0INFO", b"LIST\3\0\0\0abc\0id3 \0\0\0\0"])
@pytest.mark.parametrize("kind", ["WAV", "AIFF"])
def test_an_empty_file_is_told_as_empty(tmp_path, kind, more):
    """Also where other chunks follow, which are no audio."""
    path = tmp_path / "x.wav"
    more = more if kind == "WAV" else more.replace(b"\4\0\0\0", b"\0\0\0\4").replace(b"\3\0\0\0", b"\0\0\0\3")
    path.write_bytes(written(kind, 0) + more)
    assert "x.wav: holds no samples" in look_at(path)
    assert "x.wav: holds no samples" in convert(path)[0]


@pytest.mark.parametrize("kind", STREAMED)
def test_a_file_written_to_a_pipe_is_named_and_converted_whole(tmp_path, kind):
    path = tmp_path / "x.wav"
    path.write_bytes(STREAMED[kind])
    for read_end in (True, False):
        assert "does not state its length, as when it was written to a pipe" in look_at(path, read_end=read_end)
    num_samples, samples = convert(path)
    assert num_samples == 9001
    np.testing.assert_allclose(samples, decoded(written(kind.split()[0], 9001)), atol=2 / 2**15)


def test_a_manifest_states_the_length_of_a_file_that_does_not(tmp_path):
    (tmp_path / "x.wav").write_bytes(STREAMED["WAV ffffffff"])
    (tmp_path / "x.flac").write_bytes(STREAMED["FLAC"])
    assert list(check_audio(tmp_path, [ManifestEntry("x.wav", 9001)], progress=False)) == []
    [problem] = check_audio(tmp_path, [ManifestEntry("x.wav", 9000)], progress=False)
    assert "holds 9001 samples but the manifest says 9000" in problem
    [problem] = check_audio(tmp_path, [ManifestEntry("x.flac", 9001)], progress=False)  # no sf.read reads it
    assert "does not state its length" in problem


def test_a_table_states_it_too(tmp_path):
    (tmp_path / "x.wav").write_bytes(STREAMED["WAV ffffffff"])
    (tmp_path / "all.csv").write_text("file_path,length\nx.wav,9001\n")
    assert audio_list.main([str(tmp_path / "all.csv"), "--name", "all", "--out", str(tmp_path / "m")]) == 0
    assert read_manifest(tmp_path / "m" / "all.tsv")[1] == [("x.wav", 9001)]


@functools.cache
def variable_mp3(first: str) -> tuple[bytes, int]:
    """16 kHz MP3 of a variable bit rate that begins so, without a Xing header; what it decodes to."""
    loud, silence = np.random.default_rng(0).uniform(-0.5, 0.5, 40_000), np.zeros(80_000)
    file = io.BytesIO()
    options = {"bitrate_mode": "VARIABLE", "compression_level": 0.9} if soundfile.__version__ >= "0.13" else {}
    with soundfile.SoundFile(file, "w", format="MP3", **MONO, **options) as audio:
        audio.write(np.concatenate([loud, silence] if first == "loud" else [silence, loud]))
    # Of an unknown length there is nothing to cut the encoder's own delay and padding by: whole frames of 576.
    data = file.getvalue()
    [num_frames] = struct.unpack_from(">I", data, data.index(b"Xing") + 8)
    return without_xing(data), 576 * num_frames


@QUICK
@given(st.sampled_from(["loud", "silent"]), st.sampled_from([0, 300, 200_000]), st.booleans(), st.booleans())
def test_a_guessed_length_is_not_listed_and_all_is_converted(tmp_path_factory, first, tag, tags_twice, last_tag):
    """libsndfile guesses by the first frame's size: too many samples, or too few, and then reads no more than those."""
    data, expected = variable_mp3(first)
    begin = b"ID3\3\0\0" + bytes([0, tag >> 14, tag >> 7 & 127, tag & 127]) + bytes(tag) if tag else b""
    path = tmp_path_factory.mktemp("mp3") / "x.mp3"
    path.write_bytes(begin * (1 + tags_twice) + data + (b"TAG" + bytes(125)) * last_tag)
    for read_end in (True, False):
        for told in (None, expected, soundfile.info(path).frames):
            assert "does not state its length" in look_at(path, read_end=read_end, stated_samples=told)
    assert convert(path)[0] == expected


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_stated_length_of_mp3_is_found_in_every_version(tmp_path, rate, channels):
    soundfile.write(tmp_path / "x.mp3", np.random.default_rng(0).uniform(-0.5, 0.5, (rate, channels)), rate)
    with open_to_the_end(tmp_path / "x.mp3") as (audio, num_samples):
        assert num_samples == rate == len(audio.read(2 * rate))


@QUICK
@given(st.integers(1, 20_000))
def test_flac_of_unknown_length_that_is_cut_is_converted_to_a_whole_frame_or_not_at_all(tmp_path_factory, cut):
    data = STREAMED["FLAC"]
    path = tmp_path_factory.mktemp("flac") / "x.flac"
    path.write_bytes(data[: len(data) - min(cut, len(data) - 1)])
    num_samples, samples = convert(path)
    assert samples is None or num_samples % 4096 == 0


def test_a_reader_that_stops_early_leaves_no_thread_behind(tmp_path):
    path = tmp_path / "x.mp3"
    path.write_bytes(variable_mp3("loud")[0])
    with open_to_the_end(path) as (audio, num_samples):
        assert num_samples is None
        audio.read(10)
    with pytest.raises(StarError, match="cannot be read as audio"), open_to_the_end(_without_audio(path)):
        pass


def _without_audio(path: Path) -> Path:
    path.write_bytes(b"ID3" + bytes(1000))
    return path
