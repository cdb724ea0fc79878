"""Noise, rooms, other speakers, band limits and gain: exact where the formula is, repeatable everywhere."""

import numpy as np
import pytest
import soundfile
import torch
from fairseq.logging import metrics
from hypothesis import given
from hypothesis import strategies as st

from fairseq_star.data.augment import student
from fairseq_star.data.augment.distortion import Augmentation, mix, reverberate
from fairseq_star.data.augment.options import AugmentConfig
from fairseq_star.fairseq_hooks.silent_additions import SilentAdditions
from tests.support import tiny
from tests.support.steps import batch_of, build

RATE = 16_000


def manifest(folder, *signals) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number, signal in enumerate(signals):
        soundfile.write(folder / f"{number}.wav", np.asarray(signal, np.float32), RATE, subtype="FLOAT")
    return str(tiny.write_tsv(folder / "list.tsv", folder))


@pytest.fixture
def noise(tmp_path) -> str:
    generator = np.random.default_rng(0)
    return manifest(tmp_path / "noise", generator.standard_normal(8_000) * 0.1, generator.standard_normal(40_000) * 0.3)


@pytest.fixture
def rooms(tmp_path) -> str:
    response = np.zeros(4_000, np.float32)
    response[[120, 400, 1500]] = 0.9, 0.3, -0.2
    return manifest(tmp_path / "rooms", response)


def distortion(normalize=False, **options) -> Augmentation:
    return Augmentation.of(AugmentConfig(**options), sample_rate=RATE, normalize=normalize, seed=1)


def applied(made: Augmentation, clean: torch.Tensor, epoch=1, index=0, count=5) -> torch.Tensor:
    return made.apply(clean, epoch=epoch, index=index, others=lambda i: torch.full((3_000,), i + 1.0), count=count)


SPEECH = torch.from_numpy(np.sin(np.arange(20_000) * 0.05).astype(np.float32)) * 0.2


@pytest.mark.parametrize("snr", [-5.0, 0.0, 13.0])
def test_noise_lies_at_its_ratio(noise, snr):
    heard = applied(distortion(noise_manifest=noise, noise_snr=[snr, snr]), SPEECH)
    ratio = 10 * torch.log10(SPEECH.square().sum() / (heard - SPEECH).square().sum())
    assert ratio.item() == pytest.approx(snr, abs=1e-2)


@given(st.floats(-0.9, 0.9), st.floats(-4, -1), st.floats(-20, 40), st.integers(0, 99))
def test_the_ratio_is_of_what_varies(offset, level, snr, seed):
    """Of noise on a constant offset, which by itself would make up all of its power."""
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(20_000) * 10**level).float() + offset
    added = mix(SPEECH, noise, [snr, snr], np.random.default_rng(0)) - SPEECH
    assert added.mean().abs() < 1e-3 * added.std()
    assert 10 * torch.log10(SPEECH.var() / added.var()).item() == pytest.approx(snr, abs=0.1)


@pytest.mark.parametrize("offset", [0.0, 0.2, -0.7, 6000.0])
def test_an_offset_alone_is_silence(offset):
    assert mix(SPEECH, torch.full((20_000,), offset), [0, 0], np.random.default_rng(0)) is SPEECH


def test_utterances_that_stay_clean_are_counted_and_the_first_is_named(corpus, teacher_path, tmp_path, caplog):
    """A recording of one loud second and nine of digital silence."""
    tail = np.zeros(160_000)
    tail[:16_000] = np.random.default_rng(0).standard_normal(16_000) * 0.1
    listed = manifest(tmp_path / "tail", tail)
    task, _, _ = build(corpus, teacher_path, noise_manifest=listed)
    task.load_dataset("train")
    dataset = task.dataset("train")
    batch = dataset.collater([dataset[number] for number in range(12)])
    clean, heard = batch[student.CLEAN], batch["net_input"]["source"]
    same = [path for path, a, b in zip(batch["paths"], clean, heard, strict=True) if torch.equal(a, b)]
    sentences = batch[student.SILENT]
    assert [sentence.split(": ")[0] for sentence in sentences] == same
    assert 0 < len(same) < 12
    assert f"the piece of {tmp_path}/tail/0.wav (task.noise_manifest) is silent" in sentences[0]
    counted = SilentAdditions()
    assert counted.report(batch) == len(same)
    assert student.SILENT not in batch
    with metrics.aggregate() as logged:
        counted.reduce([{"left_clean": len(same), "nsentences": 12}, {"left_clean": 1, "nsentences": 12}])
    assert logged["left_clean"].sum == len(same) + 1
    counted.begin_pass()
    assert caplog.text.count("augmentation: nothing added to ") == 1
    assert f"to {len(same) + 1} of 24 utterances of the pass just ended nothing could be added" in caplog.text


