"""Matrix products and sums of squares whose rounding the losses depend on."""

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


def accumulation_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 where any input is float64, else float32: never less, whatever the model's precision."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


@functools.cache
def _bmm_takes_out_dtype() -> bool:
    """Whether ``torch.bmm`` has ``out_dtype`` (torch >= 2.8): half inputs, float32 result, on CUDA only."""
    return any(
        argument.name == "out_dtype"
        for overload in torch.ops.aten.bmm.overloads()
        for argument in getattr(torch.ops.aten.bmm, overload)._schema.arguments
    )


def product(left: Tensor, right: Tensor) -> Tensor:
    """Batched product with float32 (or float64) accumulation *and* result.

    Args:
        left: N x I x K, float16, bfloat16, float32 or float64.
        right: N x K x J, the same.

    Returns:
        N x I x J in ``accumulation_dtype``. Two half inputs on CUDA use the half-precision units with a float32 result
        where torch can; everywhere else half inputs are converted first, which is exact.
    """
    dtype = accumulation_dtype(left.dtype, right.dtype)
    if left.is_cuda and left.dtype in _HALF and left.dtype == right.dtype and _bmm_takes_out_dtype():
        return torch.bmm(left, right, out_dtype=dtype)
    return torch.bmm(left.to(dtype), right.to(dtype))


def inner(left: Tensor, right: Tensor) -> Tensor:
    """<left, right> per utterance: N x I x J twice to [N], float64.

    Rows are summed in the inputs' precision and row sums in float64. The D x D form subtracts three such numbers of
    nearly equal size, so a float32 total would add an error of 6e-8 of that size to every one of them.
    """
    return torch.linalg.vecdot(left, right).sum(dim=-1, dtype=torch.float64)


@contextlib.contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Autocast off and float32 products in real float32 (no TF32, no bfloat16) inside the block.

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
