"""Floating point operations by the precision they are done in: what a GPU's units of each are asked for."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class FlopsByPrecision(TorchDispatchMode):
    """Within it, :attr:`flops` counts the operations of matrix products, convolutions and attention, as
    ``torch.utils.flop_counter`` does, by the dtype of their inputs: two for each multiply-add.

    >>> import torch
    >>> from fairseq_star.profiling.flops import FlopsByPrecision
    >>> with FlopsByPrecision() as counted:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> counted.flops[torch.float32]
    48
    """

    def __init__(self):
        super().__init__()
        self.flops: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        """Count an operation, and have it done."""
        result = operation(*arguments, **(options or {}))
        if (count := flop_registry.get(operation.overloadpacket)) is not None:
            tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
            # ``bmm`` takes a dtype where torch's formula expects a shape.
            shapes = [argument for argument in arguments if not isinstance(argument, torch.dtype)]
            self.flops[tensors[0].dtype] += count(*shapes, **(options or {}), out_val=result)
        return result

    def share(self, *dtypes: torch.dtype) -> float:
        """Share of all operations that is in these precisions; 0 where nothing was counted."""
        total = sum(self.flops.values())
        return sum(self.flops[dtype] for dtype in dtypes) / total if total else 0.0
