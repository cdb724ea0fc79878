"""What each way of distilling gives on the demo corpus, judged by probes.

    python -m benchmarks.ablation [--suite losses] [--out demo/ablation] [--updates 150] [--seeds 1 2 3] [--jobs 2]
    python -m benchmarks.ablation --suite objectives --noisy --snrs 20 10 0

``losses`` is the paper's ablation with a frame-matching baseline; ``objectives`` what the student hears and is asked
for (docs/objectives.md); ``cache`` STaR from a teacher cache compressed in several ways (docs/teacher-cache.md). Every
method distils the demo student (configs/demo.yaml) from the embedded teacher with the same updates, batches and
learning rate, from the same first weights for a seed; none is tuned. With ``--noisy`` each has a twin that hears its
speech in noise and rooms. Each student is probed as by ``fairseq-star probe``, with one head a student; with ``--snrs``
its phones also in noise of kinds never trained on, the head trained on clean speech. Methods that need no attention map
share a teacher cache. Finished runs are kept in OUT and not done again, broken ones go on where their last checkpoint
was. Writes OUT/ablation.md and OUT/ablation.json.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor
from tqdm import tqdm

import fairseq_star  # noqa: F401  (lets torch read fairseq's checkpoints)
from benchmarks.ablation_methods import NOISY, STAR, SUITES, UNITS_FILE, Method, in_noise
from benchmarks.measure import ROOT, environment
from fairseq_star.checkpoint import read_checkpoint
from fairseq_star.encoder.untrained import untrained
from fairseq_star.errors import StarError
from fairseq_star.files import replacing
from fairseq_star.formats import load_teacher
from fairseq_star.formats.student import student_config
from fairseq_star.manifest import write_lines
from fairseq_star.probe.features import EncoderFeatures, SpectralFeatures
from fairseq_star.probe.head import Trained
from fairseq_star.probe.labels import PHONE, TASKS, TaskData, Utterance, read_task
from fairseq_star.probe.run import FBANK, FBANK_RAW, RANDOM, TEACHER, probe_features, summarize
from fairseq_star.units.run import fit_units
from fairseq_star.view.distortion import Recordings, mix
from manifests.demo import noise
from manifests.preparing import run_script

CLEAN = "clean"


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    options = check(parser.parse_args(arguments))
    task_data = _task_data(options)  # before hours of training: whether the labels are right
    methods = methods_of(options)

    heads: dict[str, dict[str, list]] = {}
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), set_threads, (options.threads,)) as pool:
        jobs = {pool.submit(_references, options): None}
        # Those that need no attention map first: they fill the cache that the others of their kind read.
        for name, method in sorted(methods.items(), key=lambda item: item[1].needs_maps):
            jobs |= {pool.submit(_student, name, method, seed, options): (name, seed) for seed in options.seeds}
        done = {}
        for job in tqdm(as_completed(jobs), "ablation", len(jobs), unit="run", disable=None):
            done[jobs[job]] = job.result()
    references = done.pop(None)
    for name in (FBANK, FBANK_RAW, RANDOM):
        heads[name] = references[name]
    for name in methods:
        heads[name] = {t.task: [done[name, seed][CLEAN][t.task][0] for seed in options.seeds] for t in task_data}
    heads[TEACHER] = references[TEACHER]

    result = summarize(heads, task_data, options.seeds, student=STAR if STAR in methods else next(iter(methods)))
    in_noises = [[name, *(_in_noise(done, name, snr, options.seeds) for snr in options.snrs)] for name in methods]
    seconds = {name: [done[name, seed]["seconds"] for seed in options.seeds] for name in methods}
    about = environment("cpu", " ".join(["python -m benchmarks.ablation", *map(str, sys.argv[1:])]))
    text = "\n".join(
        [
            "# Ablation on the demo corpus",
            "",
            f"{options.updates} updates a run, {len(options.seeds)} seeds; the head's seed is the student's.",
            "",
            result.to_markdown(),
            "",
            *_noise_table(in_noises, options.snrs),
            "Seconds of training, mean over seeds, others running beside: "
            + ", ".join(f"{name} {sum(of_one) / len(of_one):.0f}" for name, of_one in seconds.items())
            + ".",
            "",
            *(f"* {name}: {value}" for name, value in about.items()),
            "",
        ]
    )
    for name, content in [
        (
            "ablation.json",
            json.dumps({"environment": about, "noise": in_noises, "seconds": seconds, **result.to_dict()}, indent=1),
        ),
        ("ablation.md", text),
    ]:
        write_lines(options.out / name, [content])
    print(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of whatever trains and probes these methods."""
    parser.add_argument("--suite", choices=SUITES, default="losses", help="which methods (default %(default)s)")
    parser.add_argument("--noisy", action="store_true", help="also train each method's student in noise")
    parser.add_argument(
        "--snrs", type=float, nargs="*", default=[], help="dB; also test phones in noise (default: not)"
    )
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
    if min(options.updates, options.jobs, options.threads, options.max_utterances) < 1:
        raise StarError("--updates, --jobs, --threads and --max-utterances must be 1 or more")
    options.train_data = options.train_data or options.data
    for name in ("out", "data", "train_data", "teacher"):
        setattr(options, name, getattr(options, name).resolve())
    return options


def _task_data(options: argparse.Namespace) -> list[TaskData]:
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


