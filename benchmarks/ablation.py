"""What each way of distilling gives on the demo corpus, judged by probes.

    python -m benchmarks.ablation [--suite losses] [--out demo/ablation] [--updates 150] [--seeds 1 2 3] [--jobs 2]
    python -m benchmarks.ablation --suite objectives --noisy --equal-time --snrs 20 10 0

``losses`` is the paper's ablation with a frame-matching baseline; ``objectives`` what the student receives and is asked
for (docs/objectives.md); ``cache`` STaR from a teacher cache compressed in several ways (docs/teacher-cache.md). Every
method distils the demo student (configs/demo.yaml) from the embedded teacher with the same updates, batches and
learning rate, from the same first weights for a seed; none is tuned. With ``--noisy`` each has a twin that hears its
speech in noise and rooms; with ``--equal-time`` those that take longer or shorter than STaR (by over 5 % of CPU time)
have one of as many updates as STaR's time allows. Each student is probed as by ``fairseq-star probe``, with one head a
student; with ``--snrs`` the same head also tells phones in noise of kinds never trained on. Methods that need no
attention map share a teacher cache. Finished runs are kept in OUT and not done again, broken ones go on where their
last checkpoint was. Writes OUT/ablation.md and OUT/ablation.json. Real speech to train on, and its speakers to tell:
``python -m benchmarks.real_speech``.
"""

import argparse
import json
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import fairseq_star  # noqa: F401  (lets torch read fairseq's checkpoints)
from benchmarks.ablation_methods import EQUAL_TIME, NOISY, STAR, SUITES, Method, in_noise
from benchmarks.ablation_training import cpu_seconds, fill_cache, recipe, train
from benchmarks.measure import ROOT, environment
from fairseq_star.analysis.probe.features import EncoderFeatures, SpectralFeatures
from fairseq_star.analysis.probe.head import Trained
from fairseq_star.analysis.probe.labels import PHONE, TASKS, TaskData, Utterance, read_task
from fairseq_star.analysis.probe.run import FBANK, FBANK_RAW, RANDOM, TEACHER, probe_features, summarize
from fairseq_star.analysis.units.run import fit_units
from fairseq_star.analysis.untrained import untrained
from fairseq_star.data.augment.distortion import Recordings, mix
from fairseq_star.errors import StarError
from fairseq_star.formats import load_teacher
from fairseq_star.formats.student import student_config
from fairseq_star.manifest import write_lines
from fairseq_star.runtime.files import replacing
from manifests.demo import noise
from manifests.preparing import run_script

CLEAN = ""  # the condition of an utterance heard as it is
ALIKE = 0.05  # of STaR's time: runs no further from it are of equal time already


class Run(NamedTuple):
    """What is trained and probed, once for each seed."""

    method: Method
    updates: int


class Outcome(NamedTuple):
    """One finished run."""

    heads: dict[str, dict[str, list]]  # by condition, then by task, as of :func:`probe_features`
    seconds: float  # of CPU time that its training took


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--equal-time", action="store_true", help="also train each method for STaR's time")
    parser.add_argument(
        "--snrs", type=float, nargs="*", default=[], help="dB; also test phones in noise (default: not)"
    )
    options = check(parser.parse_args(arguments))
    if options.equal_time and STAR not in (options.methods or SUITES[options.suite]):
        raise StarError(f"--equal-time: is the time of {STAR!r}; name that too in --methods")
    task_data = read_tasks(options)  # before hours of training: whether the labels are right
    runs = {name: Run(method, options.updates) for name, method in methods_of(options).items()}

    with ProcessPoolExecutor(options.jobs, get_context("spawn"), set_threads, (options.threads,)) as pool:
        reference_job = pool.submit(_references, options)
        if options.equal_time:
            pool.submit(fill_cache, runs[STAR].method, options).result()
        done = _train_all(pool, runs, options)
        if options.equal_time:
            more = _of_equal_time(runs, done, options.seeds)
            done |= _train_all(pool, more, options)
            runs |= more
        references = reference_job.result()
    heads = {name: references[name] for name in (FBANK, FBANK_RAW, RANDOM)}
    for name in runs:
        heads[name] = {t.task: [done[name, seed].heads[CLEAN][t.task][0] for seed in options.seeds] for t in task_data}
    heads[TEACHER] = references[TEACHER]
    result = summarize(heads, task_data, options.seeds, student=STAR if STAR in runs else next(iter(runs)))

    noises = {
        name: [[_phone_accuracy(done[name, seed], _condition(snr)) for seed in options.seeds] for snr in options.snrs]
        for name in runs
    }
    seconds = {name: [done[name, seed].seconds for seed in options.seeds] for name in runs}
    about = environment("cpu", " ".join(["python -m benchmarks.ablation", *map(str, sys.argv[1:])]))
    text = "\n".join(
        [
            "# Ablation",
            "",
            f"{options.updates} updates a run, {len(options.seeds)} seeds; the head's seed is the student's.",
            "",
            result.to_markdown(),
            "",
            *_noise_table(noises, options.snrs),
            "| trained | updates | CPU seconds, mean over seeds, start included |",
            "|---|--:|--:|",
            *(f"| {name} | {run.updates} | {np.mean(seconds[name]):.0f} |" for name, run in runs.items()),
            "",
            *(f"* {name}: {value}" for name, value in about.items()),
            "",
        ]
    )
    content = {
        "environment": about,
        "updates": {name: run.updates for name, run in runs.items()},
        "noise": noises,
        "seconds": seconds,
        **result.to_dict(),
    }
    write_lines(options.out / "ablation.json", [json.dumps(content, indent=1)])
    write_lines(options.out / "ablation.md", [text])
    print(text)


