"""What a job may use: the least of what the machine, its control groups and its scheduler allow."""

import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_star.analysis.plan import plan as planning
from fairseq_star.cli import main
from fairseq_star.runtime import host, job

MIB = 2**20
NONE_1, NONE_2 = 9223372036854771712, "max"  # what versions 1 and 2 write where there is no limit
LIMITS = st.lists(st.none() | st.integers(1, 10**4).map(lambda n: n * MIB), min_size=1, max_size=3)


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def machine(tmp_path_factory, monkeypatch):
    """A function that makes /proc and a hierarchy of control groups, the process's own the last of ``groups``."""

    def made(version: int, files_of_groups: list[dict], *, root: str = "/", seen: str = "/") -> Path:
        folder = tmp_path_factory.mktemp("machine")
        proc, mounted = folder / "proc", folder / "cgroups"
        (proc / "self").mkdir(parents=True)
        (proc / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {20_000 * 1024} kB\n")
        inner = [f"g{number}" for number in range(len(files_of_groups))]
        for number, files in enumerate(files_of_groups):
            group = mounted.joinpath(*inner[1 : number + 1])
            group.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (group / name).write_text(f"{text}\n")
        path = seen.rstrip("/") + "/" + "/".join(inner[1:])
        kind = "cgroup2 cgroup2 rw" if version == 2 else "cgroup cgroup rw,cpu,memory"
        (proc / "self" / "cgroup").write_text(f"{'0:' if version == 2 else '4:cpu,memory'}:{path}\n")
        (proc / "self" / "mountinfo").write_text(f"31 23 0:28 {root} {mounted} rw - {kind}\n")
        monkeypatch.setattr(job, "PROC", proc)
        return mounted

    return made


def memory_group(version: int, limit: int | None, used: int, cached: int) -> dict:
    if version == 1:
        stat = f"inactive_file 1\ntotal_active_file {cached}\ntotal_inactive_file 0"
        return {
            "memory.limit_in_bytes": limit or NONE_1, "memory.usage_in_bytes": used, "memory.stat": stat
        }  # fmt: skip
    stat = f"active_file 0\ninactive_file {cached}"
    return {"memory.max": limit or NONE_2, "memory.high": NONE_2, "memory.current": used, "memory.stat": stat}


@pytest.mark.parametrize("version", [1, 2])
def test_memory_is_the_least_that_any_group_above_the_process_allows(machine, version):
    @given(LIMITS, st.integers(0, 50), st.integers(0, 50))
    def holds(limits, used, cached):
        machine(version, [memory_group(version, limit, used * MIB, cached * MIB) for limit in limits])
        allowed = [max(0, limit - used * MIB + cached * MIB) for limit in limits if limit]
        found = job.free_memory()
        assert found.num_bytes == min([20_000 * MIB, *allowed])
        assert (found.limit == "the machine") == (found.num_bytes == 20_000 * MIB)

    holds()


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_that_sees_its_hosts_path_or_its_own(machine, version):
    group = memory_group(version, 3000 * MIB, 1000 * MIB, 0)
    for root, seen in (("/docker/abc", "/docker/abc"), ("/", "/"), ("/docker/abc", "/")):
        mounted = machine(version, [group], root=root, seen=seen)
        found = job.free_memory()
        assert found.num_bytes == 2000 * MIB
        assert found.limit.startswith(str(mounted))


@pytest.mark.parametrize("version", [1, 2])
def test_cores_are_those_of_affinity_and_quota(machine, version, monkeypatch):
    @given(st.lists(st.none() | st.floats(0.1, 100), min_size=1, max_size=3), st.integers(1, 128))
    def holds(quotas, affinity):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(affinity))
        files = []
        for quota in quotas:
            micros = None if quota is None else max(1, int(quota * 100_000))
            if version == 1:
                files.append({"cpu.cfs_quota_us": -1 if micros is None else micros, "cpu.cfs_period_us": 100_000})
            else:
                files.append({"cpu.max": f"{'max' if micros is None else micros} 100000"})
        machine(version, files)
        counts = [affinity, *(math.ceil(int(quota * 100_000) / 100_000) for quota in quotas if quota)]
        assert job.num_cores() == max(1, min(counts))

    holds()


