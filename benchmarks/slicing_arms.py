"""The students that ``benchmarks.slicing`` compares, by suite, and the recipe that each is trained with."""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from benchmarks.ablation import methods_of
from benchmarks.ablation_methods import HIDING, LOSSES, OBJECTIVES, STAR, Method
from benchmarks.recipes import read_recipe
from fairseq_star.analysis.probe.labels import TEST_SPLIT, TRAIN_SPLIT
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.manifest import SAMPLE_RATE, read_manifest, write_manifest
from fairseq_star.slicing.method import Method as Slicing

RANDOM, SLICED = "random", "sliced"
SIZES = {
    "sizes": {"a tenth": 0.1, "a twentieth": 0.05},
    "hard": {"a third of a narrow teacher": 1 / 3},
}
"""Suites whose students of both kinds have one shape -> shares of the teacher's parameters."""
MINUTES = (1, 5)
UTTERANCES = 64  # that slicing is computed from, as by model.init_utterances
# What is taken away from slicing, or changed, and the utterances that it is computed from.
STEPS = {
    "all steps": (Slicing(), UTTERANCES),
    "channels not scaled": (Slicing(scale=False), UTTERANCES),
    "convolutions not refitted": (Slicing(refit=False), UTTERANCES),
    "channels and units by energy": (Slicing(greedy=False), UTTERANCES),
    "sub-layers without correction": (Slicing(correct=False), UTTERANCES),
    "none of the four": (Slicing(scale=False, refit=False, greedy=False, correct=False), UTTERANCES),
    "a tenth of the ridge": (Slicing(ridge=1e-3), UTTERANCES),
    "24 utterances": (Slicing(), 24),
    "128 utterances": (Slicing(), 128),
}


class Arm(NamedTuple):
    """One student of a table."""

    name: str
    sliced: bool
    method: Method = LOSSES[STAR]
    as_sliced: bool = False  # random first weights in the shape that the recipe of sliced ones makes
    minutes: float | None = None  # of the training audio; None: all
    untrained: bool = True  # its first weights are judged too


def arms_of(options: argparse.Namespace, teacher: FrozenEncoder) -> list[Arm]:
    """Return the students of the suite that are trained."""
    plain = [Arm(RANDOM, False, untrained=False), Arm(SLICED, True)]
    if options.suite in SIZES:
        more = []
        for told, share in SIZES[options.suite].items():
            sized = {"target_params": share * teacher.num_parameters, "target_macs": None}
            method = LOSSES[STAR]._replace(model=sized)
            more += [Arm(f"{RANDOM}, {told}", False, method, as_sliced=True, untrained=options.suite == "hard")]
            more += [Arm(f"{SLICED}, {told}", True, method)]
        return [*plain, *more] if options.suite == "sizes" else more
    if options.suite == "data":
        some = [
            Arm(f"{name}, {minutes:g} min of speech", name == SLICED, minutes=minutes, untrained=name == SLICED)
            for minutes in MINUTES
            for name in (RANDOM, SLICED)
        ]
        return [*some, *plain]
    if options.suite == "objectives":
        return [plain[1], *(Arm(f"{SLICED}, {name}", True, method) for name, method in _objectives(options).items())]
    return plain


def _objectives(options: argparse.Namespace) -> dict[str, Method]:
    """What a sliced student can be asked for in place of STaR alone; units are fitted where they are not there."""
    asked = argparse.Namespace(**vars(options) | {"suite": "objectives", "methods": ["STaR + units"], "noisy": False})
    layers = list(range(1, 7))
    frames = {"frame_l1_weight": 1.0, "frame_cosine_weight": 1.0, "frame_layers": layers}
    plain = LOSSES[STAR].criterion
    return {
        "masked STaR": OBJECTIVES["masked STaR"]._replace(task=HIDING),
        **methods_of(asked),
        "frames": Method(
            {**plain, "layerwise_weight": 0.0, "intra_layer_weight": 0.0, **frames, "frame_student_layers": layers}
        ),
        "8 bits": LOSSES[STAR]._replace(model={"weight_bits": 8}),
    }


def options_of(arm: Arm, seed: int, folder: Path, options: argparse.Namespace) -> argparse.Namespace:
    """Return the options that the arm's training takes, its recipe written into ``folder``."""
    recipes = {path: read_recipe(path) for path in (options.config, options.sliced_config)}
    recipe = recipes[options.sliced_config if arm.sliced or arm.as_sliced else options.config]
    if not arm.sliced:  # as fast as random weights are trained
        recipe["model"]["init"] = "random"
        recipe["optimization"]["lr"] = recipes[options.config]["optimization"]["lr"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "unchanged.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    data = options.train_data
    if arm.minutes is not None:
        data = options.out / f"minutes-{arm.minutes:g}-{seed}"
        write_subset(options.train_data, data, seconds=60 * arm.minutes, seed=seed)
    return argparse.Namespace(**vars(options) | {"config": path, "train_data": data})


def write_subset(data: Path, out: Path, *, seconds: float, seed: int) -> None:
    """Write manifests of as many training utterances as ``seconds`` have room for, drawn by seed, and all others."""
    root, entries = read_manifest(data / f"{TRAIN_SPLIT}.tsv")
    chosen, room = [], seconds * SAMPLE_RATE
    for number in np.random.default_rng(seed).permutation(len(entries)):
        if entries[number].num_samples <= room:
            chosen.append(entries[number])
            room -= entries[number].num_samples
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(out / f"{TRAIN_SPLIT}.tsv", Path(root), chosen or entries[:1])
    root, entries = read_manifest(data / f"{TEST_SPLIT}.tsv")
    write_manifest(out / f"{TEST_SPLIT}.tsv", Path(root), entries)
