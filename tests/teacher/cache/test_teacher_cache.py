"""The teacher cache: what it gives is the teacher's own, whatever happens to its files."""

import errno
import logging
import multiprocessing
import os
import shutil
import signal
import time
from collections import namedtuple

import pytest
import soundfile
import torch

from fairseq_star.criterions.star_tgm import StarTGMConfig, StarTGMCriterion
from fairseq_star.data.dataset import audio_digest
from fairseq_star.teacher.cache.store import CHECKSUM, HEADER, StateStore
from fairseq_star.teacher.provider import teacher_digest
from tests.support import runs, tiny
from tests.support.steps import batch_of, build, gradient

# Half a unit in the last place of a stored number, relative.
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def batches_seen(task) -> list[int]:
    """The size of each batch the teacher is run on from now on."""
    seen = []
    task.teacher.register_forward_hook(lambda _, arguments, __: seen.append(len(arguments[0])))
    return seen


def entries(cache) -> list:
    return sorted(cache.glob("*/??/*"))


def loss_of(task, student, criterion, indices=(0, 3, 7)) -> float:
    loss, size, _ = criterion(student, batch_of(task, indices))
    return loss.item() / size


# ---------------------------------------------------------------------------------------------- what it gives


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("convention", ["paper", "reimplementation"])
def test_later_epochs_are_the_teachers_without_the_teacher(corpus, teacher_path, tmp_path, convention, dtype):
    options = {"layer_convention": convention}
    task, student, criterion = build(corpus, teacher_path, options)
    loss, plain = gradient(student, criterion, batch_of(task, [0, 3, 7]), batch_of(task, [1, 2], "valid"))

    cached = {"teacher_cache": str(tmp_path / "cache"), "teacher_cache_dtype": dtype}
    task, student, criterion = build(corpus, teacher_path, options, **cached)
    seen = batches_seen(task)
    first = gradient(student, criterion, batch_of(task, [0, 3, 7]), batch_of(task, [1, 2], "valid"))
    assert seen == [3, 2]
    second = gradient(student, criterion, batch_of(task, [0, 3, 7]), batch_of(task, [1, 2], "valid"))
    assert seen == [3, 2], "the teacher ran in the second epoch"
    assert first[0] == second[0], "a run must not depend on what was cached when it began"
    assert torch.equal(first[1], second[1])
    assert second[0] == pytest.approx(loss, rel=2 * ROUNDING[dtype])
    assert (second[1] - plain).norm() / plain.norm() < 4 * ROUNDING[dtype]

    task, student, criterion = build(corpus, teacher_path, options, **cached)
    seen = batches_seen(task)
    again = gradient(student, criterion, batch_of(task, [0, 3, 7]), batch_of(task, [1, 2], "valid"))
    assert seen == []
    assert again[0] == second[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_given_is_the_teachers_rounded_with_zeros_beyond(corpus, teacher_path, tmp_path, dtype):
    task, _, _ = build(corpus, teacher_path)
    batch = batch_of(task, [0, 7, 3], extra=1600)
    plain = task.provider.encode(batch, last_layer=3)

    task, _, _ = build(corpus, teacher_path, teacher_cache=str(tmp_path), teacher_cache_dtype=dtype)
    batch = batch_of(task, [0, 7, 3], extra=1600)
    for _ in ("computed", "read"):
        given = task.provider.encode(batch, last_layer=3)
        assert given.frames.num_samples == plain.frames.num_samples
        assert given.frames.frame_lengths == plain.frames.frame_lengths
        assert torch.equal(given.frames.padding_mask, plain.frames.padding_mask)
        pairs = list(zip(plain.hidden_states, given.hidden_states, strict=True))
        for expected, got in [(plain.projected_features, given.projected_features), *pairs]:
            rounded = expected.to(getattr(torch, dtype)).float().masked_fill(plain.frames.padding_mask[..., None], 0)
            assert got.dtype == torch.float32
            assert torch.equal(got, rounded)

    some = task.provider.encode(batch, states=[0, 2, 3], last_layer=3)
    assert some.projected_features is None
    with pytest.raises(KeyError):
        some.hidden_states[1]
    assert torch.equal(some.hidden_states[2], given.hidden_states[2])


def test_only_what_is_missing_is_computed_and_is_the_same(corpus, teacher_path, tmp_path):
    """Utterance 7 is the longest: without it the missing ones are padded less, and give the same states."""
    task, _, _ = build(corpus, teacher_path)
    plain = task.provider.encode(batch_of(task, [7, 0, 5, 3]))
    task, _, _ = build(corpus, teacher_path, teacher_cache=str(tmp_path))
    seen = batches_seen(task)
    task.provider.encode(batch_of(task, [5, 7]))
    mixed = task.provider.encode(batch_of(task, [7, 0, 5, 3]))
    assert seen == [2, 2]
    for number, (expected, got) in enumerate(zip(plain.hidden_states, mixed.hidden_states, strict=True)):
        for row, n in enumerate(plain.frames.frame_lengths):
            torch.testing.assert_close(
                got[row, :n], expected[row, :n], rtol=2 * ROUNDING["float16"], atol=1e-5, msg=f"{number} {row}"
            )


def test_it_follows_the_precision_of_the_run(corpus, teacher_path, tmp_path):
    task, _, _ = build(corpus, teacher_path, teacher_cache=str(tmp_path))
    seen = batches_seen(task)
    task.provider.encode(batch_of(task, [0, 3]))
    half = batch_of(task, [0, 3])
    half["net_input"]["source"] = half["net_input"]["source"].bfloat16()
    for _ in ("computed", "read"):
        given = task.provider.encode(half)
        assert {state.dtype for state in given.hidden_states} == {torch.bfloat16}
    assert seen == [2, 2], "states of another precision were taken"


# --------------------------------------------------------------------------------------------- what is not used


def test_a_changed_teacher_option_or_file_finds_nothing(tmp_path, teacher_path):
    corpus = tiny.write_corpus(tmp_path / "corpus", train=4)
    cache = str(tmp_path / "cache")

    def teacher_runs(teacher=teacher_path, criterion=None, **options) -> bool:
        task, student, loss = build(corpus, teacher, criterion, **{"teacher_cache": cache, **options})
        seen = batches_seen(task)
        loss_of(task, student, loss, [0, 3])
        return bool(seen)

    assert teacher_runs()
    assert not teacher_runs()
    other = tmp_path / "other.pt"
    torch.save(tiny.hubert_state(seed=1), other)
    for change in (
        {"teacher": other},
        {"criterion": {"layer_convention": "reimplementation"}},
        {"teacher_cache_dtype": "bfloat16"},
        {"teacher_precision": "bfloat16"},
        {"max_sample_size": 4800, "fixed_crop": True},
        {"max_sample_size": 4801, "fixed_crop": True},
    ):
        assert teacher_runs(**change), change
    assert not teacher_runs(**change), "a change is cached as well"

    # One sample changed, size and times as before; then the folder elsewhere.
    path = corpus / "audio" / "train" / "utt003.wav"
    times, (samples, rate) = path.stat(), soundfile.read(path, dtype="int16")
    samples[100] += 1
    soundfile.write(path, samples, rate)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert teacher_runs()
    moved = shutil.move(corpus / "audio" / "train", tmp_path / "moved")
    tiny.write_tsv(corpus / "train.tsv", moved)
    assert not teacher_runs()


def test_a_teachers_digest_is_that_of_all_its_files(tmp_path, teacher_path):
    moved = shutil.copy(teacher_path, tmp_path / "moved.pt")
    assert teacher_digest(str(moved)) == teacher_digest(str(teacher_path))
    folder = tmp_path / "folder"
    folder.mkdir()
    digests = set()
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        for content in ("{}", "{ }"):
            (folder / name).write_text(content)
            if (folder / "model.safetensors").exists():
                digests.add(teacher_digest(str(folder)))
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text("{  }")
        digests.add(teacher_digest(str(folder)))
    assert len(digests) == 4


def test_every_damage_is_found(tmp_path, caplog):
    """Cut at every length, every byte changed, one too many, another entry's file, a folder in its place."""
    store = StateStore(tmp_path, torch.float16)
    store.open()
    states = torch.arange(24, dtype=torch.float16).reshape(2, 3, 4)
    one, other = (audio_digest(torch.tensor([value])) for value in (1.0, 2.0))
    into = torch.empty_like(states)
    assert not store.read(one, into), "nothing was written yet"
    assert "damaged" not in caplog.text, "a missing entry is no damage"
    store.write(one, states)
    store.write(other, states + 1)
    path, whole = store.path(one), store.path(one).read_bytes()
    assert len(whole) == HEADER.size + CHECKSUM.size + 24 * 2
    assert store.read(one, into)
    assert torch.equal(into, states)

    damages = [whole[:length] for length in range(len(whole))]
    damages += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    damages += [whole + b"\0", store.path(other).read_bytes()]
    for damage in damages:
        path.write_bytes(damage)
        assert not store.read(one, into), damage
    assert caplog.text.count("is damaged") == len(damages)

    path.write_bytes(whole)
    for shape in [(1, 3, 4), (2, 2, 4), (2, 3, 3), (2, 4, 3)]:
        assert not store.read(one, torch.empty(shape, dtype=torch.float16)), shape
    assert not store.read(one, torch.empty((2, 3, 4), dtype=torch.bfloat16))
    store.write(one, states)
    assert store.read(one, into)
    path.unlink()
    path.mkdir()
    assert not store.read(one, into)


def test_damaged_entries_are_computed_anew_and_mended(corpus, teacher_path, tmp_path, caplog):
    task, student, criterion = build(corpus, teacher_path, teacher_cache=str(tmp_path))
    seen = batches_seen(task)
    expected = loss_of(task, student, criterion)
    contents = {path: path.read_bytes() for path in entries(tmp_path)}
    assert len(contents) == 3
    first, second, _ = contents
    for keep in (0, 50, HEADER.size + 1, len(contents[first]) // 2, len(contents[first]) - 1):
        first.write_bytes(contents[first][:keep])
        second.write_bytes(contents[second][:-8] + b"\0\x7c" * 4)  # infinities, of the right length
        assert loss_of(task, student, criterion) == pytest.approx(expected, rel=1e-6)
        assert {path: path.stat().st_size for path in contents} == {p: len(data) for p, data in contents.items()}
    assert seen == [3] + [2] * 5
    assert caplog.text.count("is damaged") == 10
    assert loss_of(task, student, criterion) == pytest.approx(expected, rel=1e-6)
    assert len(seen) == 6, "the entries were not mended"


# --------------------------------------------------------------------------------------------------- the disk


def disk_with(free: int):
    usage = namedtuple("usage", "total used free")
    return lambda path: usage(2 * free, free, free)


def test_the_size_is_told_first_and_refused_where_it_does_not_fit(corpus, teacher_path, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    cache = tmp_path / "deep" / "cache"
    task, student, criterion = build(corpus, teacher_path, teacher_cache=str(cache))
    task.load_dataset("train")
    task.load_dataset("valid")
    frames = sum(task.teacher.geometry.num_frames(int(n)) for part in task.datasets.values() for n in part.sizes)
    assert not cache.exists()

    monkeypatch.setattr(shutil, "disk_usage", disk_with(free=10_000))
    with pytest.raises(SystemExit, match=r"task\.teacher_cache: .*cache needs .* GB more .* 0\.000 GB free"):
        loss_of(task, student, criterion)
    assert f"15 utterances, {frames:,} frames x 4 states x 24 x 2 bytes" in caplog.text
    assert not cache.exists(), "something was written"

    monkeypatch.undo()
    task.provider.encode(batch_of(task, range(12)), states=[0, 1, 2, 3])
    task.provider.encode(batch_of(task, range(3), "valid"), states=[0, 1, 2, 3])
    [store] = task.provider.cache.stores.values()
    taken = store.num_bytes()
    assert taken == pytest.approx(frames * 4 * 24 * 2, abs=15 * 4096)
    assert f"= {taken / 1e9:,.3f} GB in" in caplog.text

    # What is there already needs no room: with one entry gone, room for that one suffices, and less does not.
    gone = entries(cache)[0]
    size = -(-gone.stat().st_size // 4096) * 4096
    gone.unlink()
    for free, fits in [(size, True), (size - 1, False)]:
        monkeypatch.setattr(shutil, "disk_usage", disk_with(free))
        task, student, criterion = build(corpus, teacher_path, teacher_cache=str(cache))
        task.load_dataset("train")
        task.load_dataset("valid")
        if fits:
            assert loss_of(task, student, criterion, [0]) > 0
            gone.unlink(missing_ok=True)
        else:
            with pytest.raises(SystemExit, match="GB more"):
                loss_of(task, student, criterion, [0])


def test_a_disk_that_fills_up_costs_one_warning(corpus, teacher_path, tmp_path, monkeypatch, caplog):
    task, student, criterion = build(corpus, teacher_path, teacher_cache=str(tmp_path))
    seen = batches_seen(task)
    expected = loss_of(task, student, criterion, [0])
    replace = os.replace

    def full(source, target):
        if str(target).endswith(".states"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    for _ in range(3):
        loss_of(task, student, criterion, [3, 7])
    monkeypatch.undo()
    assert caplog.text.count("No space left on device") == 1
    assert seen == [1, 2, 2, 2]
    assert len(entries(tmp_path)) == 1
    assert list(tmp_path.glob("*/unfinished/*")) == [], "half of an entry was left on a full disk"
    assert loss_of(task, student, criterion, [0]) == expected
    assert len(seen) == 4, "what was stored before is still read"


def test_states_beyond_float16_are_given_as_they_are(corpus, teacher_path, tmp_path, caplog):
    def enlarged(**options):
        task, student, criterion = build(corpus, teacher_path, **options)
        run = task.provider.compute

        def larger(*arguments, **wanted):
            encoding = run(*arguments, **wanted)
            encoding.hidden_states[2] = encoding.hidden_states[2] * 1e6
            return encoding

        task.provider.compute = larger
        return task, student, criterion

    expected = loss_of(*enlarged())
    task, student, criterion = enlarged(teacher_cache=str(tmp_path / "half"))
    assert [loss_of(task, student, criterion) for _ in range(2)] == [expected] * 2
    assert caplog.text.count("teacher_cache_dtype=bfloat16") == 1
    assert entries(tmp_path / "half") == []
    task, student, criterion = enlarged(teacher_cache=str(tmp_path / "wide"), teacher_cache_dtype="bfloat16")
    assert loss_of(task, student, criterion) == pytest.approx(expected, rel=0.02)
    assert len(entries(tmp_path / "wide")) == 3


# ----------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "criterion", "told"),
    [
        ({"max_sample_size": 6000}, {}, r"max_sample_size=6000 crops at random.*task\.fixed_crop=true"),
        ({"padded_group_norm": True}, {}, r"task\.padded_group_norm=true"),
        ({}, {"count_padding": True}, r"criterion\.count_padding=false"),
        ({}, {"avg_attn_weight": 1.0}, r"criterion\.avg_attn_weight=0"),
        ({}, {"last_attn_weight": 1.0}, r"criterion\.last_attn_weight=0"),
    ],
)
def test_what_cannot_be_cached_is_refused_by_name(corpus, teacher_path, tmp_path, options, criterion, told):
    def start():
        task, _, _ = build(corpus, teacher_path, criterion, teacher_cache=str(tmp_path / "cache"), **options)
        task.load_dataset("train")

    with pytest.raises(SystemExit, match=told):
        start()
    assert not (tmp_path / "cache").exists()


def test_crops_that_do_not_happen_are_not_refused(corpus, teacher_path, tmp_path):
    task, student, criterion = build(corpus, teacher_path, teacher_cache=str(tmp_path), max_sample_size=30_000)
    assert not task.cfg.fixed_crop
    assert loss_of(task, student, criterion) > 0


def test_a_folder_that_cannot_be_is_refused(corpus, teacher_path, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="is not a folder"):
        build(corpus, teacher_path, teacher_cache=str(tmp_path / "file"))
    task, student, criterion = build(corpus, teacher_path, teacher_cache=str(tmp_path / "file" / "below"))
    with pytest.raises(SystemExit, match="cannot be made"):
        loss_of(task, student, criterion)


def test_attention_maps_are_refused_by_the_cache_itself(corpus, teacher_path, tmp_path):
    task, _, _ = build(corpus, teacher_path, teacher_cache=str(tmp_path))
    with pytest.raises(SystemExit, match="attention maps"):
        task.provider.encode(batch_of(task, [0]), attention_layers=[3])


def test_nothing_is_digested_without_a_cache(corpus, teacher_path, tmp_path):
    task, _, _ = build(corpus, teacher_path)
    assert "audio_digests" not in batch_of(task, [0])
    task, _, _ = build(corpus, teacher_path, teacher_cache=str(tmp_path))
    assert len(set(batch_of(task, range(12))["audio_digests"])) == 12


# ------------------------------------------------------------------------------------ kills and several processes


def test_what_a_killed_writer_left_is_cleared_once_it_is_old(tmp_path):
    store = StateStore(tmp_path, torch.float16)
    store.open()
    old, fresh = store.unfinished / "old", store.unfinished / "fresh"
    for path in (old, fresh):
        path.write_bytes(b"half")
    codec = store.unfinished / "codec.old"
    codec.mkdir()
    (codec / "codec.npz").write_bytes(b"half")
    for path in (old, codec):
        os.utime(path, (time.time() - 7200,) * 2)
    store.open()
    assert not old.exists()
    assert not codec.exists()
    assert fresh.exists(), "another process may still be writing it"
    assert store.num_bytes() == 0


def write_over_and_over(folder, contents: dict[str, torch.Tensor], rounds: int) -> None:
    store = StateStore(folder, torch.float16)
    for _ in range(rounds):
        for digest, states in contents.items():
            store.write(digest, states)


def test_two_processes_write_what_a_third_reads(tmp_path, caplog):
    store = StateStore(tmp_path, torch.float16)
    store.open()
    contents = {audio_digest(torch.tensor([n])): torch.full((2, 500, 8), float(n)).half() for n in range(4)}
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write_over_and_over, args=(tmp_path, contents, 60)) for _ in range(2)]
    for writer in writers:
        writer.start()
    read = 0
    while any(writer.is_alive() for writer in writers):
        for digest, states in contents.items():
            into = torch.empty_like(states)
            if store.read(digest, into):
                read += 1
                assert torch.equal(into, states)
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert read > 0
    assert "damaged" not in caplog.text, "half of an entry was seen"
    assert list(store.unfinished.iterdir()) == []
    assert all(store.read(digest, torch.empty_like(states)) for digest, states in contents.items())


# Put before the training program: kills it with half of its sixth entry written, or tells each run of the teacher.
KILL_IN_MID_WRITE = """
import builtins, os, signal
plain, written = builtins.open, []
def half_at_last(path, mode="r", *rest, **options):
    file = plain(path, mode, *rest, **options)
    if mode == "xb":
        written.append(path)
        if len(written) == 6:
            def half(states, write=file.writelines):
                write(states[: len(states) // 2])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            file.writelines = half
    return file
builtins.open = half_at_last
"""
TELL_TEACHER = """
import fairseq_star
fairseq_star.register()  # fairseq passes over a user dir that is imported already
from fairseq_star.encoder.frozen import FrozenEncoder
run = FrozenEncoder.forward
FrozenEncoder.forward = lambda *arguments, **wanted: (print("THE TEACHER RUNS"), run(*arguments, **wanted))[1]
"""


def losses(stdout: str) -> list[float]:
    return [float(line.split("loss=")[1].split(",")[0]) for line in stdout.splitlines() if " loss=" in line]


PCA = ["task.teacher_cache_compression=pca", "task.teacher_cache_dim=24"]


@pytest.mark.parametrize(("compression", "tolerance"), [([], 1e-3), pytest.param(PCA, 2e-2, marks=pytest.mark.slow)])
def test_killed_in_mid_write_the_same_command_gives_the_losses_of_no_cache(
    tmp_path, corpus, teacher_path, compression, tolerance
):
    """Two epochs of three updates; after the kill two runs at once on what it left."""
    cached = [f"++task.teacher_cache={tmp_path / 'cache'}", *compression]

    def start(name: str, *options: str, before: str = ""):
        arguments = runs.hydra_arguments(corpus, teacher_path, tmp_path / name, *options)
        return runs.start([part if part != runs.TRAIN else before + part for part in arguments])

    uncached, killed = start("uncached", before=TELL_TEACHER), start("killed", *cached, before=KILL_IN_MID_WRITE)
    (plain, stderr), (_, killed_stderr) = uncached.communicate(timeout=300), killed.communicate(timeout=300)
    assert uncached.returncode == 0, stderr
    assert plain.count("THE TEACHER RUNS") == 8  # in each epoch three batches and the validation's one
    assert killed.returncode == -signal.SIGKILL, killed_stderr
    left = {path: path.read_bytes() for path in entries(tmp_path / "cache")}
    assert 4 <= len(left) < 8, "the kill came in the second batch"
    unfinished = [path.stat().st_size for path in tmp_path.glob("cache/*/unfinished/*")]
    assert any(HEADER.size < size < min(map(len, left.values())) for size in unfinished), "it was not in mid-write"

    processes = [start(name, *cached, before=TELL_TEACHER) for name in ("killed", "beside")]
    for process in processes:
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        assert len(losses(stdout)) == 6
        assert losses(stdout) == pytest.approx(losses(plain), rel=tolerance)
        assert stdout.count("THE TEACHER RUNS") <= 3, "the first batch was there, and all of the second epoch"
        assert "damaged" not in stdout + stderr
        assert "teacher cache: 15 utterances" in stdout
    assert len(entries(tmp_path / "cache")) == 15
    assert {path: path.read_bytes() for path in left} == left, "what was whole was not written again"


@pytest.mark.gpu
def test_a_hit_on_a_gpu_waits_for_nothing(corpus, teacher_path, tmp_path):
    task, student, criterion = build(corpus, teacher_path, teacher_cache=str(tmp_path))
    batch = batch_of(task, [0, 3, 7])
    batch["net_input"]["source"] = batch["net_input"]["source"].cuda()
    student.cuda()
    first, _, _ = criterion(student, batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = task.provider.encode(batch, states=[0, 1, 2, 3], last_layer=3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert second.hidden_states[3].is_cuda
    assert torch.equal(criterion(student, batch)[0], first)


def test_criteria_of_one_task_share_nothing_but_the_teacher(corpus, teacher_path, tmp_path):
    """Another chain of states is another setting, also within one run."""
    task, student, paper = build(corpus, teacher_path, teacher_cache=str(tmp_path))
    other = StarTGMCriterion(task, StarTGMConfig(layer_convention="reimplementation"))
    seen = batches_seen(task)
    for _ in range(2):
        for criterion in (paper, other):
            loss_of(task, student, criterion)
    assert seen == [3, 3]
    assert len(list(tmp_path.glob("*/about.json"))) == 2
