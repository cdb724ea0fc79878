"""What happens to machines: the faults of docs/faults.md, made on purpose. A run goes on, or the same command resumes
it, and ends with the weights of a run that nothing happened to.

SIGKILL is in test_runs.py, bad audio in test_bad_audio.py, a full disk under a teacher cache in test_teacher_cache.py.
"""

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks import checkpoints as checkpoint_safety
from tests.support import runs
from tests.support.preloaded import Process
from tests.support.runs import difference, finish, saved, start_workers

LAST = "checkpoint_last.pt"
# Dropout, random crops, shuffling and data workers are on. Twelve batches an epoch and no buffer: else the workers
# would have done all of an epoch's work, and gone, before its first update.
OPTIONS = [
    "optimization.max_update=14", "checkpoint.save_interval_updates=4", "task.max_sample_size=12000",
    "dataset.num_workers=2", "checkpoint.keep_interval_updates=2", "dataset.batch_size=1", "dataset.data_buffer_size=0",
]  # fmt: skip
# The same, but impatient with a full disk.
IMPATIENT = "import fairseq_star.fairseq_hooks.checkpoints as safety; safety.WAITS = (1, 2); " + runs.TRAIN


@pytest.fixture(scope="module")
def reference(corpus, teacher_path, tmp_path_factory) -> dict:
    """The weights of the run that nothing happened to."""
    folder = tmp_path_factory.mktemp("reference")
    finished = runs.run(runs.hydra_arguments(corpus, teacher_path, folder, *OPTIONS))
    assert finished.returncode == 0, finished.stderr
    return saved(folder / LAST)["model"]


@pytest.fixture
def begin(corpus, teacher_path, tmp_path):
    """Start the run in a process group of its own."""

    def begin(*overrides: str, program: str = runs.TRAIN, save_dir: Path = tmp_path) -> Process:
        arguments = runs.hydra_arguments(corpus, teacher_path, save_dir, *OPTIONS, *overrides)
        arguments[2] = program
        return runs.start(arguments, start_new_session=True)

    return begin


def wait_for(process: Process, text: str) -> str:
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return "".join(seen)
    raise AssertionError(f"{text!r} did not come: {''.join(seen)} {process.stderr.read()}")


def end(process: Process, within: float = 120) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=within)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 0)
        time.sleep(6)  # data workers look for their parent every five seconds
        os.killpg(process.pid, 0)
        raise AssertionError("processes were left behind")
    return process.returncode, stdout, stderr


def updates_of(path: Path) -> int:
    return saved(path)["optimizer_history"][-1]["num_updates"]


def resume(process: Process, folder: Path, reference: dict) -> str:
    """The same command goes on and ends where the reference did."""
    status, stdout, stderr = end(process)
    assert status == 0, stderr
    assert "Loaded checkpoint" in stdout
    assert updates_of(folder / LAST) == 14
    assert difference(reference, saved(folder / LAST)["model"]) == 0
    return stdout