def test_silence_on_either_side_is_left_as_it_is():
    rng = np.random.default_rng(0)
    assert torch.equal(mix(SPEECH, torch.zeros(20_000), [0, 0], rng), SPEECH)
    assert torch.equal(mix(torch.zeros(9), torch.ones(9), [0, 0], rng), torch.zeros(9))
    assert torch.equal(reverberate(torch.zeros(9), torch.ones(3)), torch.zeros(9))


def test_a_room_keeps_energy_and_the_place_of_the_direct_sound():
    impulse = torch.zeros(6_000)
    impulse[2_000] = 0.5
    response = torch.zeros(900)
    response[[120, 400]] = torch.tensor([0.9, 0.3])
    heard = reverberate(impulse, response)
    assert int(heard.abs().argmax()) == 2_000
    assert len(heard) == 6_000
    assert heard.square().sum().item() == pytest.approx(0.25, rel=1e-4)
    assert (heard[2_280] / heard[2_000]).item() == pytest.approx(1 / 3, rel=1e-3)


def test_everything_at_once_is_repeatable_and_of_the_same_length(noise, rooms):
    options = {
        "noise_manifest": noise, "reverb_manifest": rooms, "reverb_prob": 1.0, "babble_prob": 1.0,
        "band_limit_prob": 1.0, "gain_prob": 1.0,
    }  # fmt: skip
    heard = applied(distortion(**options), SPEECH)
    assert heard.shape == SPEECH.shape
    assert torch.isfinite(heard).all()
    assert torch.equal(heard, applied(distortion(**options), SPEECH))
    for other in ({"epoch": 2}, {"index": 1}):
        assert not torch.equal(heard, applied(distortion(**options), SPEECH, **other))


def test_switching_one_off_leaves_the_draws_of_the_others(noise):
    both = applied(distortion(noise_manifest=noise, gain_prob=1.0, gain_db=[6.0, 6.0]), SPEECH)
    alone = applied(distortion(noise_manifest=noise), SPEECH)
    assert torch.allclose(both, alone * 10 ** (6 / 20), rtol=1e-5)


def test_babble_is_of_others_alone():
    asked = []

    def others(index: int) -> torch.Tensor:
        asked.append(index)
        return torch.randn(3_000)

    made = distortion(babble_prob=1.0, babble_utterances=[2, 4])
    for index in range(5):
        asked.clear()
        made.apply(SPEECH, epoch=1, index=index, others=others, count=5)
        assert 2 <= len(asked) <= 4
        assert index not in asked
        assert set(asked) <= set(range(5))
    assert torch.equal(made.apply(SPEECH, epoch=1, index=0, others=others, count=1), SPEECH)


