"""The compressed teacher cache through task and criterion: who reads what, what is told, what is refused."""

import json
import logging
import os
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from fairseq_star.teacher.cache import codec_fit
from fairseq_star.teacher.cache.codec import FOLDER
from fairseq_star.teacher.cache.read_ahead import STORED
from fairseq_star.teacher.cache.store import StateStore
from tests.support import runs, tiny
from tests.support.steps import batch_of, build, gradient, relative_difference

WIDTH, CODES = 24, 4  # of the tiny teacher; bytes beside a row's codes
BATCH = [0, 3, 7]
COMPRESSIONS = [{"teacher_cache_compression": "int8"}, {"teacher_cache_compression": "pca", "teacher_cache_dim": WIDTH}]


def teacher_runs(task) -> list[int]:
    seen = []
    task.teacher.register_forward_hook(lambda _, arguments, __: seen.append(len(arguments[0])))
    return seen


def cached(corpus, teacher_path, folder, criterion=None, compression="pca", dim=None, **options):
    return build(
        corpus,
        teacher_path,
        criterion,
        teacher_cache=str(folder),
        teacher_cache_compression=compression,
        teacher_cache_dim=dim,
        **options,
    )


# ---------------------------------------------------------------------------------------------- what it gives


@pytest.mark.parametrize("options", COMPRESSIONS)
@pytest.mark.parametrize(
    "criterion",
    [
        {},
        {"layer_convention": "reimplementation"},
        {"distance": "kl"},
        {"frame_mse_weight": 1.0, "frame_cosine_weight": 0.5},
        {"layerwise_weight": 0.0, "intra_layer_weight": 0.0, "units": ["head"], "unit_unmasked_weight": 1.0},
    ],
)
def test_every_term_gets_the_teachers_states_and_later_epochs_no_teacher(
    corpus, teacher_path, tmp_path, options, criterion
):
    """At full width nothing but 8 bits tells the states from the teacher's own."""
    task, student, plain = build(corpus, teacher_path, criterion)
    torch.manual_seed(1)
    expected, exact = gradient(student, plain, batch_of(task, BATCH))
    task, student, loss = build(corpus, teacher_path, criterion, teacher_cache=str(tmp_path), **options)
    loss.load_state_dict(plain.state_dict())
    seen = teacher_runs(task)
    first = gradient(student, loss, batch_of(task, BATCH))
    assert seen[-1] == len(BATCH)
    ran = len(seen)
    second = gradient(student, loss, batch_of(task, BATCH))
    assert len(seen) == ran, "the teacher ran in the second epoch"
    assert second[0] == first[0], "a run must not depend on what was cached when it began"
    assert torch.equal(second[1], first[1])
    assert first[0] == pytest.approx(expected, rel=2e-2)
    assert relative_difference(first[1], exact) < 3e-2

    task, student, loss = build(corpus, teacher_path, criterion, teacher_cache=str(tmp_path), **options)
    loss.load_state_dict(plain.state_dict())
    seen = teacher_runs(task)
    assert gradient(student, loss, batch_of(task, BATCH))[0] == first[0]
    assert seen == [], "neither teacher nor first pass is needed again"


def test_the_loss_in_coordinates_is_that_of_the_states_they_stand_for(corpus, teacher_path, tmp_path):
    """Value and gradient of a step, where a quarter of the coordinates is kept."""
    task, student, criterion = cached(corpus, teacher_path, tmp_path)
    batch = batch_of(task, BATCH)
    encode = task.provider.encode
    reduced, found = gradient(student, criterion, batch)

    def whole(sample, **wanted):
        encoding = encode(sample, **wanted)
        states = encoding.hidden_states
        encoding.hidden_states = [states[number] for number in range(len(states))]
        return encoding

    task.provider.encode = whole
    expected, wanted = gradient(student, criterion, batch)
    assert reduced == pytest.approx(expected, rel=1e-5)
    assert relative_difference(found, wanted) < 1e-5


