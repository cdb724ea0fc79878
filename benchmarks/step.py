"""The whole training step: naive against this plugin, with HuBERT Base's real dimensions and ``starhubert``.

    python -m benchmarks.step                                       # CPU, float32, B=2 x 16 s
    python -m benchmarks.step --device cuda --dtype bfloat16 --batch 16 --compile
    python -m benchmarks.step --quick                               # a smoke run in seconds, no result to keep

A step is teacher, student, loss, backward and AdamW, through the plugin's own task and criterion; weights are random,
audio is noise. Ways: naive (naive_step.py), on the CPU also with this plugin's settings of the host, fast (no
option), cached (task.teacher_cache, warm), the same with task.teacher_cache_compression=pca, and with --compile
compiled. Each has a process of its own; they run in turn. All compute the same loss, checked before anything is timed.
Writes a dated .md and .json, with a table of the kernels that the fast and the compiled step's time goes to.
"""

import argparse
import math
import multiprocessing
import os
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from fairseq.utils import move_to_cuda
from omegaconf import OmegaConf
from torch import Tensor

from benchmarks.kernels import Kernel, profile_step
from benchmarks.kernels import table as kernels_table
from benchmarks.measure import MEBIBYTE, ROOT, alternate, environment, heading, synchronize, write_result
from benchmarks.models import QUICK_STUDENT, QUICK_TEACHER, write_corpus, write_teacher
from benchmarks.naive_step import naive_loss
from fairseq_star.criterions.star_tgm import StarTGMConfig, StarTGMCriterion
from fairseq_star.encoder.config import DROPOUTS, HUBERT_BASE
from fairseq_star.fairseq_hooks.throughput import step_macs
from fairseq_star.models.starhubert import StarHubertConfig
from fairseq_star.runtime.host import settle_on_host
from fairseq_star.tasks.star_distillation import StarDistillationConfig, StarDistillationTask

PROFILED = ("fast", "compiled")
NAIVE, NAIVE_SETTLED = "naive", "naive, host settled"
CACHED, REDUCED = "cached", "cached, pca"


def build(folder: Path, options: argparse.Namespace, **task_options) -> tuple:
    """Task, student without dropout (so that all ways compute the same) and criterion."""
    config = StarDistillationConfig(
        data=str(folder / "data"), teacher=str(folder / "teacher.pt"), seed=1, skip_audio_check=True, **task_options
    )
    task = StarDistillationTask.setup_task(OmegaConf.structured(config))
    sizes = QUICK_STUDENT if options.quick else {}
    student = StarHubertConfig(**sizes, **dict.fromkeys(DROPOUTS, 0.0), padded_group_norm=False)
    student._name = "starhubert"
    torch.manual_seed(0)
    model = task.build_model(OmegaConf.structured(student)).train().to(options.device, options.torch_dtype)
    criterion = StarTGMCriterion(task, StarTGMConfig(layer_convention="reimplementation"))
    return task, model, criterion


def batch_of(task, options: argparse.Namespace) -> dict:
    """The batch of all utterances, on the device and in the precision of the run, as the trainer prepares it."""
    task.load_dataset("train")
    dataset = task.dataset("train")
    batch = dataset.collater([dataset[index] for index in range(options.batch)])
    batch = move_to_cuda(batch) if options.device == "cuda" else batch
    batch["net_input"]["source"] = batch["net_input"]["source"].to(options.torch_dtype)
    return batch


class Step:
    """One optimizer update, of one way, without anything of the trainer around it; called for timing."""

    def __init__(
        self,
        loss: Callable[[], Tensor],
        gradient: Callable[[], object],
        model: torch.nn.Module,
        gmacs: float,
        criterion=None,
    ):
        self.loss, self.gradient, self.gmacs, self.criterion = loss, gradient, gmacs, criterion
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, eps=1e-6)  # the least that float16 holds

    def __call__(self) -> None:
        self.gradient()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Backward:
    """All that a task's train_step asks of an optimizer."""

    def backward(self, loss: Tensor) -> None:
        loss.backward()