def test_a_band_limit_takes_what_lies_above():
    high = torch.sin(torch.arange(20_000) * 2 * torch.pi * 7_000 / RATE)
    heard = applied(distortion(band_limit_prob=1.0, band_limit_hz=[2_000.0, 2_000.0]), high)
    assert heard.square().mean() < 0.02 * high.square().mean()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"noise_manifest": "missing.tsv"}, "task.noise_manifest: missing.tsv: cannot read the manifest"),
        ({"noise_prob": 2.0, "gain_prob": 1.0}, "task.noise_prob=2.0 must be from 0 to 1"),
        ({"gain_prob": 1.0, "noise_snr": [20.0, 0.0]}, r"task.noise_snr=\[20.0, 0.0\] must be two rising numbers"),
        ({"babble_prob": 1.0, "babble_utterances": [0, 2]}, "task.babble_utterances=.* above 0"),
        ({"band_limit_prob": 1.0, "band_limit_hz": [2000.0, 9000.0]}, "task.band_limit_hz=.* below 8000 Hz"),
    ],
)
def test_what_cannot_be_ends_in_one_line(corpus, teacher_path, options, told):
    task, _, _ = build(corpus, teacher_path, **options)
    with pytest.raises(SystemExit, match=told):
        task.load_dataset("train")


def test_an_empty_noise_manifest_or_one_of_another_rate_is_named(corpus, teacher_path, tmp_path):
    empty = tmp_path / "empty.tsv"
    empty.write_text(f"{tmp_path}\n")
    slow = tiny.write_tsv(tmp_path / "slow.tsv", tiny.write_audio(tmp_path / "slow", [0.5], sample_rate=8_000))
    for path, told in ((empty, "task.noise_manifest: .*has a root line but no entries"), (slow, "sampled at 8000 Hz")):
        task, _, _ = build(corpus, teacher_path, noise_manifest=str(path))
        with pytest.raises(SystemExit, match=told):
            task.load_dataset("train")


def test_gain_of_normalized_audio_is_refused(corpus, tmp_path):
    teacher = tiny.write_teacher(tmp_path / "normalized.pt", task={"normalize": True})
    task, _, _ = build(corpus, teacher, gain_prob=0.5)
    with pytest.raises(SystemExit, match=r"task\.gain_prob: .* leave it out"):
        task.load_dataset("train")


def test_the_teacher_hears_the_clean_utterance(corpus, teacher_path, noise):
    clean_task, _, _ = build(corpus, teacher_path)
    task, _, _ = build(corpus, teacher_path, noise_manifest=noise, noise_snr=[0.0, 0.0])
    clean, noisy = batch_of(clean_task, [0, 3]), batch_of(task, [0, 3])
    assert torch.equal(noisy["clean_source"], clean["net_input"]["source"])
    assert not torch.equal(noisy["net_input"]["source"], clean["net_input"]["source"])
    assert (noisy["net_input"]["source"][0, noisy["num_samples"][0] :] == 0).all()
    states = zip(
        task.provider.encode(noisy).hidden_states, clean_task.provider.encode(clean).hidden_states, strict=True
    )
    assert all(torch.equal(mine, theirs) for mine, theirs in states)


def test_a_cache_is_of_the_clean_audio(corpus, teacher_path, noise, tmp_path):
    task, _, _ = build(corpus, teacher_path, teacher_cache=str(tmp_path / "cache"))
    task.provider.encode(batch_of(task, [0, 3]))
    entries = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.states")}
    noisy, _, _ = build(corpus, teacher_path, teacher_cache=str(tmp_path / "cache"), noise_manifest=noise)
    noisy.provider.encode(batch_of(noisy, [0, 3]))
    assert len(entries) == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.states")} == entries


def test_noise_that_turns_out_unreadable_is_told_as_bad_audio(corpus, teacher_path, noise):
    task, _, _ = build(corpus, teacher_path, noise_manifest=noise)
    task.load_dataset("train")
    for path in task.dataset("train").augment.distortion.noise.paths:
        open(path, "wb").close()
    item = task.dataset("train")[0]
    assert item["source"] is None
    assert "nothing can be mixed into it" in item["bad_audio"]


def test_noise_that_is_not_a_number_reaches_no_student(corpus, teacher_path, tmp_path):
    signal = np.zeros(30_000, np.float32)
    signal[::100] = np.nan
    task, _, _ = build(corpus, teacher_path, noise_manifest=manifest(tmp_path / "nan", signal))
    task.load_dataset("train")
    item = task.dataset("train")[0]
    assert item["source"] is None
    assert "0.wav: holds samples that are NaN or infinite" in item["bad_audio"]
