"""A run's folder written by hand: its log in fairseq's words, with faults planted into options and curves."""

import math
from collections.abc import Callable
from pathlib import Path

LENGTH, WARMUP, PEAK = 400, 40, 0.002
OPTIONS = {
    "common": {"log_interval": 10, "tensorboard_logdir": None},
    "optimization": {"max_update": LENGTH, "lr": [PEAK], "clip_norm": 10.0, "update_freq": [1]},
    "lr_scheduler": {
        "_name": "cosine", "warmup_updates": WARMUP, "warmup_init_lr": -1.0, "min_lr": 0.0, "t_mult": 1.0,
        "lr_period_updates": -1.0, "lr_shrink": 0.1,
    },
    "task": {"mask_prob": 0.0},
    "model": {"init": "random", "encoder_layers": 3},
    "criterion": {"layerwise_weight": 1.0, "intra_layer_weight": 1.0},
}  # fmt: skip


def cosine(update: int, length: float = LENGTH - WARMUP, peak: float = PEAK) -> float:
    if update < WARMUP:
        return peak * update / WARMUP
    turns, within = divmod(update - WARMUP, length)
    return 0.1**turns * peak * (1 + math.cos(math.pi * within / length)) / 2


def loss(update: int) -> float:
    return 100 + 4900 * math.exp(-update / 80)


CURVES: dict[str, Callable[[int], float]] = {
    "loss": loss,
    "gnorm": lambda update: 1.2 * loss(update),
    "lr": cosine,
    "clip": lambda update: 100.0,
    "padding": lambda update: 0.5,
    "data_wait": lambda update: 1.0,
}
VALID: Callable[[int], float] = lambda update: 1.1 * loss(update)  # noqa: E731


def write_run(
    folder: Path,
    *,
    options: dict | None = None,
    curves: dict | None = None,
    valid: Callable[[int], float] = VALID,
    last: int = LENGTH,
    lines: list[str] | None = None,
) -> Path:
    """A folder with a ``train.log``; options are merged section by section, curves by name."""
    folder.mkdir(parents=True, exist_ok=True)
    merged = {name: {**section, **(options or {}).get(name, {})} for name, section in OPTIONS.items()}
    merged |= {name: section for name, section in (options or {}).items() if name not in merged}
    values = {**CURVES, **(curves or {})}
    text = [f"[2026-12-01 00:00:00,000][fairseq_cli.train][INFO] - {merged}"]
    for update in range(10, last + 1, 10):
        shown = ", ".join(f"{name}={of(update):.6g}" for name, of in values.items())
        text.append(
            f"[2026-12-01 00:00:00,000][train_inner][INFO] - epoch 001: 1 / 2 {shown}, num_updates={update}, wall=1"
        )
        if update % 100 == 0:
            text.append(
                f"[2026-12-01 00:00:00,000][valid][INFO] - epoch 001 | valid on 'valid' subset | loss "
                f"{valid(update):.6g} | num_updates {update}"
            )
    (folder / "train.log").write_text("\n".join([*text, *(lines or [])]) + "\n")
    return folder
