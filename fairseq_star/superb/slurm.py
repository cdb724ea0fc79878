"""A SLURM job array: an index an experiment, each the same command with ``--only``."""

import shlex
from pathlib import Path

from fairseq_star.manifest import write_lines
from fairseq_star.superb.sweep import Sweep

_SCRIPT = """#!/bin/bash
#SBATCH --job-name=superb
#SBATCH --array=0-{last}
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --output={out}/slurm-%A_%a.log
# An index an experiment; what is done is not done again, so the whole array may be submitted again.
# Partition, account and time are your cluster's: sbatch --partition=... --time=... {script}
experiments=({names})
cd {here}
{command} --only "${{experiments[$SLURM_ARRAY_TASK_ID]}}"
"""


def write_array(sweep: Sweep, command: list[str]) -> Path:
    """Write ``out/array.sbatch``; its path.

    Args:
        command: of this sweep, without ``--slurm``.
    """
    names = list(dict.fromkeys(one.group for one in sweep.experiments()))
    path = sweep.out / "array.sbatch"
    text = _SCRIPT.format(
        last=len(names) - 1, out=shlex.quote(str(sweep.out)), script=shlex.quote(str(path)), names=" ".join(names),
        here=shlex.quote(str(Path.cwd())), command=shlex.join(command),
    )  # fmt: skip
    write_lines(path, [text])
    return path
