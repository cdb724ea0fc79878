"""Matrix products and sums of squares whose rounding the losses depend on."""

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

# A half type -> the factor that scales the remainder of rounding to it: two to the digits of its significand.
_HALF = {torch.float16: 2.0**11, torch.bfloat16: 2.0**8}


def accumulation_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return float64 where any input is float64, else float32, whatever the model's precision."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


@functools.cache
def _bmm_takes_out_dtype() -> bool:
    """Return whether ``torch.bmm`` has ``out_dtype`` (torch >= 2.8): half inputs, float32 result, on CUDA only."""
    return any(
        argument.name == "out_dtype"
        for overload in torch.ops.aten.bmm.overloads()
        for argument in getattr(torch.ops.aten.bmm, overload)._schema.arguments
    )


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return a batched product with float32 (or float64) accumulation *and* result.

    Args:
        left: N x I x K, float16, bfloat16, float32 or float64.
        right: N x K x J, the same.

    Returns:
        N x I x J in ``accumulation_dtype``. On CUDA, where torch can, half inputs use the half-precision units with a
        float32 result, and one half input with a float32 one does as well (``split_product``); everywhere else half
        inputs are converted first, which is exact.
    """
    dtype = accumulation_dtype(left.dtype, right.dtype)
    if _has_half_units(left) and dtype == torch.float32:
        if left.dtype in _HALF and left.dtype == right.dtype:
            return _half_bmm(left, right)
        if left.dtype in _HALF and right.dtype == torch.float32:
            return split_product(left, right)
        if right.dtype in _HALF and left.dtype == torch.float32:
            return split_product(right.mT, left.mT).mT
    return torch.bmm(left.to(dtype), right.to(dtype))


def split_product(states: Tensor, weights: Tensor) -> Tensor:
    """Multiply half-precision states by float32 weights with products of half-precision numbers alone.

    With s the largest weight of an utterance and r the half type's factor for remainders,

        weights / s = high + low / r,    states @ weights = s (states @ high + states @ low / r)

    high and low rounded to the half type, which keeps 22 bits of a weight in float16 and 16 in bfloat16, float32 sums.
    Against float64 that is as exact as a float32 product in float16, and in bfloat16 at worst four times less, a tenth
    of the rounding of the gradient to bfloat16 that follows (benchmarks/loss.md). Weights rounded to half once leave no
    digit of the gradient of a student near its teacher: two such products are subtracted from one another.

    Args:
        states: N x I x K, float16 or bfloat16.
        weights: N x K x J, float32, of any magnitude.

    Returns:
        N x I x J, float32.
    """
    raised = _HALF[states.dtype]
    largest = weights.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)  # N x 1 x 1
    whole = weights / largest
    high = whole.to(states.dtype)
    low = ((whole - high) * raised).to(states.dtype)
    both = _half_bmm(states, torch.cat([high, low], dim=-1))  # N x I x 2J: states are read once
    width = weights.shape[-1]
    return both[..., :width].add(both[..., width:], alpha=1 / raised).mul_(largest)


def add_product(out: Tensor, left: Tensor, right: Tensor, alpha: float = 1.0) -> None:
    """Add alpha left right to ``out``, in place where all have one precision."""
    if left.dtype == right.dtype == out.dtype:
        out.baddbmm_(left, right, alpha=alpha)
    else:
        out.add_(product(left, right), alpha=alpha)


def _has_half_units(like: Tensor) -> bool:
    return like.is_cuda and _bmm_takes_out_dtype()


def _half_bmm(left: Tensor, right: Tensor) -> Tensor:
    return torch.bmm(left, right, out_dtype=torch.float32)


def inner(left: Tensor, right: Tensor) -> Tensor:
    """Return <left, right> of each utterance: N x I x J twice to [N], float64.

    Rows are summed in the inputs' precision and row sums in float64. The D x D form subtracts three such numbers of
    nearly equal size, so a float32 total would add an error of 6e-8 of that size to every one of them.
    """
    return torch.linalg.vecdot(left, right).sum(dim=-1, dtype=torch.float64)


@contextlib.contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Turn autocast off and compute float32 products in real float32 (no TF32, no bfloat16) inside the block.

    Both would round the inputs of products whose results are subtracted from one another. The float32 settings are
    global in torch; those that reduce precision (none does by default) are set back on the way out.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(device_type, enabled=False))
        try:
            before = torch.get_float32_matmul_precision()
        except RuntimeError:  # torch >= 2.9, set through the backends' newer settings: only those can be read then
            for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
                if backend.fp32_precision not in ("none", "ieee"):
                    stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
                    backend.fp32_precision = "ieee"
        else:
            if before != "highest":
                stack.callback(torch.set_float32_matmul_precision, before)
                torch.set_float32_matmul_precision("highest")
        yield
