"""A step on a GPU without one: tensors that say they are on ``cuda`` and hold nothing (``FakeTensorMode``).

What torch computes is left out; which operations it is asked for, on what devices and in which precisions, is as on a
GPU. :class:`HotPath` raises for those that would make the host wait for the device, or that bring a tensor of the host
into a computation of the device.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
# Lengths of results that torch is told, so that it need not ask the device.
TOLD = {aten.repeat_interleave.Tensor: "output_size"}


class HotPath(TorchDispatchMode):
    """Raises AssertionError where the host would wait for the device, or a tensor of the host is computed with.

    It waits for numbers (``item``, ``tolist``, ``bool`` of a tensor), for results whose size depends on numbers
    (``nonzero``, a boolean index), for every copy to the host and for copies to the device without
    ``non_blocking``. A scalar tensor of the host may be computed with: its number travels with the operation.
    """

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        options = options or {}
        tensors = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, Tensor)]
        on_device = any(tensor.is_cuda for tensor in tensors)
        if on_device and self.waits(operation, arguments, options):
            raise AssertionError(f"{operation} makes the host wait for the device")
        if operation in COPIES:
            self.check_copy(operation, arguments, options)
        elif on_device and any(not tensor.is_cuda and tensor.dim() for tensor in tensors):
            raise AssertionError(f"{operation} takes a tensor of the host beside those of the device")
        return operation(*arguments, **options)

    @staticmethod
    def waits(operation, arguments: tuple, options: Mapping) -> bool:
        if operation in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in arguments[1])
        if operation in TOLD:
            return options.get(TOLD[operation]) is None
        tags = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
        return any(tag in operation.tags for tag in tags)

    @staticmethod
    def check_copy(operation, arguments: tuple, options: Mapping) -> None:
        if operation is aten.copy_.default:
            target, source = arguments[:2]
            target, non_blocking = target.device.type, arguments[2] if len(arguments) > 2 else False
        else:
            source = arguments[0]
            target, non_blocking = options.get("device", source.device), options.get("non_blocking")
            target = torch.device(target or source.device).type
        if source.device.type == target:
            return
        if target == "cpu":
            raise AssertionError("a copy to the host waits for the device")
        if not non_blocking:
            raise AssertionError("a copy to the device without non_blocking waits for it")


@functools.cache
def no_gpu_is_needed() -> bool:
    """Whether this torch lets tensors on ``cuda`` be indexed without a GPU; 2.6 does not."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            torch.empty(2, device="cuda")[:, None]
        except RuntimeError:
            return False
    return True


@contextlib.contextmanager
def gpu() -> Iterator[None]:
    """Within it tensors made on ``cuda`` hold nothing; ``torch.autocast`` believes that there is a GPU. Skips the test
    where torch cannot do so."""
    if not no_gpu_is_needed():
        pytest.skip(f"torch {torch.__version__} asks the driver of a GPU when such a tensor is indexed")
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
    ):
        yield


def on_gpu(module: nn.Module, dtype: torch.dtype) -> None:
    """Move a module to the GPU that is not there, in place; to be called within :func:`gpu`."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = _placed(tensor, dtype)


def batch_on_gpu(batch: dict, dtype: torch.dtype) -> dict:
    """A batch as fairseq's trainer hands it on: every tensor on the GPU, floating ones in the run's precision."""
    return tree_map_only(Tensor, lambda tensor: _placed(tensor, dtype), batch)


def _placed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    dtype = dtype if tensor.is_floating_point() else tensor.dtype
    placed = torch.empty(tensor.shape, dtype=dtype, device="cuda")
    return nn.Parameter(placed, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else placed