@pytest.mark.parametrize("which", ["masked", "unmasked"])
def test_hidden_frames_alone_are_compared_in_coordinates_too(corpus, teacher_path, tmp_path, which):
    options = {"mask_prob": 0.5, "mask_length": 2}
    task, student, plain = build(corpus, teacher_path, {"tgm_frames": which}, **options)
    expected, exact = gradient(student, plain, batch_of(task, BATCH))
    task, student, loss = cached(corpus, teacher_path, tmp_path, {"tgm_frames": which}, dim=WIDTH, **options)
    found, reduced = gradient(student, loss, batch_of(task, BATCH))
    assert found == pytest.approx(expected, rel=2e-2)
    assert relative_difference(reduced, exact) < 3e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_follows_the_precision_of_the_run(corpus, teacher_path, tmp_path, dtype, without_onednn):
    task, _, _ = cached(corpus, teacher_path, tmp_path)
    half = batch_of(task, BATCH)
    half["net_input"]["source"] = half["net_input"]["source"].to(dtype)
    for _ in ("computed", "read"):
        given = task.provider.encode(half).hidden_states
        assert {state.dtype for state in given} == {dtype}
        assert given.coordinates([0, 1])[0][0].dtype == dtype


@pytest.mark.slow
def test_two_processes_that_fill_one_cache_end_with_one_codec(corpus, teacher_path, tmp_path):
    """Both fit one at the same time; with what is kept the same command gives the same losses, without a first pass."""
    options = [
        f"task.teacher_cache={tmp_path / 'cache'}", "task.teacher_cache_compression=pca", "dataset.batch_size=2",
        "dataset.num_workers=1",
    ]  # fmt: skip
    logs = []
    for name in ("first", "second"):
        arguments = runs.hydra_arguments(corpus, teacher_path, tmp_path / name, *options)
        logs.append(runs.finish(runs.start_workers(tmp_path / name, arguments))[0])
        assert len(list(tmp_path.glob(f"cache/*/{FOLDER}"))) == 1
        assert list(tmp_path.glob("cache/*/unfinished/*")) == []
        assert "damaged" not in logs[-1]
    first, second = (re.findall(r" loss=([\d.]+)", log) for log in logs)
    assert len(first) >= 6
    assert first == second
    assert len(list(tmp_path.glob("cache/*/??/*"))) == 15


# ------------------------------------------------------------------------------------------------- reading ahead


def test_data_workers_read_what_is_there_and_the_main_process_nothing(corpus, teacher_path, tmp_path, monkeypatch):
    task, student, criterion = cached(corpus, teacher_path, tmp_path, dim=6)
    first = gradient(student, criterion, batch_of(task, BATCH))
    dataset = task.dataset("train")
    [batch] = DataLoader(dataset, batch_sampler=[BATCH], collate_fn=dataset.collater, num_workers=1)
    assert batch[STORED]["found"] == [True] * 3
    assert batch[STORED]["rows"].shape[0] == 4
    assert batch[STORED]["rows"].shape[-1] == 6 + CODES

    def read(*arguments):
        raise AssertionError("the main process reads")

    monkeypatch.setattr(StateStore, "read", read)
    ahead = gradient(student, criterion, batch)
    assert ahead[0] == first[0]
    assert torch.equal(ahead[1], first[1])


def test_workers_that_were_started_before_the_store_was_known_learn_of_it(corpus, teacher_path, tmp_path):
    task, student, criterion = cached(corpus, teacher_path, tmp_path)
    gradient(student, criterion, batch_of(task, BATCH))
    task, student, criterion = cached(corpus, teacher_path, tmp_path)
    task.load_dataset("train")
    dataset = task.dataset("train")
    batches = iter(
        DataLoader(dataset, batch_sampler=[BATCH] * 12, collate_fn=dataset.collater, num_workers=1, prefetch_factor=1)
    )
    batch = next(batches)
    assert STORED not in batch
    expected = gradient(student, criterion, batch)
    *_, last = batches
    assert last[STORED]["found"] == [True] * 3
    assert gradient(student, criterion, last)[0] == expected[0]


