"""The loss's gradient by half-precision units: its error against float64, computed on the CPU.

    python -m benchmarks.half_units

Half-precision states of 768 and 432, T = 800; the student is the teacher, rotated, plus noise; frames are smooth over
time with a common offset. Y P - X Q as it is formed for states in half precision (``losses/tgm/gram.py``), its
weights P and Q in float32, rounded to half once, or split in two (``split_product``). Half products are emulated: exact
products, float32 sums, as the units compute them.
"""

from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_star.losses.tgm import linalg

FRAMES, TEACHER, STUDENT = 800, 768, 432


def states(noise: float, offset: float) -> tuple[Tensor, Tensor]:
    """X: 1 x T x 768 and Y: 1 x T x 432, float64."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    smooth = F.avg_pool1d(normal(1, STUDENT, FRAMES), 9, 1, 4, count_include_pad=False).mT * 2
    y = smooth + offset * normal(STUDENT)
    return y @ torch.linalg.qr(normal(TEACHER, STUDENT)).Q.mT, y + noise * normal(1, FRAMES, STUDENT)


def emulated(left: Tensor, right: Tensor) -> Tensor:
    """A product of half-precision numbers with a float32 result."""
    return left.float() @ right.float()


WAYS = {
    "float32": lambda states, weights: states.float() @ weights,
    "rounded once": lambda states, weights: emulated(states, weights.to(states.dtype)),
    "split in two": linalg.split_product,
}


def main() -> None:
    """Print the table."""
    print("| states | offset | noise | gradient / products | " + " | ".join(WAYS) + " | rounding to the states' type |")
    print("|---|--:|--:|--:|" + "--:|" * (len(WAYS) + 1))
    for dtype in (torch.float16, torch.bfloat16):
        for offset in (0.0, 1.0, 3.0):
            for noise in (1.0, 0.1, 0.01):
                x, y = (state.to(dtype) for state in states(noise, offset))
                p, q = y.float().mT @ y.float(), x.float().mT @ y.float()
                wide_x, wide_y = x.double(), y.double()
                first = wide_y @ (wide_y.mT @ wide_y)
                exact = first - wide_x @ (wide_x.mT @ wide_y)
                with mock.patch.object(linalg, "_half_bmm", emulated):
                    errors = [(way(y, p) - way(x, q) - exact).norm() / exact.norm() for way in WAYS.values()]
                peak = exact.abs().max()
                errors.append(((exact / peak).to(dtype).double() * peak - exact).norm() / exact.norm())
                cells = " | ".join(f"{float(error):.0e}" for error in [exact.norm() / first.norm(), *errors])
                print(f"| {str(dtype).removeprefix('torch.')} | {offset:g} | {noise:g} | {cells} |")


if __name__ == "__main__":
    main()
