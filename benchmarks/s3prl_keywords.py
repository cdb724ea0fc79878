"""s3prl's own keyword task on an exported student, against FBANK and the student's first weights.

    make demo                                                # the demo corpus and the demo student
    python -m benchmarks.s3prl_keywords demo/run/checkpoint_best.pt

The corpus is manifests/demo/keywords.py's (52 synthetic speakers, 20 words, 0 to 40 dB of noise, disjoint speakers); it
is made if it is not there. The student is exported by ``fairseq-star export --to s3prl``, then s3prl's
``run_downstream.py -m train`` and ``-m evaluate`` (started by fairseq_star/superb/programs/launch.py) run on it,
unedited, with the settings of s3prl's own speech_commands/config.yaml but for paths and the number of steps: the same
for all. Accuracy is that of s3prl's test split at its best dev accuracy. Writes a dated .md and .json.

s3prl's ``fbank`` has the mean of each utterance taken off, and the task's head takes means over time of what it
projects linearly: FBANK is at chance by construction (SUPERB's table has 8.63 %). ``fbank_no_cmvn`` keeps the means.
"""

import argparse
import os
import re
import shlex
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from benchmarks.measure import ROOT, environment, heading, write_result
from fairseq_star.deploy.targets import load_target
from fairseq_star.errors import exit_on_star_error
from fairseq_star.formats import Student, export, load_student
from fairseq_star.models.starhubert import StarHubertModel
from manifests.demo import keywords

EVALUATIONS = 4  # on the dev split, while training
RUNNER = ROOT / "fairseq_star" / "superb" / "programs" / "launch.py"


def config(corpus: Path, steps: int) -> dict:
    """s3prl's ``downstream/speech_commands/config.yaml`` for ``corpus``; paths and counts of steps alone are ours."""
    return {
        "runner": {
            "total_steps": steps,
            "gradient_clipping": 1,
            "gradient_accumulate_steps": 1,
            "log_step": max(1, steps // 10),
            "eval_step": max(1, steps // EVALUATIONS),
            "save_step": steps,
            "max_keep": 1,
            "eval_dataloaders": ["dev"],
        },
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1.0e-4},
        "downstream_expert": {
            "datarc": {
                "speech_commands_root": str(corpus.resolve() / "train"),
                "speech_commands_test_root": str(corpus.resolve() / "test"),
                "num_workers": 0,
                "batch_size": 32,
            },
            "modelrc": {
                "projector_dim": 256,
                "select": "UtteranceLevel",
                "UtteranceLevel": {"pooling": "MeanPooling"},
            },
        },
    }


def run(*arguments: str) -> str:
    """s3prl's ``run_downstream.py`` with these arguments, on the CPU; what it printed.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    command = [sys.executable, str(RUNNER), *arguments, "--device", "cpu"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise RuntimeError(f"{shlex.join(command)} ended with {finished.returncode}:\n{finished.stderr[-3000:]}")
    return finished.stdout


def accuracy(upstream: list[str], corpus: Path, steps: int, seed: int, folder: Path) -> float:
    """Train ``speech_commands`` on an upstream (s3prl's ``-u`` and ``-k``) and evaluate it; the test split's accuracy.

    Args:
        folder: of s3prl's experiment; made.
    """
    folder.mkdir(parents=True)
    settings = folder / "settings.yaml"
    settings.write_text(yaml.safe_dump(config(corpus, steps)))
    run("-m", "train", *upstream, "-d", "speech_commands", "-c", str(settings), "-p", str(folder), "--seed", str(seed))
    printed = run("-m", "evaluate", "-e", str(folder / "dev-best.ckpt"))
    return float(re.findall(r"^test acc: ([\d.]+)", printed, flags=re.MULTILINE)[-1])


def untrained(student: Student) -> Student:
    """A student of the same size with first weights."""
    torch.manual_seed(0)
    first = StarHubertModel(student.model.cfg).requires_grad_(False).eval()
    return replace(student, model=first)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a student, such as demo/run/checkpoint_best.pt")
    parser.add_argument("--corpus", type=Path, default=ROOT / "demo" / "keywords", help="made if it is not there")
    parser.add_argument("--steps", type=int, default=600, help="of s3prl's training (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="a training of each (default 1 2)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "s3prl_keywords", help="s3prl's experiments")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    return parser.parse_args(arguments)


def main() -> None:
    """Make the corpus, export, train and evaluate all, write."""
    from tqdm import tqdm

    options = parse()
    made_with = environment("cpu", shlex.join(["python", "-m", "benchmarks.s3prl_keywords", *sys.argv[1:]]))
    work = options.work / f"{made_with['date']}-{os.getpid()}"
    work.mkdir(parents=True)
    with exit_on_star_error():
        if not options.corpus.exists():
            keywords.main([str(options.corpus)])
        student = load_student(options.checkpoint, "checkpoint")
        toolkit = load_target("s3prl")()
        exported = export(student, toolkit, work / "student.pt")
        first = export(untrained(student), toolkit, work / "untrained.pt")
    local = ["-u", "wav2vec2_local", "-k"]
    upstreams = {
        "student": [*local, str(exported.path)],
        "student, first weights": [*local, str(first.path)],
        "FBANK": ["-u", "fbank"],
        "FBANK, not normalized": ["-u", "fbank_no_cmvn"],
    }
    accuracies = {name: [] for name in upstreams}
    # Seed by seed, so that a run that is broken off has compared all.
    for seed in tqdm(options.seeds, "seeds", disable=None):
        for name, upstream in tqdm(upstreams.items(), "upstreams", leave=False, disable=None):
            folder = work / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            accuracies[name].append(accuracy(upstream, options.corpus, options.steps, seed, folder))
    result = {
        "made_with": made_with,
        "parameters": student.num_parameters,
        "export_differs": max(exported.alone, exported.batched),
        "settings": config(options.corpus, options.steps),
        "seeds": options.seeds,
        "accuracies": accuracies,
    }
    print(table(result))
    name = f"s3prl-keywords-{made_with['date']}"
    write_result(options.out, name, table(result), result)


def table(result: dict) -> str:
    """Markdown of a result."""
    runner = result["settings"]["runner"]
    lines = heading("s3prl's keyword task on the exported student", result["made_with"])
    lines += [
        f"* student: {result['parameters']:,} parameters, differs by {result['export_differs']:.0e} in s3prl",
        "* task: s3prl's `speech_commands`, 12 classes (chance 0.083), corpus of manifests/demo/keywords.py",
        f"* training: {runner['total_steps']} steps of 32, Adam, lr 1e-4, as in s3prl's config; upstream frozen",
        "",
        "| upstream | mean test accuracy | " + " | ".join(f"seed {seed}" for seed in result["seeds"]) + " |",
        "|---|--:|" + "--:|" * len(result["seeds"]),
    ]
    for name, values in result["accuracies"].items():
        lines.append(f"| {name} | {statistics.mean(values):.3f} | " + " | ".join(f"{v:.3f}" for v in values) + " |")
    lines += [
        "",
        "FBANK is at chance by construction: s3prl takes the mean off each utterance, and the head pools over time.",
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
