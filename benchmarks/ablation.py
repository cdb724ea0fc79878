"""What each loss gives: the paper's ablation on the demo corpus, with a frame-matching baseline, judged by probes.

    python -m benchmarks.ablation [--out demo/ablation] [--updates 150] [--seeds 1 2 3] [--jobs 2] [--threads 1]

Every method distils the demo student (configs/demo.yaml) from the embedded teacher with the same updates, batches and
learning rate, from the same first weights for a seed; none is tuned. Each student is probed as by ``fairseq-star
probe``, with one head a student. Losses that need no attention map share a teacher cache. Finished runs are kept in OUT
and not done again, broken ones go on where their last checkpoint was. Writes OUT/ablation.md and OUT/ablation.json.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

import fairseq_star  # noqa: F401  (lets torch read fairseq's checkpoints)
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
from fairseq_star.probe.labels import TASKS, TaskData, read_task
from fairseq_star.probe.run import FBANK, FBANK_RAW, RANDOM, TEACHER, probe_features, summarize
from manifests.preparing import run_script

WEIGHTS = ("layerwise_weight", "intra_layer_weight", "avg_attn_weight", "last_attn_weight")
STAR = "layer-wise + intra-layer"  # the paper's final choice


def _weighted(*names: str) -> dict:
    return {"_name": "star_tgm", **{name: float(name in names) for name in WEIGHTS}}


METHODS = {
    "frame matching": {"_name": "frame_matching"},
    "last-attn": _weighted("last_attn_weight"),
    "avg-attn": _weighted("avg_attn_weight"),
    "layer-wise": _weighted("layerwise_weight"),
    "intra-layer": _weighted("intra_layer_weight"),
    STAR: _weighted("layerwise_weight", "intra_layer_weight"),
    "all three": _weighted("layerwise_weight", "intra_layer_weight", "avg_attn_weight"),
}


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "demo" / "ablation", help="default: demo/ablation")
    parser.add_argument("--data", type=Path, default=ROOT / "demo" / "corpus", help="default: demo/corpus")
    parser.add_argument(
        "--teacher", type=Path, default=ROOT / "assets" / "demo_teacher" / "demo_hubert.pt",
        help="default: the embedded one",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, default=ROOT / "configs" / "demo.yaml", help="default: configs/demo.yaml"
    )
    parser.add_argument("--updates", type=int, default=150, help="of every run (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of each run (default %(default)s)")
    parser.add_argument("--max-utterances", type=int, default=250, help="of each probe part (default %(default)s)")
    options = parser.parse_args(arguments)
    if min(options.updates, options.jobs, options.threads, options.max_utterances) < 1:
        raise StarError("--updates, --jobs, --threads and --max-utterances must be 1 or more")
    options.out, options.data, options.teacher = (
        path.resolve() for path in (options.out, options.data, options.teacher)
    )
    task_data = _task_data(options)  # before hours of training: whether the labels are right

    heads: dict[str, dict[str, list]] = {}
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), _set_threads, (options.threads,)) as pool:
        jobs = {pool.submit(_references, options): None}
        # Those that need no attention map first: they fill the cache that the others of their kind read.
        for method in sorted(options.methods, key=lambda name: _needs_maps(METHODS[name])):
            jobs |= {pool.submit(_student, method, seed, options): (method, seed) for seed in options.seeds}
        done = {}
        for job in tqdm(as_completed(jobs), "ablation", len(jobs), unit="run", disable=None):
            done[jobs[job]] = job.result()
    references = done.pop(None)
    for name in (FBANK, FBANK_RAW, RANDOM):
        heads[name] = references[name]
    for method in options.methods:
        heads[method] = {t.task: [done[method, seed][t.task][0] for seed in options.seeds] for t in task_data}
    heads[TEACHER] = references[TEACHER]

    result = summarize(heads, task_data, options.seeds, student=STAR)
    about = environment("cpu", " ".join(["python -m benchmarks.ablation", *map(str, sys.argv[1:])]))
    text = "\n".join(
        [
            "# Ablation on the demo corpus",
            "",
            f"{options.updates} updates a run, {len(options.seeds)} seeds; the head's seed is the student's.",
            "",
            result.to_markdown(),
            "",
            *(f"* {name}: {value}" for name, value in about.items()),
            "",
        ]
    )
    for name, content in [
        ("ablation.json", json.dumps({"environment": about, **result.to_dict()}, indent=1)),
        ("ablation.md", text),
    ]:
        write_lines(options.out / name, [content])
    print(text)


def _task_data(options: argparse.Namespace) -> list[TaskData]:
    geometry = load_teacher(str(options.teacher), option="--teacher").geometry
    return [read_task(options.data, task, geometry, options.max_utterances) for task in TASKS]


def _set_threads(num_threads: int) -> None:
    torch.set_num_threads(num_threads)


def _needs_maps(criterion: dict) -> bool:
    return any(criterion.get(name) for name in ("avg_attn_weight", "last_attn_weight"))


def _student(method: str, seed: int, options: argparse.Namespace) -> dict[str, list[Trained]]:
    """Train and probe one student, as far as that is not done yet."""
    folder = options.out / f"{method.replace(' ', '')}-{seed}-{options.updates}"
    checkpoint, probed = folder / "checkpoint_last.pt", folder / f"heads-{options.max_utterances}.pt"
    if not probed.is_file():
        if not _is_finished(checkpoint, options.updates):
            _train(method, seed, folder, options)
        encoder = load_teacher(str(checkpoint), option="ablation")
        _save(probed, probe_features(EncoderFeatures(encoder, "cpu"), _task_data(options), [seed], folder.name))
    return _load(probed)


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
        _save(
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
    return _load(path)


def _train(method: str, seed: int, folder: Path, options: argparse.Namespace) -> None:
    """fairseq-hydra-train in a process of its own, on the recipe with another criterion; resumes what is there."""
    config = _recipe(options)
    criterion = METHODS[method]
    config["common"] |= {"seed": seed, "tensorboard_logdir": None, "user_dir": str(ROOT / "fairseq_star")}
    config["checkpoint"] |= {"save_dir": str(folder), "save_interval_updates": 50}
    config["dataset"] |= {"num_workers": 0, "disable_validation": True}
    config["optimization"]["max_update"] = options.updates
    config["lr_scheduler"]["warmup_updates"] = max(1, options.updates // 10)
    config["criterion"] = criterion if criterion["_name"] == "frame_matching" else config["criterion"] | criterion
    config["task"] |= {"data": str(options.data), "teacher": str(options.teacher)}
    if not _needs_maps(criterion):
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


def _save(path: Path, heads: dict) -> None:
    """Heads as plain values and tensors, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save(_mapped(heads, lambda head: head._asdict()), temporary)


def _load(path: Path) -> dict:
    return _mapped(torch.load(path, weights_only=True), lambda values: Trained(**values))


def _mapped(heads: dict, function) -> dict:
    """The same mapping with ``function`` of each item of its lists."""
    return {
        name: [function(one) for one in value] if isinstance(value, list) else _mapped(value, function)
        for name, value in heads.items()
    }


if __name__ == "__main__":
    run_script(main)