def test_slurms_variables_count_within_a_job_alone(machine, monkeypatch):
    machine(2, [{}])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    for name, value in (("SLURM_CPUS_PER_TASK", "3"), ("SLURM_CPUS_ON_NODE", "3"), ("SLURM_MEM_PER_CPU", "2048")):
        monkeypatch.setenv(name, value)
    assert (job.num_cores(), job.free_memory().limit) == (64, "the machine")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    own = job.process_bytes("VmRSS")
    found = job.free_memory()
    assert (job.num_cores(), found.limit) == (3, "SLURM_MEM_PER_CPU")
    assert found.num_bytes == pytest.approx(3 * 2048 * MIB - own, abs=100 * MIB)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "3000")
    assert job.free_memory().limit == "SLURM_MEM_PER_NODE"
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # all of the node's
    assert job.free_memory().limit == "SLURM_MEM_PER_CPU"


def test_a_machine_without_groups_or_proc_files(machine, monkeypatch):
    machine(2, [{}])
    (job.PROC / "self" / "cgroup").unlink()
    (job.PROC / "self" / "mountinfo").unlink()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(5))
    assert (job.free_memory().limit, job.num_cores()) == ("the machine", 5)


def test_torch_gets_no_more_threads_than_cores(monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        torch.set_num_threads(4)
        monkeypatch.setattr(host, "num_cores", lambda: 3)
        host.use_own_cores()
        assert torch.get_num_threads() == 3
        monkeypatch.setattr(host, "num_cores", lambda: 8)
        host.use_own_cores()
        assert torch.get_num_threads() == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        monkeypatch.setattr(host, "num_cores", lambda: 1)
        host.use_own_cores()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_users_quota_is_less_than_the_disk(tmp_path, monkeypatch):
    disk = job.free_disk(tmp_path)
    monkeypatch.setattr(job, "_user_quota", lambda path: 1000)
    assert job.free_disk(tmp_path) == 1000 < disk
    monkeypatch.setattr(job, "_user_quota", lambda path: None)
    assert job.free_disk(tmp_path) > 1000


def saved(**options) -> SimpleNamespace:
    every = {
        "no_save": False, "no_last_checkpoints": False, "keep_best_checkpoints": -1, "no_epoch_checkpoints": True,
        "keep_last_epochs": -1, "save_interval": 1, "save_interval_updates": 0, "keep_interval_updates": -1,
    }  # fmt: skip
    return SimpleNamespace(
        checkpoint=SimpleNamespace(**every | options), dataset=SimpleNamespace(disable_validation=False)
    )


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 2),
        ({"no_save": True}, 0),
        ({"no_last_checkpoints": True}, 1),
        ({"keep_best_checkpoints": 3}, 5),
        ({"save_interval_updates": 5}, 9),  # the two, and 8 of which one is at the end of an epoch
        ({"save_interval_updates": 5, "keep_interval_updates": 2}, 4),
        ({"no_epoch_checkpoints": False}, 2 + 5),
        ({"no_epoch_checkpoints": False, "save_interval": 2}, 2 + 2),
        ({"no_epoch_checkpoints": False, "keep_last_epochs": 1}, 2 + 1),
        ({"no_epoch_checkpoints": False, "save_interval_updates": 4}, 2 + 5 + 10 - 5),  # at an epoch's end: that alone
    ],
)
def test_checkpoints_are_counted_as_fairseq_keeps_them(options, count):
    assert planning._checkpoints(saved(**options), updates=40, an_epoch=8) == count


def test_options_in_any_order(monkeypatch):
    taken = {}
    monkeypatch.setattr(planning, "plan", lambda *arguments, **options: taken.update(options) or "planned")
    main(["plan", "a=1", "--config-name", "demo", "b=2", "--steps", "2", "c=3", "d=[4]"])
    assert (taken["overrides"], taken["steps"]) == (["a=1", "b=2", "c=3", "d=[4]"], 2)