def _train_all(pool: Executor, runs: Mapping[str, Run], options: argparse.Namespace) -> dict[tuple[str, int], Outcome]:
    """Every run with every seed, as many at a time as the pool has processes."""
    jobs = {}
    # Those that need no attention map first: they fill the cache that the others of their kind read.
    for name, run in sorted(runs.items(), key=lambda item: item[1].method.needs_maps):
        jobs |= {pool.submit(_student, name, run, seed, options): (name, seed) for seed in options.seeds}
    done = tqdm(as_completed(jobs), "ablation", len(jobs), unit="run", disable=None)
    return {jobs[job]: job.result() for job in done}


def _of_equal_time(runs: Mapping[str, Run], done: Mapping, seeds: Sequence[int]) -> dict[str, Run]:
    """Each run that takes another time than STaR's once more, with the updates that STaR's time is enough for.

    Raises:
        StarError: they are of an ablation that kept no times.
    """
    seconds = {name: sum(done[name, seed].seconds for seed in seeds) for name in runs}
    if not all(seconds.values()):
        raise StarError(
            "--equal-time: OUT holds runs of before, whose CPU time nobody kept; give a new folder as --out"
        )
    return {
        name + EQUAL_TIME: run._replace(updates=max(1, round(run.updates * seconds[STAR] / seconds[name])))
        for name, run in runs.items()
        if abs(seconds[name] / seconds[STAR] - 1) > ALIKE
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of whatever trains and probes these methods."""
    parser.add_argument("--suite", choices=SUITES, default="losses", help="which methods (default %(default)s)")
    parser.add_argument("--noisy", action="store_true", help="also train each method's student in noise")
    parser.add_argument("--out", type=Path, default=ROOT / "demo" / "ablation", help="default: demo/ablation")
    parser.add_argument("--data", type=Path, default=ROOT / "demo" / "corpus", help="default: demo/corpus")
    parser.add_argument("--train-data", type=Path, help="manifests to train on, such as real speech (default: --data)")
    parser.add_argument(
        "--teacher", type=Path, default=ROOT / "assets" / "demo_teacher" / "demo_hubert.pt",
        help="default: the embedded one",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, default=ROOT / "configs" / "demo.yaml", help="default: configs/demo.yaml"
    )
    parser.add_argument("--updates", type=int, default=150, help="of every run (default %(default)s)")
    parser.add_argument("--batch-size", type=int, help="utterances of an update (default: the config's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--methods", nargs="+", help="of the suite (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of each run (default %(default)s)")
    parser.add_argument("--max-utterances", type=int, default=250, help="of each probe part (default %(default)s)")


def check(options: argparse.Namespace) -> argparse.Namespace:
    """The options with whole paths.

    Raises:
        StarError: a number that cannot be.
    """
    numbers = [options.updates, options.jobs, options.threads, options.max_utterances]
    if options.batch_size is not None:
        numbers.append(options.batch_size)
    if min(numbers) < 1:
        raise StarError("--updates, --jobs, --threads, --batch-size and --max-utterances must be 1 or more")
    options.train_data = options.train_data or options.data
    for name in ("out", "data", "train_data", "teacher"):
        setattr(options, name, getattr(options, name).resolve())
    return options


def read_tasks(options: argparse.Namespace) -> list[TaskData]:
    """The probes' labels, divided."""
    geometry = load_teacher(str(options.teacher), option="--teacher").geometry
    return [read_task(options.data, task, geometry, options.max_utterances) for task in TASKS]


def set_threads(num_threads: int) -> None:
    torch.set_num_threads(num_threads)


def methods_of(options: argparse.Namespace) -> dict[str, Method]:
    """The methods by name, with what they need made."""
    suite = SUITES[options.suite]
    names = options.methods or list(suite)
    if unknown := set(names) - set(suite):
        raise StarError(f"--methods: {min(unknown)!r} is none of the suite's {', '.join(suite)}")
    folder = options.out / "noise"
    if (options.noisy or options.snrs) and not (folder / "rooms.tsv").is_file():
        noise.main([str(folder)])
    chosen = {name: suite[name] for name in names}
    if options.noisy:
        heard = str(folder / "train.tsv"), str(folder / "rooms.tsv")
        chosen |= {f"{name}{NOISY}": in_noise(method, *heard) for name, method in chosen.items()}
    units = options.out / "units.npz"
    if any(method.needs_units for method in chosen.values()) and not units.is_file():
        options.out.mkdir(parents=True, exist_ok=True)
        layer = max(load_teacher(str(options.teacher), option="--teacher").num_layers - 1, 1)
        fit_units(str(options.teacher), str(options.data), layer=layer, clusters=100, out=str(units), frames=200_000)
    return chosen


def _student(name: str, run: Run, seed: int, options: argparse.Namespace) -> Outcome:
    """Train and probe one student, as far as that is not done yet."""
    folder = options.out / f"{name.replace(' ', '')}-{seed}-{run.updates}"
    conditions = [CLEAN, *map(_condition, options.snrs)]
    probed = folder / f"heads-{'-'.join([str(options.max_utterances), *conditions[1:]])}.pt"
    if not probed.is_file():
        train(run.method, seed, folder, argparse.Namespace(**vars(options) | {"updates": run.updates}))
        features = EncoderFeatures(load_teacher(str(folder / "checkpoint_last.pt"), option="ablation"), "cpu")
        tasks = [_under(conditions, task) if task.task == PHONE else task for task in read_tasks(options)]
        save(probed, probe_features(features, tasks, [seed], folder.name, _hears(options)))
    heads = load(probed)
    [phones] = heads[PHONE]
    by_condition = dict(zip(conditions, phones.correct.chunk(len(conditions)), strict=True))
    return Outcome(
        {condition: heads | {PHONE: [phones._replace(correct=of_one)]} for condition, of_one in by_condition.items()},
        cpu_seconds(folder),
    )


def phones(options: argparse.Namespace) -> list[TaskData]:
    """The phone task alone."""
    return [task for task in read_tasks(options) if task.task == PHONE]


def _condition(snr: float) -> str:
    return f"{snr:g}dB"


def _under(conditions: Sequence[str], task: TaskData) -> TaskData:
    """The task with its test utterances once under each condition, one condition after the other."""
    return replace(task, test=[replace(one, condition=condition) for condition in conditions for one in task.test])


def _hears(options: argparse.Namespace) -> Callable[[Utterance, Tensor], Tensor]:
    """What is heard of an utterance: itself, or a piece of noise beside it that its name decides."""
    ratios = {_condition(snr): snr for snr in options.snrs}
    recordings = Recordings.of("--snrs", str(options.out / "noise" / "test.tsv")) if ratios else None

    def heard(utterance: Utterance, samples: Tensor) -> Tensor:
        if utterance.condition == CLEAN:
            return samples
        rng = np.random.default_rng(zlib.crc32(Path(utterance.path).name.encode()))
        snr = ratios[utterance.condition]
        return mix(samples, recordings.piece(rng, len(samples)), [snr, snr], rng)

    return heard


def _phone_accuracy(outcome: Outcome, condition: str) -> float:
    return float(outcome.heads[condition][PHONE][0].correct.float().mean())


def _noise_table(noises: Mapping[str, list[list[float]]], snrs: Sequence[float]) -> list[str]:
    """Lines of Markdown: mean, and in brackets the lowest and highest of the seeds."""
    if not snrs:
        return []
    lines = ["| phones in noise never trained on | " + " | ".join(f"{snr:g} dB" for snr in snrs) + " |"]
    lines.append("|---|" + "--:|" * len(snrs))
    for name, cells in noises.items():
        told = (f"{np.mean(cell):.1%} ({min(cell):.1%} to {max(cell):.1%})" for cell in cells)
        lines.append(f"| {name} | " + " | ".join(told) + " |")
    return [*lines, ""]


def _references(options: argparse.Namespace) -> dict[str, dict[str, list[Trained]]]:
    """Heads on filter banks, on random-init students (one a seed) and on the teacher."""
    task_data, teacher = read_tasks(options), load_teacher(str(options.teacher), option="--teacher")
    seeds = options.seeds
    path = options.out / f"references-{'-'.join(map(str, seeds))}-{options.max_utterances}.pt"
    if not path.is_file():
        student = student_config(recipe(options)["model"], str(options.config))
        by_seed = [
            probe_features(
                EncoderFeatures(untrained(student, seed=seed, normalize=teacher.normalize), "cpu"),
                task_data,
                [seed],
                f"{RANDOM} {seed}",
            )
            for seed in seeds
        ]
        save(
            path,
            {
                name: probe_features(
                    SpectralFeatures(FBANK, teacher.geometry, normalize=name == FBANK), task_data, seeds, name
                )
                for name in (FBANK, FBANK_RAW)
            }
            | {
                RANDOM: {task.task: [heads[task.task][0] for heads in by_seed] for task in task_data},
                TEACHER: probe_features(EncoderFeatures(teacher, "cpu"), task_data, seeds, TEACHER),
            },
        )
    return load(path)


def save(path: Path, heads: dict) -> None:
    """Heads as plain values and tensors, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save(_mapped(heads, lambda head: head._asdict()), temporary)


def load(path: Path) -> dict:
    return _mapped(torch.load(path, weights_only=True), lambda values: Trained(**values))


def _mapped(heads: dict, function) -> dict:
    """The same mapping with ``function`` of each item of its lists."""
    return {
        name: [function(one) for one in value] if isinstance(value, list) else _mapped(value, function)
        for name, value in heads.items()
    }


if __name__ == "__main__":
    run_script(main)