def test_what_workers_did_not_find_is_computed_and_what_is_of_another_store_not_taken(corpus, teacher_path, tmp_path):
    task, student, criterion = cached(corpus, teacher_path, tmp_path)
    expected = gradient(student, criterion, batch_of(task, [0, 3, 7, 5]))
    gone = sorted(tmp_path.glob("*/??/*"))[1]
    gone.unlink()
    seen = teacher_runs(task)
    batch = batch_of(task, [0, 3, 7, 5])
    assert sorted(batch[STORED]["found"]) == [False, True, True, True]
    assert gradient(student, criterion, batch)[0] == expected[0]
    assert seen == [1]
    assert gone.exists(), "it was not mended"

    batch = batch_of(task, [0, 3, 7, 5])
    batch[STORED] |= {"name": "another", "rows": torch.zeros_like(batch[STORED]["rows"])}
    assert gradient(student, criterion, batch)[0] == expected[0]


def test_without_compression_nothing_rides_with_a_batch(corpus, teacher_path, tmp_path):
    task, student, criterion = build(corpus, teacher_path, teacher_cache=str(tmp_path))
    for _ in range(2):
        batch = batch_of(task, BATCH)
        assert STORED not in batch
        gradient(student, criterion, batch)


# --------------------------------------------------------------------------------------------------- what is told


