"""``fairseq-star report``: one page on a distillation run, for readers who have not seen the code."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from fairseq_star.analysis.curves import read_curves
from fairseq_star.analysis.doctor.doctor import diagnose
from fairseq_star.analysis.report import html, sections
from fairseq_star.analysis.report.compare import Students, compare, utterance_maps
from fairseq_star.analysis.runs import load_run
from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks.sliced import read_report
from fairseq_star.plots.matrices import choose_layers
from fairseq_star.plots.style import require_matplotlib
from fairseq_star.runtime.files import replacing

CHECKPOINTS = ("checkpoint_best.pt", "checkpoint_last.pt")


def report(
    run_dir: str | os.PathLike,
    out: str | os.PathLike | None = None,
    *,
    split: str = "valid",
    utterance: str | None = None,
    layers: list[int] | None = None,
    **places: str | Sequence[str] | None,
) -> Path:
    """Write the report of a run, a self-contained HTML file and its pictures as PNGs in a folder; return its path.

    Args:
        run_dir: ``checkpoint.save_dir`` of a run. Its ``profile.json`` and ``probe.json`` (``fairseq-star profile`` and
            ``probe`` with ``--json``), where there, go into the report.
        out: the HTML file; ``report.html`` in ``run_dir`` when None.
        split: manifest to compare teacher and student on.
        utterance: file name of the utterance to draw; one of about 2.5 s when None.
        layers: student layers (1-based) to draw; the first, the middle and the last when None.
        places: of the run's files, as :class:`fairseq_star.analysis.runs.Places` has them.

    Raises:
        StarError: no run there, a log or result that cannot be read, a layer or utterance that does not exist.
    """
    require_matplotlib()
    run_dir = Path(run_dir)
    if out is not None and Path(out).suffix not in (".html", ".htm"):
        raise StarError(f"--out {out}: name the page to write, such as report.html")
    checkpoint = find_checkpoint(run_dir)
    run = load_run(str(checkpoint), option="report", **places)
    curves = read_curves(run_dir, run.cfg.common.tensorboard_logdir)
    probe = sections.read_probe(run_dir)
    chosen = choose_layers(len(run.criterion.teacher_layers), layers)
    run.task.cfg.max_sample_size = None  # whole utterances, so that pictures fit their labels
    run.task.load_dataset(split)
    dataset = run.task.dataset(split)
    students = Students.of(run, "cuda" if torch.cuda.is_available() else "cpu")
    maps = utterance_maps(run, students, dataset, split, utterance, chosen)
    profile = sections.read_profile(run_dir, str(checkpoint), run.cfg.task.teacher)
    similarity = compare(run, students, dataset)

    options = {"out": out, **places, "utterance": utterance, "split": split if split != "valid" else None}
    command = ["fairseq-star", "report", str(run_dir)]
    for option, value in (options | {"layers": layers}).items():
        if value:
            command += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    pictures = html.Pictures()
    name = "/".join(run_dir.resolve().parts[-2:])  # such as demo/run
    body = [
        *sections.opening(name, run, similarity, profile),
        *sections.training(pictures, curves, run_dir),
        *sections.health(diagnose(run_dir)),
        *sections.beginning(pictures, read_report(run_dir)),
        *sections.utterance(pictures, maps),
        *sections.likeness(pictures, similarity, split),
        *sections.cost(profile),
        *sections.knowledge(pictures, probe, checkpoint, run_dir),
        *sections.making(run, curves, shlex.join(command)),
    ]
    out = Path(out) if out else run_dir / "report.html"
    _write(out, html.page(f"Distillation report: {name}", body).encode())
    for picture, themes in pictures.files.items():
        _write(out.with_suffix("") / f"{picture}.png", themes["light"])
    return out


def find_checkpoint(run_dir: Path) -> Path:
    """Return the best checkpoint of a run, or its last.

    Raises:
        StarError: there is no such folder, or neither of them in it.
    """
    if not run_dir.is_dir():
        raise StarError(f"report: {run_dir} is no folder; give a run's checkpoint.save_dir, such as demo/run")
    for name in CHECKPOINTS:
        if (run_dir / name).is_file():
            return run_dir / name
    raise StarError(
        f"report: {run_dir} holds neither {' nor '.join(CHECKPOINTS)}; give a run's checkpoint.save_dir, such as "
        "demo/run"
    )


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise StarError(f"report: {path} cannot be written ({error.strerror}); give another file with --out") from error