def _student(name: str, method: Method, seed: int, options: argparse.Namespace) -> dict:
    """Train and probe one student, as far as that is not done yet: heads by condition, and the seconds it trained."""
    folder = options.out / f"{name.replace(' ', '')}-{seed}-{options.updates}"
    checkpoint = folder / "checkpoint_last.pt"
    wanted = {CLEAN: (_task_data, None)}
    wanted |= {f"{snr:g}": (phones, _hears_noise(options, snr)) for snr in options.snrs}
    done = {}
    for condition, (tasks, heard) in wanted.items():
        probed = folder / f"heads-{options.max_utterances}{'' if condition == CLEAN else f'-{condition}dB'}.pt"
        if not probed.is_file():
            train(method, seed, folder, options)
            encoder = load_teacher(str(checkpoint), option="ablation")
            features = EncoderFeatures(encoder, "cpu")
            save(probed, probe_features(features, tasks(options), [seed], folder.name, heard))
        done[condition] = load(probed)
    told = re.findall(r"done training in ([\d.]+) seconds", (folder / "train.log").read_text(encoding="utf-8"))
    return done | {"seconds": sum(map(float, told))}


def phones(options: argparse.Namespace) -> list[TaskData]:
    return [task for task in _task_data(options) if task.task == PHONE]


def _hears_noise(options: argparse.Namespace, snr: float) -> Callable[[Utterance, Tensor], Tensor]:
    """Test utterances in a piece of noise that their path decides; all others as they are."""
    recordings = Recordings.of("--snrs", str(options.out / "noise" / "test.tsv"))
    tested = {one.path for task in phones(options) for one in task.test}

    def heard(utterance: Utterance, samples: Tensor) -> Tensor:
        if utterance.path not in tested:
            return samples
        rng = np.random.default_rng(zlib.crc32(Path(utterance.path).name.encode()))
        return mix(samples, recordings.piece(rng, len(samples)), [snr, snr], rng)

    return heard


def _in_noise(done: dict, name: str, snr: float, seeds: Sequence[int]) -> list[float]:
    """Phone accuracy of each seed's student at a ratio."""
    return [float(done[name, seed][f"{snr:g}"][PHONE][0].correct.float().mean()) for seed in seeds]


def _noise_table(rows: list[list], snrs: Sequence[float]) -> list[str]:
    """Lines of Markdown: mean, and in brackets the lowest and highest of the seeds."""
    if not snrs:
        return []
    lines = ["| phones in noise never trained on | " + " | ".join(f"{snr:g} dB" for snr in snrs) + " |"]
    lines.append("|---|" + "--:|" * len(snrs))
    for name, *cells in rows:
        told = (f"{np.mean(cell):.1%} ({min(cell):.1%} to {max(cell):.1%})" for cell in cells)
        lines.append(f"| {name} | " + " | ".join(told) + " |")
    return [*lines, ""]


def _references(options: argparse.Namespace) -> dict[str, dict[str, list[Trained]]]:
    """Heads on filter banks, on random-init students (one a seed) and on the teacher."""
    task_data, teacher = _task_data(options), load_teacher(str(options.teacher), option="--teacher")
    seeds = options.seeds
    path = options.out / f"references-{'-'.join(map(str, seeds))}-{options.max_utterances}.pt"
    if not path.is_file():
        student = student_config(_recipe(options)["model"], str(options.config))
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


def train(
    method: Method, seed: int, folder: Path, options: argparse.Namespace, *, every: int = 50, keep: int = 1
) -> None:
    """fairseq-hydra-train in a process of its own, on the recipe as the method changes it; resumes what is there.

    Args:
        every, keep: updates between two saves, and how many of them stay beside the last (-1: all).
    """
    if _is_finished(folder / "checkpoint_last.pt", options.updates):
        return
    config = _recipe(options)
    units = str(options.out / "units.npz")
    criterion = method.criterion | {
        "units": [units if name == UNITS_FILE else name for name in method.criterion.get("units", ())] or None
    }
    config["common"] |= {"seed": seed, "tensorboard_logdir": None, "user_dir": str(ROOT / "fairseq_star")}
    config["checkpoint"] |= {"save_dir": str(folder), "save_interval_updates": every, "keep_interval_updates": keep}
    config["dataset"] |= {"num_workers": 0, "disable_validation": True}
    config["optimization"]["max_update"] = options.updates
    config["lr_scheduler"]["warmup_updates"] = max(1, options.updates // 10)
    config["criterion"] |= criterion
    config["model"] |= method.model
    config["task"] |= {"data": str(options.train_data), "teacher": str(options.teacher), **method.task}
    if not method.needs_maps:
        config["task"]["teacher_cache"] = str(options.out / "teacher_cache")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text("# @package _group_\n" + yaml.safe_dump(config), encoding="utf-8")
    command = "from fairseq_cli.hydra_train import cli_main; cli_main()"
    arguments = ["--config-dir", str(folder), "--config-name", "recipe"]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(options.threads))
    with open(folder / "train.log", "a", encoding="utf-8") as log:
        status = subprocess.run(
            [sys.executable, "-c", command, *arguments],
            cwd=ROOT, env={**os.environ, **threads}, stdout=log, stderr=subprocess.STDOUT, check=False,
        ).returncode  # fmt: skip
    if status or not _is_finished(folder / "checkpoint_last.pt", options.updates):
        raise StarError(f"ablation: training {folder.name} ended with status {status}; see {folder / 'train.log'}")


def _recipe(options: argparse.Namespace) -> dict:
    return yaml.safe_load(options.config.read_text(encoding="utf-8"))


def _is_finished(checkpoint: Path, updates: int) -> bool:
    if not checkpoint.is_file():
        return False
    return read_checkpoint(str(checkpoint), "ablation")["optimizer_history"][-1]["num_updates"] >= updates


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