def children(pid: int) -> list[int]:
    """Of all threads: fairseq starts the data workers from one of its own."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def test_sigterm_to_all_processes_then_a_damaged_last_checkpoint(begin, reference, tmp_path):
    """As SLURM sends it: data workers get it too. Then, at another time, the file it saved is cut short."""
    process = begin()
    wait_for(process, "num_updates=5,")
    assert len(children(process.pid)) >= 2
    os.killpg(process.pid, signal.SIGTERM)
    status, stdout, stderr = end(process)
    assert status == 0, stderr
    stopped = updates_of(tmp_path / LAST)
    assert f"stopped by SIGTERM after update {stopped}; the same command goes on" in stdout
    assert 5 <= stopped < 14
    assert "begin validation" not in stdout.split("num_updates=5,")[-1], "longer than a cluster waits"

    last = tmp_path / LAST
    shutil.copytree(tmp_path, tmp_path / "damaged")
    resume(begin(), tmp_path, reference)

    damaged = tmp_path / "damaged" / LAST
    damaged.write_bytes(damaged.read_bytes()[:-3000])
    stdout = resume(begin(save_dir=tmp_path / "damaged"), tmp_path / "damaged", reference)
    told = re.search(r"checkpoint_last\.pt .*is truncated or damaged; .*goes on from (\S+) at update (\d+)", stdout)
    assert told[1].startswith("checkpoint_")
    assert stopped - 4 <= int(told[2]) < stopped, "no more than a save interval lost"
    assert damaged.with_name(f"{LAST}.damaged").is_file()

    # And once finished: a queue that starts it again changes nothing.
    before = last.stat().st_mtime_ns
    status, stdout, _ = end(begin())
    assert status == 0
    assert "the run is finished" in stdout
    assert last.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_data_worker_killed(begin, reference, tmp_path):
    """As the kernel does when memory runs out. torch notices; the run ends at once and resumes."""
    process = begin()
    wait_for(process, "num_updates=5,")
    workers = children(process.pid)
    assert len(workers) >= 2
    for worker in workers:  # all: one of them may have done its part of the epoch already
        os.kill(worker, signal.SIGKILL)
    status, _, stderr = end(process)
    assert status == 1
    [line] = [line for line in stderr.splitlines() if line.startswith("fairseq-star: ")]
    assert re.search(r"a data worker died \(DataLoader worker \(pid.*\) (is killed by|exited unexpectedly)", line)
    assert "Traceback" not in stderr
    assert 4 <= updates_of(tmp_path / LAST) < 14
    resume(begin(), tmp_path, reference)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux's prlimit")
@pytest.mark.parametrize("then", ["stays full", "is given room"])
def test_a_disk_that_fills_up_in_mid_run(then, begin, reference, tmp_path):
    """A limit on the size of files stands in for the disk: writing fails half-way through, in the middle of a run."""
    # No data workers: the limit would be on the memory they share, too.
    process = begin("dataset.num_workers=0", program=IMPATIENT)
    wait_for(process, "num_updates=6,")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    assert LAST in before
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    told = wait_for(process, "trying again in 1 s: make room").splitlines()[-1]
    assert "cannot be written" in told
    assert "GB are free there" in told
    if then == "is given room":
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        status, _, stderr = end(process)
        assert status == 0, stderr
        assert difference(reference, saved(tmp_path / LAST)["model"]) == 0
        return
    status, _, stderr = end(process)
    assert status == 1
    assert stderr.strip().splitlines()[-1].startswith("fairseq-star: ")
    assert "what was saved before is whole" in stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before, "no half files"
    resume(begin(), tmp_path, reference)


@pytest.mark.slow
def test_a_rank_lost(uneven, teacher_path, tmp_path):
    """The other ends with an error within a minute instead of waiting; both resume and end as if nothing had been."""
    options = ["optimization.max_update=12", "checkpoint.save_interval_updates=3", "dataset.batch_size=2"]

    def start(name: str) -> list[Process]:
        return start_workers(tmp_path / name, runs.hydra_arguments(uneven, teacher_path, tmp_path / name, *options))

    finish(start("whole"))
    first, second = start("lost")
    wait_for(first, "num_updates=5,")
    second.kill()
    first.communicate(timeout=60)
    second.communicate()
    assert first.returncode not in (0, None)
    assert 3 <= updates_of(tmp_path / "lost" / LAST) < 12
    finish(start("lost"))
    whole, resumed = (saved(tmp_path / name / LAST)["model"] for name in ("whole", "lost"))
    assert difference(whole, resumed) == 0


@pytest.mark.slow
def test_sigterm_to_one_rank_stops_both_in_the_same_update(uneven, teacher_path, tmp_path):
    options = ["optimization.max_update=300", "dataset.batch_size=2"]
    arguments = runs.hydra_arguments(uneven, teacher_path, tmp_path / "run", *options)
    first, second = start_workers(tmp_path / "run", arguments)
    wait_for(first, "num_updates=5,")
    second.send_signal(signal.SIGTERM)
    outputs = finish([first, second])
    assert f"stopped by SIGTERM after update {updates_of(tmp_path / 'run' / LAST)}" in outputs[0]
    assert updates_of(tmp_path / "run" / LAST) < 300


def checkpoint(path: Path, updates: int, **other) -> Path:
    state = {"model": {"weight": torch.full((4000,), float(updates))}, "extra_state": {}}
    torch.save({**state, "optimizer_history": [{"num_updates": updates}], **other}, path)
    return path


def flipped(data: bytes) -> bytes:
    """One bit of a tensor, which leaves the file's structure whole."""
    middle = data.index(torch.full((4000,), 9.0).numpy().tobytes()) + 8000
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "last byte": lambda data: data[:-1],
    "one bit": flipped,
    "foreign": lambda data: b"<html>",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_last_checkpoint_gives_way_to_the_newest_whole_one(kind, tmp_path, caplog):
    for number, name in enumerate(
        ["checkpoint_1_4.pt", "checkpoint_best.pt", "checkpoint_2_8.pt", "checkpoint_3_9.pt"]
    ):
        os.utime(checkpoint(tmp_path / name, 4 * number), (number, number))
    (tmp_path / "checkpoint_3_9.pt").write_bytes(b"half of a fil")  # newer, and damaged too
    torch.save({"model": {}}, tmp_path / "checkpoint_x.pt")  # newest, readable, but nothing to resume from
    last = checkpoint(tmp_path / LAST, 9)
    last.write_bytes(DAMAGE[kind](last.read_bytes()))
    was = last.read_bytes()
    checkpoint_safety.check_checkpoint(str(tmp_path), LAST)
    assert updates_of(last) == 8
    assert last.with_name(f"{LAST}.damaged").read_bytes() == was
    [record] = caplog.records
    assert "the run goes on from checkpoint_2_8.pt at update 8" in record.message
    assert str(last) in record.message


