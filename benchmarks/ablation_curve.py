"""Long runs of few methods, their phones probed on the way: short runs mislead.

    python -m benchmarks.ablation_curve [--methods "masked STaR" "STaR + units"] [--updates 3200] [--every 400]

Methods, first weights, batches and teacher cache are those of ``benchmarks.ablation --suite objectives`` (its OUT may
be shared); the phone probe reads every checkpoint kept on the way. Finished runs and probes are not done again. Writes
OUT/curve.md, OUT/curve.json and OUT/curve.png.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from benchmarks import ablation
from benchmarks.ablation_methods import STAR, Method
from benchmarks.ablation_training import train, updates_of
from benchmarks.measure import environment, heading, pyplot_or_none
from fairseq_star.analysis.probe.features import EncoderFeatures
from fairseq_star.analysis.probe.labels import PHONE
from fairseq_star.analysis.probe.result import Bootstrap, interval
from fairseq_star.analysis.probe.run import TEACHER, probe_features
from fairseq_star.formats import load_teacher
from fairseq_star.manifest import write_lines
from manifests.preparing import run_script

Point = tuple[int, float, float, float]  # updates, accuracy, ends of its 95 % interval


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ablation.add_arguments(parser)
    parser.add_argument("--every", type=int, default=400, help="updates between probes (default %(default)s)")
    parser.set_defaults(suite="objectives", updates=3200, seeds=[1], methods=[STAR, "masked STaR"], snrs=[])
    options = ablation.check(parser.parse_args(arguments))
    methods = ablation.methods_of(options)
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), ablation.set_threads, (options.threads,)) as pool:
        jobs = {name: pool.submit(_curve, name, method, options) for name, method in methods.items()}
        curves = {name: job.result() for name, job in tqdm(jobs.items(), "curves", unit="run", disable=None)}
    curves[TEACHER] = [(0, *_accuracy(str(options.teacher), options, options.out / "curve-teacher.pt"))]

    about = environment("cpu", " ".join(["python -m benchmarks.ablation_curve", *map(str, sys.argv[1:])]))
    updates = sorted({point[0] for name, curve in curves.items() if name != TEACHER for point in curve})
    lines = [
        *heading("Phones over the updates", about),
        f"* seed {options.seeds[0]}, {options.updates:,} updates; accuracy in % with 95 % intervals over test speakers",
        "",
        "| method | " + " | ".join(f"{number:,}" for number in updates) + " |",
        "|---|" + "--:|" * len(updates),
    ]
    for name, curve in curves.items():
        told = {number: f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})" for number, mean, low, high in curve}
        lines.append(f"| {name} | " + " | ".join(told.get(number, told.get(0, "")) for number in updates) + " |")
    text = "\n".join([*lines, ""])
    write_lines(options.out / "curve.md", [text])
    write_lines(options.out / "curve.json", [json.dumps({"environment": about, "curves": curves}, indent=1)])
    draw(curves, options.out / "curve.png")
    print(text)


def _curve(name: str, method: Method, options: argparse.Namespace) -> list[Point]:
    """Train one method, and probe every checkpoint that it kept."""
    folder = options.out / f"{name.replace(' ', '')}-{options.seeds[0]}-{options.updates}-every{options.every}"
    train(method, options.seeds[0], folder, options, every=options.every, keep=-1)
    found = {updates_of(path): path for path in folder.glob("checkpoint[_0-9]*.pt")}
    return [
        (number, *_accuracy(str(found[number]), options, folder / f"phones-{number}.pt"))
        for number in sorted(found)
        if number % options.every == 0 or number == options.updates
    ]


def _accuracy(checkpoint: str, options: argparse.Namespace, kept: Path) -> tuple[float, float, float]:
    """Phone accuracy of one model, and the ends of its interval."""
    tasks = ablation.phones(options)
    if not kept.is_file():
        features = EncoderFeatures(load_teacher(checkpoint, option="ablation"), "cpu")
        ablation.save(kept, probe_features(features, tasks, options.seeds[:1], Path(checkpoint).name))
    correct = ablation.load(kept)[PHONE][0].correct.numpy()
    clusters = [one.cluster for one in tasks[0].test for _ in one.labels]
    return float(correct.mean()), *map(float, interval(Bootstrap(clusters, 1).draws(correct[None])))


def draw(curves: dict[str, list[Point]], path: Path, *, linear_to: int | None = None) -> None:
    """One line a method, the teacher's as a level; nothing without matplotlib.

    With ``linear_to`` the axis of updates is logarithmic beyond so many of them, and shows 0.
    """
    plt = pyplot_or_none()
    if plt is None:
        return
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for name, curve in curves.items():
        if name == TEACHER:
            axes.axhline(100 * curve[0][1], color="0.4", linestyle="--", label=name)
            continue
        number, mean, low, high = zip(*curve, strict=True)
        [line] = axes.plot(number, [100 * value for value in mean], marker="o", label=name)
        axes.fill_between(number, [100 * v for v in low], [100 * v for v in high], color=line.get_color(), alpha=0.12)
    axes.set(xlabel="updates", ylabel="phones told right, % of test frames")
    if linear_to:
        axes.set_xscale("symlog", linthresh=linear_to)
        axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    run_script(main)