def make_step(way: str, folder: Path, options: argparse.Namespace) -> Step:
    """The step of a way, on a student of its own; all have the same first weights."""
    task, model, criterion = build(folder, options, **task_options(way, folder))
    batch = batch_of(task, options)
    teacher = None if way in (CACHED, REDUCED) else task.teacher.config
    gmacs = step_macs(batch["num_samples"], model.config, teacher) / 1e9
    if way.startswith(NAIVE):
        source = batch["net_input"]["source"]
        task.teacher.follow(source)

        def naive() -> Tensor:
            return naive_loss(task.teacher.model, model, source)

        return Step(naive, lambda: naive().backward(), model, gmacs)

    def loss() -> Tensor:
        total, sample_size, _ = task.valid_step(batch, model, criterion)
        return total / sample_size

    return Step(loss, lambda: task.train_step(batch, model, criterion, Backward(), 0), model, gmacs, criterion)


def task_options(way: str, folder: Path) -> dict:
    """What sets the ways apart in the task's own options."""
    return {
        CACHED: {"teacher_cache": str(folder / "cache")},
        REDUCED: {"teacher_cache": str(folder / "cache"), "teacher_cache_compression": "pca"},
        "compiled": {"compile": True},
    }.get(way, {})


class Way:
    """A way in a process of its own, so that each has its own allocator and its peak memory is its own."""

    def __init__(self, name: str, folder: Path, options: argparse.Namespace):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, folder, options, other), daemon=True)
        self._process.start()
        other.close()

    def ask(self, question: str) -> object:
        """The answer to one of the questions of ``_serve``."""
        self._pipe.send(question)
        try:
            return self._pipe.recv()
        except EOFError:
            sys.exit(f"the process of {self.name} ended; what it said is above")

    def __call__(self) -> None:
        self.ask("step")

    def end(self) -> None:
        self._process.terminate()
        self._process.join()


def _serve(way: str, folder: Path, options: argparse.Namespace, pipe) -> None:
    torch.set_num_threads(options.threads)
    if way != NAIVE:  # naive code does nothing about the host it runs on
        settle_on_host(keep_memory=True)
    step = make_step(way, folder, options)

    def loss() -> float:
        step.loss()  # fills the cache, compiles
        with torch.no_grad():
            return step.loss().item()

    def one_step() -> None:
        step()
        synchronize(options.device)

    answers = {
        "loss": loss,
        "peak": lambda: _peak_bytes(options.device),
        "step": one_step,
        "gmacs": lambda: step.gmacs,
        "profile": lambda: profile_step(one_step, options.device),
        "faults": lambda: _page_faults(step),
        "relations": lambda: _relations_share(step, options.device),
    }
    while True:
        pipe.send(answers[pipe.recv()]())


def _peak_bytes(device: str) -> int:
    """Most memory this process has held: on the CPU resident, torch and all weights included."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _page_faults(step: Step) -> int:
    """Page faults of a step that needed no disk: pages of memory the system had to hand out and zero."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _relations_share(step: Step, device: str) -> float:
    """Share of a step's time in the TGM loss, whose gradient is formed with it."""
    [relations] = step.criterion.terms
    seconds = []

    def timed(batch) -> Tensor:
        synchronize(device)
        start = time.perf_counter()
        value = relations(batch)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
        return value

    step.criterion.terms = [timed]
    start = time.perf_counter()
    step()
    synchronize(device)
    whole = time.perf_counter() - start
    step.criterion.terms = [relations]
    return sum(seconds) / whole


def check_equal(losses: dict[str, float], tolerance: float) -> None:
    """Every way's loss before any update; ends the program where one differs."""
    for name, value in losses.items():
        # States are kept in float16; and by a quarter of their coordinates, of which noise has no principal ones.
        limit = {CACHED: max(tolerance, 2e-3), REDUCED: 0.2}.get(name, tolerance)
        if not math.isclose(value, losses[NAIVE], rel_tol=limit):
            sys.exit(f"{name} computes {value}, naive {losses[NAIVE]}; no time is taken of a wrong result")