def test_a_whole_last_checkpoint_is_left_alone_and_half_a_file_removed(tmp_path):
    checkpoint_safety.check_checkpoint(str(tmp_path), LAST)  # none: a run begins
    last = checkpoint(tmp_path / LAST, 3)
    was = last.stat().st_mtime_ns
    (tmp_path / "checkpoint_1_4.pt.tmp").write_bytes(b"killed while saving")
    checkpoint_safety.check_checkpoint(str(tmp_path), LAST)
    assert [*tmp_path.iterdir()] == [last]
    assert last.stat().st_mtime_ns == was


def test_without_another_checkpoint_a_damaged_one_is_the_users_to_remove(tmp_path):
    (tmp_path / LAST).write_bytes(b"")
    with pytest.raises(StarError, match="holds no other whole checkpoint: restore it, or remove it to begin anew"):
        checkpoint_safety.check_checkpoint(str(tmp_path), LAST)
    assert (tmp_path / LAST).is_file()
    with pytest.raises(StarError, match=r"checkpoint\.restore_file: .* is an empty file"):
        checkpoint_safety.check_checkpoint(str(tmp_path), str(tmp_path / LAST))


@pytest.mark.parametrize("write", ["save", "copy"])
def test_a_full_disk_leaves_what_was_there(write, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint_safety, "WAITS", (0, 0))
    path, other = checkpoint(tmp_path / LAST, 3), checkpoint(tmp_path / "checkpoint_1_4.pt", 4)
    was = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        if write == "save":
            with pytest.raises(SystemExit, match=r"fairseq-star: .*checkpoint_last\.pt cannot be written"):
                checkpoint_safety.save_atomically({"model": torch.zeros(4000)}, str(path))
        else:
            with pytest.raises(StarError, match=r"cannot be written \(File too large"):
                checkpoint_safety.copy_atomically(str(other), str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == was
    assert sorted(tmp_path.iterdir()) == [other, path]
    assert len(caplog.records) == 2
    checkpoint_safety.copy_atomically(str(other), str(path))
    assert updates_of(path) == 4


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_disk_that_is_really_full(begin, reference, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("cannot mount")
    try:
        process = begin(program=IMPATIENT, save_dir=disk)
        wait_for(process, "num_updates=6,")
        with contextlib.suppress(OSError), open(disk / "other", "wb", buffering=0) as file:
            while file.write(bytes(65536)):
                pass
        status, _, stderr = end(process)
        assert status == 1
        assert "No space left on device" in stderr or "0.00 GB are free" in stderr
        (disk / "other").unlink()
        assert not list(disk.glob("*.tmp"))
        resume(begin(save_dir=disk), disk, reference)
    finally:
        subprocess.run(["umount", disk], check=True)
