"""What hearing speech as it comes costs a student: phones at each latency beside a student of whole utterances.

    python -m benchmarks.streaming [--out demo/streaming] [--updates 300] [--seeds 1 2 3] [--jobs 2]

Students of the demo recipe (configs/demo.yaml) and the embedded teacher, of the same updates, batches and learning
rate, their phones probed as by ``fairseq-star probe``, with one head a student; none is tuned. ``margin kept`` is what
a student has over random weights, as a share of what the student of whole utterances has, seed by seed. Beside it
stand what the first norm alone changes, layer norms in its place, and students trained for 320 ms alone: chunks of that
size, or of half of it that hear as much of the next one (Emformer's right context), whose encoder computes twice.
Finished runs and probes are kept in OUT and not done again. Writes OUT/streaming.md and OUT/streaming.json.
"""

import argparse
import json
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks import ablation
from benchmarks.ablation_methods import LOSSES, STAR, Method
from benchmarks.measure import ROOT, environment, heading
from benchmarks.recipes import read_recipe
from fairseq_star.analysis.probe.features import EncoderFeatures
from fairseq_star.analysis.probe.labels import PHONE
from fairseq_star.analysis.probe.run import RANDOM, TEACHER, probe_features
from fairseq_star.analysis.untrained import untrained
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.formats import load_teacher
from fairseq_star.formats.student import student_config
from fairseq_star.manifest import write_lines
from manifests.preparing import run_script

OFFLINE, STREAMING, ONE_SIZE = "whole utterances", "streaming, all sizes", "streaming, one size"
AHEAD = "streaming, one size, right context"
GOAL = 0.9  # of the margin, at a latency of GOAL_CHUNK
CHUNKS, GOAL_CHUNK = (4, 8, 16, 32, 0), 16
HALF = GOAL_CHUNK // 2
STREAM = {"_name": "starhubert_stream", "left_context_frames": 128, "right_context_frames": 0}
# name -> (what differs in the model, chunk sizes it is probed at; None: it has none)
ARMS = {
    OFFLINE: ({}, (None,)),
    "whole utterances, running statistics": ({**STREAM, "chunk_frames": [0]}, (0,)),
    "whole utterances, layer norms": ({"extractor_mode": "layer_norm"}, (None,)),
    STREAMING: ({**STREAM, "chunk_frames": [16, 4, 8, 32, 0]}, CHUNKS),
    ONE_SIZE: ({**STREAM, "chunk_frames": [GOAL_CHUNK]}, (GOAL_CHUNK,)),
    AHEAD: ({**STREAM, "chunk_frames": [HALF], "right_context_frames": HALF}, (HALF,)),
}


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ablation.add_arguments(parser)
    parser.set_defaults(out=ROOT / "demo" / "streaming", updates=300)
    others = [name for name in ARMS if name != OFFLINE]
    parser.add_argument(
        "--students", nargs="+", choices=others, default=others, help=f"beside '{OFFLINE}' (default: all)"
    )
    options = ablation.check(parser.parse_args(arguments))
    ablation.phones(options)  # before hours of training: whether the labels are right
    accuracies: dict[str, dict[str, dict[int, float]]] = {}
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), ablation.set_threads, (options.threads,)) as pool:
        jobs = [pool.submit(_references, options)]
        jobs += [
            pool.submit(_arm, arm, seed, options) for arm in (OFFLINE, *options.students) for seed in options.seeds
        ]
        for job in tqdm(as_completed(jobs), "streaming", len(jobs), unit="run", disable=None):
            for name, condition, seed, accuracy in job.result():
                accuracies.setdefault(name, {}).setdefault(condition, {})[seed] = accuracy
    about = environment("cpu", shlex.join(["python", "-m", "benchmarks.streaming", *sys.argv[1:]]))
    text = "\n".join([*heading("Streaming students on the demo corpus", about), "", *table(accuracies, options), ""])
    write_lines(options.out / "streaming.md", [text])
    write_lines(options.out / "streaming.json", [json.dumps({"environment": about, "phones": accuracies}, indent=1)])
    print(text)


