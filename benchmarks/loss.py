"""The TGM loss alone, forward and backward: the stacked form against ``fairseq_star.losses.tgm``, over audio length.

    python -m benchmarks.loss                                  # CPU, float32
    python -m benchmarks.loss --device cuda --dtype bfloat16
    python -m benchmarks.loss --quick                          # a smoke run in seconds, no result to keep

Naive is what the re-implementation computes: all layers' Gram matrices stacked by einsum, F.mse_loss of them. Both
sides compute the same number (checked before anything is timed). Writes a dated table (.md), all numbers (.json) and a
plot (.png) into benchmarks/results/.
"""

import argparse
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import MEBIBYTE, ROOT, alternate, environment, peak_extra_bytes
from fairseq_star.losses.tgm import choose_form, tgm_loss
from fairseq_star.losses.tgm.naive import stacked_tgm_loss

FRAME_RATE = 50  # Hz
HUBERT_BASE = {"teacher_dim": 768, "student_dim": 432, "num_states": 13}
QUICK = {"teacher_dim": 48, "student_dim": 32, "num_states": 4}
FRAMES = (100, 150, 200, 250, 300, 400, 500, 600, 800, 1000, 1250, 1500, 1750)
# At one utterance all lengths; at four up to 16 s, what a batch of cropped audio looks like.
BATCHES = {1: FRAMES, 4: tuple(frames for frames in FRAMES if frames <= 800)}
MEMORY_FRAMES = (250, 500, 800, 1250, 1750)  # a process each: few are enough to see linear from quadratic
WAYS = ("naive", "auto", "gram", "tiled", "recompute")


def make_states(frames: int, batch: int, dims: dict, device: str, dtype: torch.dtype) -> tuple[list, list]:
    """M random states of teacher (B x T x D_t) and student (B x T x D_s, leaves) with a mean frame, as layers have."""
    generator = torch.Generator().manual_seed(frames)

    def state(width: int) -> Tensor:
        offset = torch.randn(width, generator=generator)
        return (0.5 * torch.randn(batch, frames, width, generator=generator) + offset).to(device, dtype)

    teacher = [state(dims["teacher_dim"]) for _ in range(dims["num_states"])]
    return teacher, [state(dims["student_dim"]).requires_grad_() for _ in range(dims["num_states"])]


class Recompute(torch.autograd.Function):
    """The other backward strategy: the forward pass keeps nothing, the backward pass computes all of it again."""

    @staticmethod
    def forward(ctx, teacher: list, *student: Tensor) -> Tensor:
        ctx.teacher = teacher
        ctx.save_for_backward(*student)
        return tgm_loss(teacher, student, None, first_layerwise_state=0).total

    @staticmethod
    def backward(ctx, incoming: Tensor) -> tuple:
        student = [state.detach().requires_grad_() for state in ctx.saved_tensors]
        with torch.enable_grad():
            total = tgm_loss(ctx.teacher, student, None, first_layerwise_state=0).total
        return None, *torch.autograd.grad(total, student, incoming)


