"""Freed memory is kept by the process that trains on the CPU, and by no other."""

import os
import platform
import subprocess
import sys

import pytest

import conftest

FAULTS = """
import resource, sys, torch
from fairseq_star.host_memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def allocate():
    for _ in range(5):
        torch.ones(16 * 2**20)  # 64 MiB
allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
allocate()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")


def faults(way: str, **environment: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, way], cwd=conftest.ROOT, env={**clean, **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    kept, number = done.stdout.split()
    return kept, int(number)


@glibc
def test_blocks_are_used_again_without_page_faults():
    _, released = faults("release")
    kept, number = faults("keep")
    assert kept == "True"
    assert number < 100 < released / 10


@glibc
@pytest.mark.parametrize("setting", [("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.top_pad=131072")])
def test_the_environment_has_the_last_word(setting):
    name, value = setting
    assert faults("keep", **{name: value})[0] == "False"