def table(accuracies: dict[str, dict[str, dict[int, float]]], options: argparse.Namespace) -> list[str]:
    """Lines of Markdown: phones in %, mean and each seed, and the share of the margin that is kept."""
    lines = [f"{options.updates} updates a run; phones told right, % of test frames.", ""]
    lines += [
        "| student | chunks | phones | "
        + " | ".join(f"seed {seed}" for seed in options.seeds)
        + " | margin kept (each seed) |"
    ]
    lines += ["|---|---|--:|" + "--:|" * len(options.seeds) + "---|"]
    floor, whole = accuracies[RANDOM][told(None)], accuracies[OFFLINE][told(None)]
    goals = []
    for name in (RANDOM, *(arm for arm in ARMS if arm in accuracies), TEACHER):
        for condition, of_seed in accuracies[name].items():
            values = [of_seed[seed] for seed in options.seeds]
            kept = [(of_seed[seed] - floor[seed]) / (whole[seed] - floor[seed]) for seed in options.seeds]
            shares = f"{np.mean(kept):.1%} ({', '.join(f'{share:.1%}' for share in kept)})"
            cells = " | ".join(f"{100 * value:.1f}" for value in values)
            lines.append(f"| {name} | {condition} | {100 * np.mean(values):.1f} | {cells} | {shares} |")
            if condition in (told(GOAL_CHUNK), told(HALF, HALF)) and name != RANDOM:
                goals.append(f"{'met' if np.mean(kept) >= GOAL else 'not met'} by '{name}'")
    return [*lines, "", f"The goal, {GOAL:.0%} of the margin at {told(GOAL_CHUNK)} of latency: {'; '.join(goals)}."]


def told(chunk: int | None, ahead: int = 0) -> str:
    """A chunk size and what it hears of the next one, in frames, for people."""
    ms = f"{20 * (chunk or 0)} + {20 * ahead} ms" if ahead else f"{20 * (chunk or 0)} ms"
    return {None: "–", 0: "all at once"}.get(chunk, ms)


def _arm(arm: str, seed: int, options: argparse.Namespace) -> list[tuple[str, str, int, float]]:
    """Train one student, as far as that is not done yet, and probe it at each of its sizes."""
    model, sizes = ARMS[arm]
    folder = options.out / f"{arm.replace(' ', '').replace(',', '-')}-{seed}-{options.updates}"
    ablation.train(Method(LOSSES[STAR].criterion, model=model), seed, folder, options)
    encoder, found = load_teacher(str(folder / "checkpoint_last.pt"), option="streaming"), []
    for size in sizes:
        if size is not None:
            encoder.use_chunks(size)
        kept = folder / f"phones-{options.max_utterances}-{size}.pt"
        condition = told(size, model.get("right_context_frames", 0))
        found.append((arm, condition, seed, _phones(encoder, seed, kept, options)))
    return found


def _references(options: argparse.Namespace) -> list[tuple[str, str, int, float]]:
    """Random weights, of each kind of student, and the teacher."""
    recipe, teacher = read_recipe(options.config), load_teacher(str(options.teacher), option="--teacher")
    found = []
    for seed in options.seeds:
        for name, chunk in ((OFFLINE, None), (STREAMING, GOAL_CHUNK)):
            config = student_config(recipe["model"] | ARMS[name][0], str(options.config))
            encoder = untrained(config, seed=seed, normalize=teacher.normalize)
            kept = options.out / f"random-{chunk}-{seed}-{options.max_utterances}.pt"
            found.append((RANDOM, told(chunk), seed, _phones(encoder, seed, kept, options)))
        kept = options.out / f"teacher-{seed}-{options.max_utterances}.pt"
        found.append((TEACHER, told(None), seed, _phones(teacher, seed, kept, options)))
    return found


def _phones(encoder: FrozenEncoder, seed: int, kept: Path, options: argparse.Namespace) -> float:
    """Phone accuracy of a frozen encoder, with one head."""
    if not kept.is_file():
        features = EncoderFeatures(encoder, "cpu")
        ablation.save(kept, probe_features(features, ablation.phones(options), [seed], kept.stem))
    return float(ablation.load(kept)[PHONE][0].correct.float().mean())


if __name__ == "__main__":
    run_script(main)
