"""What a result was made with: versions, commit, hardware."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from fairseq_star.runtime.version import __version__

_ROOT = Path(__file__).resolve().parents[2]


def versions() -> dict[str, str]:
    """Names and versions of what a result depends on."""
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
    """The processor's name, its architecture where no name is to be found."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def hardware() -> str:
    """Processor, cores and, where there is one, GPU of this machine."""
    host = f"{processor()}, {os.cpu_count()} cores"
    return f"{torch.cuda.get_device_name()}; host {host}" if torch.cuda.is_available() else host


def commit() -> str:
    """Commit of the clone this package lies in, with a note where files differ from it; empty for an installed one."""

    def git(*arguments: str) -> str:
        try:
            result = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=False)
        except OSError:  # no git
            return ""
        return result.stdout.strip() if result.returncode == 0 else ""

    if not (_ROOT / ".git").exists():
        return ""
    found = git("rev-parse", "--short", "HEAD")
    return found + (" and uncommitted changes" if found and git("status", "--porcelain") else "")