def loss_of(way: str, teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    """The mean loss of a batch, one of ``WAYS``."""
    if way == "naive":
        return stacked_tgm_loss(teacher, student)
    if way == "recompute":
        return Recompute.apply(teacher, *student).mean()
    return tgm_loss(teacher, student, None, first_layerwise_state=0, form=way).total.mean()


def step(way: str, teacher: list[Tensor], student: list[Tensor]) -> Callable[[], object]:
    """Forward and backward as a function of nothing."""
    return lambda: torch.autograd.grad(loss_of(way, teacher, student), student)


def time_row(frames: int, batch: int, options: argparse.Namespace, dims: dict) -> dict:
    """Times of all ways at one length and batch."""
    teacher, student = make_states(frames, batch, dims, options.device, options.torch_dtype)
    with torch.no_grad():
        values = [loss_of(way, teacher, student).item() for way in ("naive", "auto")]
    tolerance = 1e-4 if options.dtype == "float32" else 3e-2
    if not math.isclose(*values, rel_tol=tolerance):
        sys.exit(f"naive and auto disagree at {frames} frames: {values}; no time is taken of a wrong result")
    # As many rounds as a few seconds hold, short lengths more: their single times scatter most.
    rounds = 2 if options.quick else options.rounds * (3 if frames <= 500 else 1)
    timings = alternate([step(way, teacher, student) for way in WAYS], rounds, options.device, options.clock)
    row = {"frames": frames, "batch": batch, "seconds": frames / FRAME_RATE, "form": choose_form(frames, **dims)}
    for way, timing in zip(WAYS, timings, strict=True):
        row[way] = {"median_ms": timing.median * 1e3, "best_ms": timing.best * 1e3, "speedup": timing.speedup}
    return row


def memory_of(way: str, frames: int, batch: int, options: argparse.Namespace) -> float:
    """Peak extra MiB of one forward and backward, gradients included, in a process of its own."""
    command = [
        sys.executable, "-m", "benchmarks.loss", "--memory-of", way, str(frames), str(batch),
        "--device", options.device, "--dtype", options.dtype, "--threads", str(options.threads),
        *(["--quick"] if options.quick else []),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"measuring the memory of {way} at {frames} frames failed:\n{result.stderr}")
    return int(result.stdout.split()[-1]) / MEBIBYTE


def measure_memory(options: argparse.Namespace, dims: dict) -> None:
    """The child's side of ``memory_of``: prints bytes."""
    way, frames, batch = options.memory_of[0], *map(int, options.memory_of[1:])
    step(way, *make_states(8, 1, dims, options.device, options.torch_dtype))()  # libraries and thread pools are there
    states = make_states(frames, batch, dims, options.device, options.torch_dtype)
    print(peak_extra_bytes(step(way, *states), options.device))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--rounds", type=int, default=7, help="alternating runs of each length (default 7)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=("wall", "cpu"),
        help="cpu: this thread's CPU time, for a machine others use too; takes --threads 1",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--no-memory", action="store_true", help="measure times only")
    parser.add_argument("--quick", action="store_true", help="narrow states and two lengths: does it run at all")
    parser.add_argument("--memory-of", nargs=3, metavar=("WAY", "FRAMES", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.clock == "cpu" and (options.threads != 1 or options.device != "cpu"):
        parser.error("--clock cpu counts one thread's time: use it with --threads 1 and --device cpu")
    options.torch_dtype = getattr(torch, options.dtype)
    return options


def main() -> None:
    """Measure, print, write."""
    options = parse()
    torch.set_num_threads(options.threads)
    dims = QUICK if options.quick else HUBERT_BASE
    if options.memory_of:
        return measure_memory(options, dims)
    from benchmarks.loss_report import write_report

    batches = {1: (40, 90)} if options.quick else BATCHES
    made_with = environment(options.device, shlex.join(["python", "-m", "benchmarks.loss", *sys.argv[1:]]))
    name = f"loss-{made_with['date']}-{options.device}-{options.dtype}{'-one-thread' if options.clock == 'cpu' else ''}"
    name += "-quick" if options.quick else ""
    rows = []
    for batch, lengths in batches.items():
        for frames in lengths:
            row = time_row(frames, batch, options, dims)
            if not options.no_memory and frames in ((90,) if options.quick else MEMORY_FRAMES):
                row["memory_mib"] = {
                    way: memory_of(way, frames, batch, options) for way in ("naive", "auto", "recompute")
                }
            rows.append(row)
            write_report(options.out / name, {"made_with": made_with, "dims": dims, "rows": rows})
            naive, auto = row["naive"], row["auto"]
            memory = row.get("memory_mib")
            print(
                f"{row['seconds']:5.1f} s x {batch}  {row['form']:5}  naive {naive['median_ms']:8.1f} ms  "
                f"auto {auto['median_ms']:8.1f} ms  {auto['speedup']:5.2f}x"
                + (f"   memory {memory['naive']:7.1f} / {memory['auto']:6.1f} MiB" if memory else ""),
                flush=True,
            )
    print(f"written: {options.out / name}.md, .json, .png")
    return None


if __name__ == "__main__":
    main()
