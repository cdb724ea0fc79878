"""The utterances that slicing is computed from: by seed alone, what is of no use passed over and told."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE
from fairseq_star.slicing import sample as sampling
from fairseq_star.slicing.sample import draw_sample
from tests.support import tiny


def noise(seconds: float, seed: int = 0, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((int(seconds * SAMPLE_RATE), channels)) * 0.1


BAD = {
    "text.wav": (lambda path: path.write_text("no audio"), "cannot be read ("),
    "gone.wav": (lambda path: path.unlink(missing_ok=True), "cannot be read ("),
    "empty.wav": (lambda path: soundfile.write(path, noise(0), SAMPLE_RATE), "is shorter than 0.5 s"),
    "short.wav": (lambda path: soundfile.write(path, noise(0.49), SAMPLE_RATE), "is shorter than 0.5 s"),
    "rate.wav": (lambda path: soundfile.write(path, noise(2), 8_000), "is sampled at 8000 Hz instead of 16000"),
    "stereo.wav": (lambda path: soundfile.write(path, noise(2, channels=2), SAMPLE_RATE), "has 2 channels instead of"),
    "silent.wav": (lambda path: soundfile.write(path, noise(2) * 0, SAMPLE_RATE), "is silent"),
    "nan.wav": (
        lambda path: soundfile.write(path, np.append(noise(2)[:, 0], np.nan), SAMPLE_RATE, subtype="FLOAT"),
        "has values that are not finite",
    ),
}


def manifest(folder: Path, good: int, bad: bool = True) -> Path:
    """``good`` usable files, and one of each kind that is not."""
    audio = folder / "audio"
    audio.mkdir(parents=True)
    names = [f"good{number}.wav" for number in range(good)]
    for number, name in enumerate(names):
        soundfile.write(audio / name, noise(0.5 + 0.25 * number, seed=number), SAMPLE_RATE)
    if bad:
        for name, (write, _) in BAD.items():
            write(audio / name)
        names += list(BAD)
    path = folder / "train.tsv"
    path.write_text("\n".join([str(audio), *(f"{name}\t16000" for name in names)]) + "\n")
    return path


def draw(path: Path, **options):
    return draw_sample(path, **{"count": 100, "seed": 1, "normalize": False, **options})


def test_what_is_of_no_use_is_told_and_the_rest_is_taken(tmp_path):
    sample = draw(manifest(tmp_path, 5))
    assert sorted(sample.names) == [f"good{number}.wav" for number in range(5)]
    told = dict(line.split(": ", 1) for line in sample.skipped)
    assert set(told) == set(BAD)
    for name, (_, reason) in BAD.items():
        assert told[name].startswith(reason), told[name]
        assert "\n" not in told[name]
        assert str(tmp_path) not in told[name], "the path stands before it"
    for name, source in zip(sample.names, sample.sources, strict=True):
        expected, _ = soundfile.read(tmp_path / "audio" / name, dtype="float32")
        assert source.dtype == torch.float32
        assert np.array_equal(source, expected)


def test_the_seed_alone_decides(tmp_path):
    path = manifest(tmp_path, 12)
    once = draw(path, count=4)
    np.random.seed(0)
    torch.manual_seed(7)
    again = draw(path, count=4)
    assert once.names == again.names
    assert once.skipped == again.skipped
    assert all(torch.equal(a, b) for a, b in zip(once.sources, again.sources, strict=True))
    assert len(set(once.names)) == 4
    others = {tuple(draw(path, count=4, seed=seed).names) for seed in range(5)}
    assert len(others) > 1
    # Fewer are the first ones of more: a student computed from 64 has heard what one computed from 32 has.
    assert draw(path, count=8).names[:4] == once.names


def test_normalized_where_the_models_audio_is(tmp_path):
    path = manifest(tmp_path, 3, bad=False)
    plain, normalized = draw(path), draw(path, normalize=True)
    for one, other in zip(plain.sources, normalized.sources, strict=True):
        assert other.mean().abs() < 1e-5
        assert other.var(unbiased=False).item() == pytest.approx(1, rel=2e-3)  # but for eps
        assert torch.allclose(other, (one - one.mean()) / one.std(unbiased=False), atol=5e-3)


def test_of_a_long_one_its_first_seconds(tmp_path):
    path = manifest(tmp_path, 4, bad=False)
    sample = draw(path, seconds=0.75)
    assert {len(source) for source in sample.sources} == {8_000, 12_000}
    whole = dict(zip(*(getattr(draw(path), name) for name in ("names", "sources")), strict=True))
    for name, source in zip(sample.names, sample.sources, strict=True):
        assert torch.equal(source, whole[name][: len(source)])


def test_none_of_use_is_one_line_that_names_the_manifest(tmp_path):
    path = manifest(tmp_path, 0)
    with pytest.raises(StarError) as error:
        draw(path)
    told = str(error.value)
    assert told.startswith(f"{path}: none of the 8 files opened can be used to slice a student (")
    assert "\n" not in told


def test_no_manifest_is_one_line_too(tmp_path):
    with pytest.raises(StarError, match=r"cannot read the manifest"):
        draw(tmp_path / "none.tsv")


def test_it_does_not_look_through_a_whole_corpus_of_bad_files(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(sampling, "_read", lambda path, *_: looked.append(path) or "is silent")
    path = tmp_path / "train.tsv"
    path.write_text("\n".join([str(tmp_path), *(f"{number}.wav\t16000" for number in range(500))]) + "\n")
    with pytest.raises(StarError, match="none of the 20 files"):
        draw(path, count=2)
    assert len(set(looked)) == 20


def test_another_rate_may_be_asked_for(tmp_path):
    tiny.write_audio(tmp_path / "audio", [1.0], sample_rate=8_000)
    path = tiny.write_tsv(tmp_path / "train.tsv", tmp_path / "audio")
    assert [len(source) for source in draw(path, sample_rate=8_000).sources] == [8_000]