def matrix_rate(options: argparse.Namespace) -> float:
    """GMACs a second of a large square product on this machine, now, in the precision of the run."""
    size = 8192 if options.device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=options.device, dtype=options.torch_dtype) for _ in range(2))
    [timing] = alternate([lambda: a @ b], 5, options.device)
    return size**3 / 1e9 / timing.best


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--batch", type=int, default=2, help="utterances (default 2)")
    parser.add_argument("--seconds", type=float, default=16.0, help="of audio each (default 16)")
    parser.add_argument("--rounds", type=int, default=3, help="alternating runs (default 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    parser.add_argument("--compile", action="store_true", help="also with task.compile=true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all")
    options = parser.parse_args(arguments)
    options.torch_dtype = getattr(torch, options.dtype)
    if options.quick:
        options.seconds, options.rounds = 1.0, 1
    return options


def main() -> None:
    """Measure, print, write."""
    options = parse()
    torch.set_num_threads(options.threads)
    made_with = environment(options.device, shlex.join(["python", "-m", "benchmarks.step", *sys.argv[1:]]))
    names = [NAIVE, "fast", CACHED, REDUCED, *(["compiled"] if options.compile else [])]
    if options.device == "cpu":
        names.insert(1, NAIVE_SETTLED)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_teacher(folder / "teacher.pt", QUICK_TEACHER if options.quick else HUBERT_BASE)
        write_corpus(folder / "data", options.batch, options.seconds)
        ways = [Way(name, folder, options) for name in names]
        losses = {way.name: way.ask("loss") for way in ways}
        check_equal(losses, 1e-4 if options.dtype == "float32" else 3e-2)
        timings = dict(zip(names, alternate(ways, options.rounds, "cpu"), strict=True))  # each waits for its device
        peaks = {way.name: way.ask("peak") / MEBIBYTE for way in ways}
        faults = {way.name: way.ask("faults") for way in ways}
        gmacs = {way.name: way.ask("gmacs") for way in ways}
        profiles = {way.name: way.ask("profile") for way in ways if way.name in PROFILED}
        relations = {way.name: way.ask("relations") for way in ways if not way.name.startswith(NAIVE)}
        for way in ways:
            way.end()
        rate = matrix_rate(options)

    result = {
        "made_with": made_with,
        "batch": options.batch,
        "seconds": options.seconds,
        "dtype": options.dtype,
        "losses": losses,
        "steps": {
            name: {
                "median_s": timing.median,
                "best_s": timing.best,
                "speedup": timing.speedup,
                "gmacs": gmacs[name],
                "utilization": gmacs[name] / rate / timing.median,
                "peak_mib": peaks[name],
                "page_faults": faults[name],
            }
            for name, timing in timings.items()
        },
        "share_outside_matrix_products": {name: found.outside for name, found in profiles.items()},
        "share_of_the_loss": relations,
        "matrix_rate_gmacs": rate,
        "kernels": {name: [kernel._asdict() for kernel in found.kernels] for name, found in profiles.items()},
    }
    print(table(result))
    if not options.quick:
        name = f"step-{made_with['date']}-{options.device}-{options.dtype}"
        write_result(options.out, name, table(result), result)


def table(result: dict) -> str:
    """Markdown of a result."""
    lines = heading("Training step, HuBERT Base to starhubert", result["made_with"])
    lines += [
        f"* batch: {result['batch']} x {result['seconds']:g} s of audio, {result['dtype']}",
        "* times: medians of alternating runs, each way in a process of its own; faster: median of the ratios within a "
        "round",
        f"* {NAIVE_SETTLED}: with this plugin's settings of oneDNN and the allocator (`fairseq_star/runtime/host.py`)",
        "* peak MiB: of the whole process; of the cached way with the filling of its cache",
        f"* utilization: GMACs of the encoders' forward passes and the student's backward pass, without a cached "
        f"teacher, at the {result['matrix_rate_gmacs']:,.0f} GMACs a second of a large product here, / time",
        "",
        "| way | seconds | faster | GMACs | utilization | peak MiB | page faults | loss |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, step in result["steps"].items():
        lines.append(
            f"| {name} | {step['median_s']:.3f} | {step['speedup']:.2f}x | {step['gmacs']:.0f} "
            f"| {step['utilization']:.0%} | {step['peak_mib']:.0f} | {step['page_faults']:,} "
            f"| {result['losses'][name]:.6g} |"
        )
    outside = result["share_outside_matrix_products"].items()
    lines += [
        "",
        "Outside matrix products, convolutions and attention: " + _shares(outside, "{:.0%}") + " of the step.",
        "",
        "The loss's share of the step: " + _shares(result["share_of_the_loss"].items(), "{:.1%}") + ".",
        "",
    ]
    for name, kernels in result["kernels"].items():
        lines += [f"## Kernels of the {name} step", "", *kernels_table(Kernel(**row) for row in kernels), ""]
    return "\n".join(lines)


def _shares(shares: Iterable[tuple[str, float]], form: str) -> str:
    return ", ".join(f"{name} {form.format(share)}" for name, share in shares)


if __name__ == "__main__":
    main()
