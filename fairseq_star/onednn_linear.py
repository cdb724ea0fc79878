"""Linear layers through oneDNN where torch's own library is slow: on AMD processors with AVX-512.

torch multiplies float32 matrices on x86 with MKL, which keeps to AVX2 on processors that aren't Intel's: half the speed
of their units (benchmarks/README.md, "The whole step"). oneDNN, which torch brings for its convolutions, asks for the
instructions alone.
"""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor


def faster_linear() -> contextlib.AbstractContextManager:
    """A context in which float32 linear layers on the CPU, and their gradients, are computed by the faster library.

    It is one of this processor alone, never of timings, so that a run is repeated bit for bit. Not for code that is
    traced or compiled.
    """
    return onednn_linear() if onednn_is_faster() else contextlib.nullcontext()


@functools.cache
def onednn_is_faster() -> bool:
    """Whether torch multiplies by MKL on a processor that MKL does not use to its width, and can do otherwise."""
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and "AuthenticAMD" in _processor()
    )


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return ""


@contextlib.contextmanager
def onednn_linear() -> Iterator[None]:
    """``torch.nn.functional.linear`` is oneDNN's for float32 matrices on the CPU, until the context is left.

    By that name ``nn.Linear`` and torch's attention find it. A ``TorchFunctionMode`` would touch nothing global, but is
    not asked within ``multi_head_attention_forward``.
    """
    F.linear = _linear
    try:
        yield
    finally:
        F.linear = _torch_linear


_torch_linear = F.linear


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    fits = _fits(x) and _fits(weight) and torch.backends.mkldnn.enabled and not torch.is_autocast_enabled("cpu")
    return _Linear.apply(x, weight, bias) if fits else _torch_linear(x, weight, bias)


def _fits(matrix: Tensor) -> bool:
    return matrix.device.type == "cpu" and matrix.dtype == torch.float32 and matrix.numel() > 0


class _Linear(torch.autograd.Function):
    """x W^T + b with its three products by oneDNN; x: ... x K, weight: N x K, bias: N or None."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x.reshape(-1, x.size(-1)), weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, incoming: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        flat = incoming.reshape(-1, incoming.size(-1))  # M x N
        x_wanted, weight_wanted, bias_wanted = (*ctx.needs_input_grad, False)[:3]
        return (
            product(flat, weight.t()).view_as(x) if x_wanted else None,
            product(flat.t(), x.reshape(-1, x.size(-1)).t()) if weight_wanted else None,
            flat.sum(0) if bias_wanted else None,
        )


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """``left @ right.T + bias`` by oneDNN; left: M x K, right: N x K, either may be a transposed view.

    The operator is the one torch's compiler calls for a linear layer; it has no public name.
    """
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
