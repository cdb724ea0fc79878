"""One run in one folder: the second is refused in one line, and after any end of the first the folder is free."""

import errno
import fcntl
import signal
import subprocess
import sys
import time

import pytest

from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks import run_lock
from fairseq_star.fairseq_hooks.run_lock import lock_run_folder
from fairseq_star.runtime import folder_lock
from tests.support import ROOT, runs

HOLD = (
    "import sys, time; from fairseq_star.fairseq_hooks.run_lock import lock_run_folder\nlock_run_folder(sys.argv[1])\n"
)


def holder(folder, then: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD + "print('locked', flush=True);" + then, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"locked\n"
    return process


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_second_process_is_refused_until_the_first_has_ended_in_whatever_way(tmp_path, kill):
    process = holder(tmp_path / "run", "time.sleep(60)")
    try:
        with pytest.raises(StarError, match=rf"save_dir=.*another run .*process {process.pid} on ") as error:
            lock_run_folder(str(tmp_path / "run"))
        assert "\n" not in str(error.value)
        with pytest.raises(StarError):  # by another path to it
            lock_run_folder(str(tmp_path / "run" / ".." / "run"))
        lock_run_folder(str(tmp_path / "other"))
    finally:
        process.send_signal(kill)
        process.communicate()
    lock_run_folder(str(tmp_path / "run"))
    lock_run_folder(str(tmp_path / "run"))


def test_data_workers_that_outlive_a_killed_run_do_not_keep_the_lock(tmp_path):
    process = holder(tmp_path, "import os; os.fork() or time.sleep(5); time.sleep(60)")
    process.kill()
    process.wait()
    lock_run_folder(str(tmp_path))
    process.stdout.close()


def test_a_file_system_without_locks_is_reported_and_nothing_else(tmp_path, monkeypatch, caplog):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    lock_run_folder(str(tmp_path))
    assert "No locks available" in caplog.text
    assert not folder_lock.is_locked_here(tmp_path, run_lock.FILE)


def test_a_lock_that_is_released_is_free_for_others_and_one_that_is_held_excludes_its_own_process(tmp_path):
    """SUPERB's experiments are many in one process, one after the other."""
    take = "from fairseq_star.runtime.folder_lock import lock_folder; lock_folder(sys.argv[1], '.lock')"

    def another() -> bool:
        return not subprocess.call([sys.executable, "-c", f"import sys; {take}", str(tmp_path)], cwd=ROOT)

    folder_lock.lock_folder(tmp_path, ".lock")
    for folder in (tmp_path, tmp_path / "." / ".." / tmp_path.name):
        with pytest.raises(folder_lock.HeldError, match="this one"):
            folder_lock.lock_folder(folder, ".lock")
    assert not another(), "the refused attempt has released it"
    folder_lock.lock_folder(tmp_path, ".other")
    folder_lock.unlock_folder(tmp_path, ".lock")
    assert another()
    folder_lock.lock_folder(tmp_path, ".lock")
    folder_lock.unlock_folder(tmp_path, ".lock")
    folder_lock.unlock_folder(tmp_path, ".other")


def test_the_same_command_started_twice(corpus, teacher_path, tmp_path):
    """The second run ends in one line before its first update; the first goes on to its end."""
    arguments = runs.hydra_arguments(corpus, teacher_path, tmp_path / "run", "optimization.max_update=400")
    first = runs.start(arguments)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / run_lock.FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    second = runs.start(arguments)
    _, stderr = second.communicate(timeout=200)
    assert second.returncode == 1
    assert "another run is training in this folder" in stderr
    assert "Traceback" not in stderr
    first.send_signal(signal.SIGTERM)
    assert first.communicate(timeout=200)[1] is not None
    assert first.returncode == 0
