"""Make the embedded teacher again: corpus, targets, HuBERT pretraining by fairseq itself, and the small checkpoint.

    python manifests/demo/teacher.py WORKDIR [--out assets/demo_teacher/demo_hubert.pt]

Each step whose result is in WORKDIR is not repeated, and an interrupted training resumes from its last
checkpoint. The training's log is WORKDIR/train.log. Recipe: configs/demo_teacher.yaml. About an hour on two CPU cores.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from fairseq_star.errors import StarError
from manifests.demo import corpus
from manifests.demo.teacher_targets import write_targets
from manifests.preparing import run_script

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_OUT = ROOT / "assets" / "demo_teacher" / "demo_hubert.pt"
# Where the recipe's user kept things is nobody's business, and a checkpoint must load without them.
NEUTRAL_PATHS = {
    ("task", "data"): "corpus",
    ("task", "label_dir"): "targets",
    ("checkpoint", "save_dir"): "checkpoints",
    ("common", "user_dir"): None,
    ("common", "plasma_path"): None,
    ("common", "tensorboard_logdir"): None,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line described above and return the exit status.

    Raises:
        StarError: a step failed; names the log.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path, metavar="WORKDIR", help="corpus, targets, checkpoints and log go here")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="FILE", help="default %(default)s")
    parser.add_argument("--minutes", type=float, default=210.0, help="of audio, dev included (default %(default)s)")
    parser.add_argument("--train-speakers", type=int, default=150, help="default %(default)s")
    parser.add_argument("--max-update", type=int, default=1500, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of corpus, k-means and training (default %(default)s)")
    options = parser.parse_args(arguments)
    work = options.workdir.resolve()
    corpus.main(
        [
            str(work / "corpus"), "--minutes", str(options.minutes),
            "--train-speakers", str(options.train_speakers), "--seed", str(options.seed),
        ]
    )  # fmt: skip
    if not (work / "targets" / "done").exists():
        write_targets(work / "corpus", work / "targets", options.seed)
        (work / "targets" / "done").touch()
    _train(work, options.max_update, options.seed)
    num_parameters = export(work / "checkpoints" / "checkpoint_last.pt", options.out)
    print(f"{options.out}: {num_parameters:,} parameters, {options.out.stat().st_size / 1e6:.1f} MB")
    print(json.dumps(_accuracies(work / "train.log"), indent=1))
    return 0


def _train(work: Path, max_update: int, seed: int) -> None:
    from tqdm import tqdm

    command = [
        sys.executable, "-m", "fairseq_cli.hydra_train", "--config-dir", str(ROOT / "configs"),
        "--config-name", "demo_teacher", _override("task.data", work / "corpus"),
        _override("task.label_dir", work / "targets"), _override("checkpoint.save_dir", work / "checkpoints"),
        f"optimization.max_update={max_update}", f"common.seed={seed}",
        # Not for training, but for going on: the package lets torch read fairseq's checkpoints.
        _override("common.user_dir", ROOT / "fairseq_star"),
    ]  # fmt: skip
    with (
        open(work / "train.log", "a", encoding="utf-8") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=work, encoding="utf-8", errors="replace"
        ) as training,
        tqdm(total=max_update, desc="training", unit="update") as progress,
    ):
        for line in training.stdout:
            log.write(line)
            log.flush()
            if found := re.search(r'"num_updates": "(\d+)"', line):
                progress.update(int(found[1]) - progress.n)
    if training.returncode != 0:
        raise StarError(f"{work / 'train.log'}: training ended with status {training.returncode}; its end says why")


def _override(option: str, path: Path) -> str:
    """Return hydra's ``option=value``, quoted: spaces, brackets and other characters are special in its grammar."""
    quoted = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"{option}='{quoted}'"


def export(checkpoint: str | os.PathLike, out: Path) -> int:
    """Write the part of a fairseq HuBERT checkpoint that users need: config without paths, the label dictionaries,
    the weights as float16 (fairseq copies them into float32 parameters on loading). The optimizer's state is left out.

    Args:
        checkpoint: written by fairseq's ``hubert_pretraining`` task.
        out: file to write.

    Returns:
        The number of parameters.

    Raises:
        StarError: the checkpoint cannot be read or is no HuBERT.
    """
    import torch

    from fairseq_star.checkpoint import read_checkpoint

    state = read_checkpoint(os.fspath(checkpoint), "demo teacher")
    config = state.get("cfg")
    if not isinstance(config, dict) or (config.get("task") or {}).get("_name") != "hubert_pretraining":
        raise StarError(f"{checkpoint}: is no checkpoint of fairseq's hubert_pretraining task; name another file")
    config = {name: dict(section) for name, section in config.items() if isinstance(section, dict)}
    config.pop("job_logging_cfg", None)  # hydra's, full of paths
    for (section, option), value in NEUTRAL_PATHS.items():
        config[section][option] = value
    left = sorted(_absolute_paths(config))
    if left:
        raise StarError(f"{checkpoint}: its config still has paths of this machine ({', '.join(left)}): add them to"
                        " NEUTRAL_PATHS in manifests/demo/teacher.py")  # fmt: skip
    weights = {
        name: value.detach().cpu().to(torch.float16 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in state["model"].items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "args": None,
            "cfg": config,
            "model": weights,
            "task_state": {"dictionaries": state["task_state"]["dictionaries"]},
            "optimizer_history": state["optimizer_history"],
            "extra_state": {"train_iterator": {"epoch": state["extra_state"]["train_iterator"]["epoch"]}},
        },
        out,
    )
    return sum(value.numel() for value in weights.values())


def _absolute_paths(value: Any) -> set[str]:
    """Return all strings in nested dicts and lists that are absolute paths."""
    if isinstance(value, dict):
        return set().union(*map(_absolute_paths, value.values()))
    if isinstance(value, (list, tuple)):
        return set().union(*map(_absolute_paths, value))
    return {value} if isinstance(value, str) and os.path.isabs(value) else set()


def _accuracies(log: Path) -> dict[str, float]:
    """Return masked (m) and unmasked (u) accuracy of streams 0 (phones) and 1 (k-means), from the last validation."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if "valid_correct" in line]
    if not lines:
        return {}
    logged = json.loads(lines[-1][lines[-1].index("{") :])
    return {name: float(value) for name, value in logged.items() if name.startswith("valid_correct")}


if __name__ == "__main__":
    run_script(main)
