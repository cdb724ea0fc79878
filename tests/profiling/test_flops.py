"""Operations by precision: those that torch's own counter finds, told apart."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from fairseq_star.profiling.flops import FlopsByPrecision
from tests.support.fake_gpu import gpu


def work(dtype):
    left, right = torch.ones(2, 5, 7, dtype=dtype), torch.ones(2, 7, 3, dtype=dtype)
    torch.baddbmm(torch.ones(2, 5, 3, dtype=dtype), left, right)
    torch.conv1d(torch.ones(1, 4, 20, dtype=dtype), torch.ones(6, 2, 3, dtype=dtype), groups=2)
    (left @ right).relu().sum()


def test_the_sum_is_that_of_torchs_counter():
    with FlopCounterMode(display=False) as whole, FlopsByPrecision() as counted:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            work(dtype)
    assert sum(counted.flops.values()) == whole.get_total_flops()
    assert counted.flops[torch.float32] == counted.flops[torch.bfloat16] == 2 * (2 * 2 * 5 * 7 * 3) + 2 * 18 * 6 * 2 * 3
    assert counted.share(torch.float32, torch.bfloat16) == 2 / 3


def test_a_product_with_a_result_of_another_precision_counts_as_its_inputs():
    with gpu(), FlopsByPrecision() as counted:
        left, right = (torch.empty(shape, dtype=torch.float16, device="cuda") for shape in [(2, 5, 7), (2, 7, 3)])
        assert torch.bmm(left, right, out_dtype=torch.float32).dtype == torch.float32
    assert counted.flops == {torch.float16: 2 * 2 * 5 * 7 * 3}


def test_nothing_counted_is_no_share():
    with FlopsByPrecision() as counted:
        torch.ones(3) + 1
    assert counted.share(torch.float32) == 0.0
