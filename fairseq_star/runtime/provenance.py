"""Versions, commit and hardware that a result was made with."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from fairseq_star.runtime.job import num_cores
from fairseq_star.runtime.version import __version__

_ROOT = Path(__file__).resolve().parents[2]


def versions() -> dict[str, str]:
    """Return names and versions of the software that a result depends on."""
    return {
        "fairseq-star": __version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "fairseq": _fairseq_version(),
        "system": platform.platform(),
    }


def _fairseq_version() -> str:
    for distribution in ("fairseq-fixed", "fairseq"):  # one module under two names
        try:
            return f"{metadata.version(distribution)} ({distribution})"
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def processor() -> str:
    """Return the processor's name, or its architecture where the system names none."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def hardware() -> str:
    """Return processor, cores that may be used and, where there is one, GPU of this machine."""
    host = f"{processor()}, {num_cores()} cores"
    return f"{torch.cuda.get_device_name()}; host {host}" if torch.cuda.is_available() else host


def commit() -> str:
    """Return the commit of this clone, with a note where files differ from it; empty for an installed package."""

    def git(*arguments: str) -> str:
        try:
            result = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=False)
        except OSError:  # no git
            return ""
        return result.stdout.strip() if result.returncode == 0 else ""

    if not (_ROOT / ".git").exists():
        return ""
    head = git("rev-parse", "--short", "HEAD")
    return head + (" and uncommitted changes" if head and git("status", "--porcelain") else "")
