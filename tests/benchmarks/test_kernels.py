"""Where a step's time goes: what torch's profiler counts twice is counted once."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks.kernels import SHOWN, Kernel, profile_step, read_events, table


def event(key: str, device_type: DeviceType, microseconds: float, **other):
    return SimpleNamespace(key=key, device_type=device_type, count=2, self_device_time_total=microseconds, **other)


def test_gpu_time_is_counted_once():
    events = [
        event("aten::mm", DeviceType.CPU, 30.0),
        event("aten::gelu", DeviceType.CPU, 10.0),
        event("sm90_gemm_bf16", DeviceType.CUDA, 30.0),
        event("gelu_kernel", DeviceType.CUDA, 10.0),
        event("Optimizer.step#AdamW.step", DeviceType.CUDA, 40.0, is_user_annotation=True),
    ]
    found = read_events(events, "cuda")
    assert found.kernels == [
        Kernel("sm90_gemm_bf16", 2, pytest.approx(30e-6), 0.75), Kernel("gelu_kernel", 2, pytest.approx(10e-6), 0.25)
    ]  # fmt: skip
    assert found.outside == pytest.approx(0.25)


def test_profile_of_a_product_on_the_cpu():
    a = torch.randn(256, 256)
    found = profile_step(lambda: a @ a, "cpu")
    assert "aten::mm" in [kernel.name for kernel in found.kernels]
    assert sum(kernel.share for kernel in found.kernels) == pytest.approx(1.0)
    assert 0 <= found.outside < 1


def test_table_sums_up_what_it_does_not_show():
    rows = [Kernel(f"k{number}", 3, 0.001, 0.05) for number in range(SHOWN + 8)]
    lines = table(rows)
    assert len(lines) == 2 + SHOWN + 1
    assert lines[-1] == "| `8 others` | 24 | 8.00 | 40.0% |"
