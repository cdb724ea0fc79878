"""What oneDNN keeps is bounded; freed memory is kept by the process that trains on the CPU, and by no other."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from fairseq_star.runtime.host import bound_primitive_cache
from tests.support import ROOT

FAULTS = """
import resource, sys, torch
from fairseq_star.runtime.host import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def allocate():
    for _ in range(5):
        torch.ones(16 * 2**20)  # 64 MiB
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    allocate()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
allocate()
# The fewest: once in a while something small comes to lie where a block was, which then has to be another place.
print(kept, min(faults() for _ in range(4)))
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")


def faults(way: str, **environment: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, way], cwd=ROOT, env={**clean, **environment},
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


RAGGED = """
import sys, psutil, torch
from fairseq_star.runtime.host import bound_primitive_cache
if sys.argv[1] == "bound":
    bound_primitive_cache()
convolution = torch.nn.Conv1d(64, 64, 8)
for number in range(46):
    convolution(torch.randn(2, 64, 4000 + 37 * number, requires_grad=True)).sum().backward()
    if number == 5:
        before = psutil.Process().memory_info().rss
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


def growth(way: str, **environment: str) -> float:
    """MiB that forty further lengths of one convolution take."""
    clean = {name: value for name, value in os.environ.items() if "PRIMITIVE_CACHE" not in name}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RAGGED, way], cwd=ROOT, env={**clean, **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
def test_ragged_batches_do_not_fill_memory_with_primitives():
    assert growth("bound") < growth("free") / 3


@pytest.mark.parametrize("name", ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"])
def test_a_capacity_that_is_set_stays(monkeypatch, name):
    for known in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.delenv(known, raising=False)
    monkeypatch.setenv(name, "100")
    bound_primitive_cache()
    assert {key: value for key, value in os.environ.items() if "PRIMITIVE_CACHE" in key} == {name: "100"}
