"""OpenMP's threads spin on an idle machine and sleep on a busy one."""

import os
import platform
import subprocess
import sys

import pytest

from fairseq_star.runtime import host
from tests.support import ROOT

# Short parallel regions, and between them a millisecond in which the main thread alone has work: what the process uses
# beyond its main thread is then the waiting of the others.
SPINNING = """
import sys, time, torch
from fairseq_star.runtime import host
torch.set_num_threads(2)
cores = host.SharedCores(interval=1e6)
def spinning():
    x = torch.zeros(2**17)
    main, all_threads = time.thread_time(), time.process_time()
    for _ in range(300):
        x.add_(1)
        end = time.thread_time() + 0.001
        while time.thread_time() < end:
            pass
    main, all_threads = time.thread_time() - main, time.process_time() - all_threads
    return (all_threads - main) / main
spinning()
for share in (0.0, 0.5, 0.0):
    cores.respond(share)
    print(spinning())
cores.end()
"""
gnu = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="OpenMP is not GNU's")


def clean() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    return {**kept, "PYTHONPATH": str(ROOT)}


@gnu
def test_threads_wait_asleep_while_the_machine_is_busy_and_spin_again_after_it():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SPINNING], env={**clean(), "GOMP_CPU_AFFINITY": ""},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    idle, busy, after = map(float, done.stdout.split())
    assert busy < 0.5 * idle
    assert busy < 0.5 * after


def test_the_machine_is_busy_until_waiting_is_rare():
    cores = host.SharedCores(interval=1e6)
    seen = []
    for share in (0.0, 0.08, 0.2, 0.08, 0.05, 0.01, 0.08):
        cores.respond(share)
        seen.append(cores.busy)
    cores.end()
    assert seen == [False, False, True, True, True, False, False]
    assert not cores.busy


@pytest.mark.skipif(host.waiting() is None, reason="the system does not count waiting")
def test_waiting_for_a_cpu_is_counted():
    code = (  # a process of one thread: one that ends takes its count with it
        "from fairseq_star.runtime.host import waiting; "
        "before = waiting(); sum(range(10**6)); after = waiting(); "
        "print(after[0] > before[0] > 0, after[1] >= before[1] >= 0)"
    )
    environment = {**clean(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "True True\n", done.stderr


@pytest.mark.parametrize("setting", [{"OMP_WAIT_POLICY": "PASSIVE"}, {"GOMP_SPINCOUNT": "7"}, {"OMP_NUM_THREADS": "1"}])
def test_the_environment_has_the_last_word(setting):
    code = "from fairseq_star.runtime.host import share_cores; print(share_cores())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env={**clean(), **setting},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["False"]