def test_space_and_accuracy_are_told_first_and_kept(corpus, teacher_path, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    task, student, criterion = cached(corpus, teacher_path, tmp_path, dim=6)
    task.load_dataset("valid")
    gradient(student, criterion, batch_of(task, range(12)))
    gradient(student, criterion, batch_of(task, range(3), "valid"))
    frames = sum(task.teacher.geometry.num_frames(int(n)) for part in task.datasets.values() for n in part.sizes)
    [told] = [line for line in caplog.messages if "GB are free" in line]
    assert f"15 utterances, {frames:,} frames x 4 states x {6 + CODES} x 1 bytes" in told
    assert f"an hour of audio takes {180_000 * 4 * (6 + CODES) / 1e9:.3f} GB" in told
    [store] = task.provider.cache.stores.values()
    assert store.num_bytes() == pytest.approx(frames * 4 * (6 + CODES), abs=15 * 4096)
    [accuracy] = [line for line in caplog.messages if "held-out" in line]
    assert "6 of 24 coordinates in 8 bits" in accuracy
    assert caplog.messages.index(told) < caplog.messages.index(accuracy)
    [codec] = task.provider.cache.rows.values()
    assert codec.about["held_out"]["utterances"] == 3
    assert f"gradient near the teacher by {codec.about['held_out']['gradient'][0]:.2%}" in accuracy
    assert (store.folder / FOLDER).is_dir()


def test_hubert_base_at_a_quarter_takes_under_half_a_gigabyte_an_hour():
    assert 13 * 50 * 3600 * (768 // 4 + CODES) / 1e9 < 0.46


def test_sample_and_held_out_utterances_are_others_and_always_the_same(corpus, teacher_path, tmp_path, monkeypatch):
    task, _, _ = cached(corpus, teacher_path, tmp_path)
    task.load_dataset("train")
    dataset, geometry = task.dataset("train"), task.teacher.geometry
    sample, held_out = codec_fit.choose(dataset, geometry)
    assert (len(sample), len(held_out)) == (9, 3)
    assert not set(sample) & set(held_out)
    assert codec_fit.choose(dataset, geometry) == (sample, held_out)
    monkeypatch.setattr(codec_fit, "SAMPLE_FRAMES", 100)
    fewer, _ = codec_fit.choose(dataset, geometry)
    assert fewer == sample[: len(fewer)]
    counts = [geometry.num_frames(dataset.size(index)) for index in fewer]
    assert sum(counts[:-1]) < 100 <= sum(counts)


def test_a_cache_of_other_settings_is_told_and_never_mixed(corpus, teacher_path, tmp_path, caplog):
    """An uncompressed one, as all were before, is found again under its own name."""
    task, student, criterion = build(corpus, teacher_path, teacher_cache=str(tmp_path))
    plain = gradient(student, criterion, batch_of(task, BATCH))
    [old] = tmp_path.glob("*/about.json")
    assert "compression" not in json.loads(old.read_text())
    assert "other settings" not in caplog.text
    for dim, differing in [(6, 2), (7, 3)]:
        caplog.clear()
        task, student, criterion = cached(corpus, teacher_path, tmp_path, dim=dim)
        gradient(student, criterion, batch_of(task, BATCH))
        told = [line for line in caplog.messages if "is of other settings" in line]
        assert len(told) == differing - 1
        assert any(str(old.parent) in line and f"dim=None (now {dim})" in line for line in told)
    assert any("dim=6 (now 7)" in line for line in told)
    task, student, criterion = build(corpus, teacher_path, teacher_cache=str(tmp_path))
    seen = teacher_runs(task)
    assert gradient(student, criterion, batch_of(task, BATCH))[0] == plain[0]
    assert seen == []
    assert len(list(tmp_path.glob("*/about.json"))) == 3


def test_rows_without_their_codec_are_not_read_with_another(corpus, teacher_path, tmp_path, caplog):
    task, student, criterion = cached(corpus, teacher_path, tmp_path, dim=6)
    expected = gradient(student, criterion, batch_of(task, BATCH))
    [codec] = tmp_path.glob(f"*/{FOLDER}")
    shutil.rmtree(codec)
    smaller = tiny.write_corpus(tmp_path / "smaller", train=9)  # another sample, another codec
    task, student, criterion = cached(smaller, teacher_path, tmp_path, dim=6)
    seen = teacher_runs(task)
    found = gradient(student, criterion, batch_of(task, BATCH))
    assert seen[-1] == 3
    assert caplog.text.count("is damaged, computed anew") == 3
    assert found[0] == pytest.approx(expected[0], rel=0.5)


# ------------------------------------------------------------------------------------------- another corpus's codec


def tones(folder, count: int):
    """A corpus of half a second each of a tone with a little hiss."""
    generator = np.random.default_rng(0)
    (folder / "audio").mkdir(parents=True)
    for number in range(count):
        time = np.arange(8000) / 16_000
        tone = 0.2 * np.sin(2 * np.pi * (200 + 50 * number) * time) + 1e-3 * generator.standard_normal(len(time))
        soundfile.write(folder / "audio" / f"utt{number:03d}.wav", tone, 16_000)
    tiny.write_tsv(folder / "train.tsv", folder / "audio")
    return folder


def fill(corpus, teacher_path, folder, **options):
    """A step on ``corpus`` with the cache in ``folder``: the task, its codec and the loss."""
    task, student, criterion = cached(corpus, teacher_path, folder, **options)
    loss = gradient(student, criterion, batch_of(task, BATCH))[0]
    [codec] = task.provider.cache.rows.values()
    return task, codec, loss


def test_the_basis_of_a_trial_is_not_used_for_the_corpus(corpus, teacher_path, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    options = {"dim": 6}
    _, fresh, expected = fill(corpus, teacher_path, tmp_path / "fresh", **options)
    fill(tones(tmp_path / "trial", 12), teacher_path, tmp_path / "cache", **options)
    caplog.clear()
    for _ in ("fitted", "found again"):
        task, codec, loss = fill(corpus, teacher_path, tmp_path / "cache", **options)
        assert codec.kind == fresh.kind
        assert loss == expected
        assert codec.about["held_out"] == fresh.about["held_out"]
        [said] = [line for line in caplog.messages if "was fitted to" in line]
        assert "another corpus of 12 utterances; measured on this corpus it is worse than a new fit" in said
        caplog.clear()
    seen = teacher_runs(task)
    batch = batch_of(task, BATCH)
    task.provider.encode(batch, states=[0, 1, 2, 3])
    assert seen == []


@pytest.mark.parametrize("kind", ["moved", "a part"])
def test_a_codec_that_is_as_exact_here_is_used_and_reported_as_measured_here(
    kind, corpus, teacher_path, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    whole = tiny.write_corpus(tmp_path / "whole", train=40)
    _, carried, _ = fill(whole, teacher_path, tmp_path / "cache", dim=12)
    if kind == "moved":
        here = tmp_path / "moved"
        shutil.move(whole, here)
        tiny.write_tsv(here / "train.tsv", here / "audio" / "train")
    else:
        here = tmp_path / "part"
        lines = (whole / "train.tsv").read_text().splitlines()
        here.mkdir()
        (here / "train.tsv").write_text("\n".join(lines[:30]) + "\n")
    caplog.clear()
    task, codec, _ = fill(here, teacher_path, tmp_path / "cache", dim=12)
    assert codec.kind == carried.kind
    told = [line for line in caplog.messages if "measured on this corpus it is as exact as a new fit" in line]
    assert len(told) == (kind == "a part")
    assert (codec.about["held_out"] == carried.about["held_out"]) == (kind == "moved")
    seen = teacher_runs(task)
    task.provider.encode(batch_of(task, BATCH), states=[0, 1, 2, 3])
    assert seen == []
    assert len(list(tmp_path.glob("cache/*/[0-9a-f][0-9a-f]"))) > 0


def test_noisy_copies_under_the_same_names_are_another_corpus(corpus, teacher_path, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    fill(corpus, teacher_path, tmp_path / "cache", dim=6)
    noisy = tiny.write_corpus(tmp_path / "noisy")
    for path in noisy.glob("audio/train/*.wav"):
        audio, rate = soundfile.read(path)
        soundfile.write(path, audio + 0.1 * np.sin(np.arange(len(audio)) / 3), rate)
    fill(noisy, teacher_path, tmp_path / "cache", dim=6)
    assert "was fitted to other audio under the same names and lengths" in caplog.text


def test_int8_steps_of_a_trial_are_measured_on_the_corpus(corpus, teacher_path, tmp_path, caplog):
    """They fit nearly any speech: 0.36 % here, 0.33 % newly fitted; the trial's own figure is 0.11 %."""
    caplog.set_level(logging.INFO)
    _, trial, _ = fill(tones(tmp_path / "trial", 12), teacher_path, tmp_path / "cache", compression="int8")
    _, codec, _ = fill(corpus, teacher_path, tmp_path / "cache", compression="int8")
    assert codec.kind == trial.kind
    assert "another corpus of 12 utterances; measured on this corpus it is as exact as a new fit" in caplog.text
    assert codec.about["held_out"]["gradient"] != trial.about["held_out"]["gradient"]
    assert f"gradient near the teacher by {codec.about['held_out']['gradient'][0]:.2%}" in caplog.messages[-1]


def test_one_utterance_can_be_cached_with_a_codec_that_is_there(corpus, teacher_path, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    fill(corpus, teacher_path, tmp_path / "cache", dim=6)
    one = tiny.write_corpus(tmp_path / "one", train=1, valid=1)
    task, student, criterion = cached(one, teacher_path, tmp_path / "cache", dim=6)
    gradient(student, criterion, batch_of(task, [0]))
    assert "off on 1 held-out utterances" in caplog.text


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"teacher_cache_compression": "pca", "teacher_cache_dim": 0}, r"teacher_cache_dim=0 must be 1 to 24"),
        ({"teacher_cache_compression": "pca", "teacher_cache_dim": 25}, r"teacher_cache_dim=25 must be 1 to 24"),
        ({"teacher_cache_compression": "int8", "teacher_cache_dim": 6}, r"is of task\.teacher_cache_compression=pca"),
        ({"teacher_cache_dim": 6}, r"is of task\.teacher_cache_compression=pca"),
        ({"teacher_cache": None, "teacher_cache_compression": "pca"}, r"are of task\.teacher_cache; name a folder"),
        ({"teacher_cache": None, "teacher_cache_dim": 6}, r"are of task\.teacher_cache; name a folder"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_made(corpus, teacher_path, tmp_path, options, told):
    with pytest.raises(SystemExit, match=told):
        build(corpus, teacher_path, **{"teacher_cache": str(tmp_path / "cache"), **options})
    assert not (tmp_path / "cache").exists()


def test_a_corpus_of_one_utterance_is_refused(teacher_path, tmp_path):
    corpus = tiny.write_corpus(tmp_path / "corpus", train=1, valid=1)
    task, student, criterion = cached(corpus, teacher_path, tmp_path / "cache")
    with pytest.raises(SystemExit, match="there is but one"):
        gradient(student, criterion, batch_of(task, [0]))


def test_a_damaged_codec_ends_in_one_sentence(corpus, teacher_path, tmp_path):
    task, student, criterion = cached(corpus, teacher_path, tmp_path)
    gradient(student, criterion, batch_of(task, BATCH))
    [path] = tmp_path.glob(f"*/{FOLDER}/*")
    os.truncate(path, 100)
    task, student, criterion = cached(corpus, teacher_path, tmp_path)
    with pytest.raises(SystemExit, match=r"codec\.npz is damaged .*; remove .*, which is then computed anew"):
        gradient(student, criterion, batch_of(task, BATCH))
