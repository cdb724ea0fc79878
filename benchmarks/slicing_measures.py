"""One student of ``benchmarks.slicing``: trained, its loss and probes before and after; kept as soon as they are known.

A model's figures are a mapping: ``loss`` (none of a teacher), and for each task its accuracy with the ends of the 95 %
interval. They lie as ``NAME-LIMITS.json`` beside the heads they come from.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from benchmarks import ablation
from benchmarks.ablation_methods import STAR
from benchmarks.ablation_training import cpu_seconds, train, updates_of
from benchmarks.recipes import read_recipe
from benchmarks.slicing_arms import RANDOM, SLICED, STEPS, Arm, options_of
from fairseq_star.analysis.probe.features import EncoderFeatures
from fairseq_star.analysis.probe.head import Trained
from fairseq_star.analysis.probe.labels import TEST_SPLIT, TRAIN_SPLIT, TaskData, read_task
from fairseq_star.analysis.probe.run import TEACHER, probe_features, summarize
from fairseq_star.analysis.runs import Run, load_run
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.fairseq_hooks.sliced import read_report
from fairseq_star.formats import load_teacher
from fairseq_star.formats.student import ARCHITECTURES
from fairseq_star.losses.layer_plan import match_layers
from fairseq_star.manifest import write_lines
from fairseq_star.models.starhubert import StarHubertModel
from fairseq_star.runtime.names import KEYWORD, PHONE
from fairseq_star.slicing.measures import star_losses
from fairseq_star.slicing.sample import draw_for
from fairseq_star.slicing.shapes import count_parameters, student_shape, superb_macs
from fairseq_star.slicing.slicer import slice_student

HEAD = 0  # seed of every probe's head
POINTS, EVERY = (50, 100, 300, 1000, 3200), 50  # updates at which a curve is judged, and between two saves
WHOLE = 3600.0  # s: no utterance is longer
ALL = 1_000_000  # utterances: no manifest of a benchmark has more
ALIKE = 1e-3  # of the teacher's phones: what two probes of it with the same utterances differ by at most


def run_arm(arm: Arm, seed: int, options: argparse.Namespace) -> dict:
    """Train one student, as far as that is not done yet, and return what it is: a line of the table."""
    folder = options.out / f"{slug(arm.name)}-{seed}-{options.updates}"
    train(arm.method, seed, folder, options_of(arm, seed, folder, options))
    checkpoint = folder / "checkpoint_last.pt"
    run, report = load_run(str(checkpoint), option="slicing"), read_report(folder)
    row = {
        "name": arm.name,
        "seed": seed,
        "updates": updates_of(checkpoint),
        "parameters": count_parameters(run.model.config),
        "macs": superb_macs(run.model.config),
        "cpu_seconds": cpu_seconds(folder),
        "slicing": report.to_dict() if report else None,
    }
    if arm.untrained:
        row["untrained"] = judge(run, folder / "untrained", options)
    run.load_trained()
    return row | {"trained": judge(run, folder / "trained", options)}


def teacher_row(options: argparse.Namespace) -> dict:
    """Return what the probes find in the teacher."""
    teacher = load_teacher(str(options.teacher), option="--teacher")
    found = probe(teacher, options.out / teacher_name(options), options)
    return {"parameters": teacher.num_parameters, "macs": superb_macs(teacher.config), **found}


def teacher_name(options: argparse.Namespace) -> str:
    """Return what the teacher's files in OUT are named by."""
    return f"teacher-{slug(options.teacher.parent.name)}-{options.teacher.stem}"


def judge(run: Run, path: Path, options: argparse.Namespace) -> dict:
    """Return the figures of a run's student as it is now, the rounding of its weights, if it has any, included."""
    student, teacher = run.model.eval(), run.task.teacher
    kept = kept_as(path, options)
    if not kept.is_file():
        chosen = run.cfg.criterion.get("teacher_layers")
        layers = match_layers(teacher.num_layers, len(student.encoder.layers), chosen)
        held_out = draw_for(teacher, options.data / f"{TEST_SPLIT}.tsv", count=ALL, seed=0, seconds=WHOLE)
        loss, _ = star_losses(teacher.model, student, held_out.sources, layers)
        encoder = FrozenEncoder(student, sample_rate=teacher.sample_rate, normalize=teacher.normalize)
        _keep(kept, {"loss": loss, **probe(encoder, path, options, write=False)})
    return json.loads(kept.read_text(encoding="utf-8"))


def probe(encoder: FrozenEncoder, path: Path, options: argparse.Namespace, *, write: bool = True) -> dict:
    """Return accuracy and interval of each task, the head being kept as well."""
    tasks, kept, found = read_tasks(encoder, options), kept_as(path, options), {}
    if write and kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    heads = kept.with_suffix(".pt")
    if not heads.is_file():
        ablation.save(heads, probe_features(EncoderFeatures(encoder, "cpu"), tasks, [HEAD], path.name))
    result = summarize({"it": ablation.load(heads)}, tasks, [HEAD], student="it")
    for task in tasks:
        row = result.row(task.task, "it")
        found[task.task] = [row.accuracy, row.low, row.high]
    if write:
        _keep(kept, found)
    return found


def read_tasks(encoder: FrozenEncoder, options: argparse.Namespace) -> list[TaskData]:
    """Return phones and keywords, divided; as many utterances of each as the options say."""
    limits = {PHONE: options.phone_utterances, KEYWORD: options.max_utterances}
    return [read_task(options.data, task, encoder.geometry, limit) for task, limit in limits.items()]


def kept_as(path: Path, options: argparse.Namespace) -> Path:
    """Return the file that a model's figures are kept in."""
    return path.with_name(f"{path.name}-{options.phone_utterances or 'all'}-{options.max_utterances}.json")


def margin_kept(
    student: Path, random: Path, teacher: Path, encoder: FrozenEncoder, options: argparse.Namespace
) -> list[float] | None:
    """Return the share of the teacher's margin over random weights, in phones, that a student keeps, with its interval.

    Args:
        student, random, teacher: what their figures are kept as; all were probed.
        encoder: any of the three.

    Returns:
        None where the teacher is not better than random weights in every draw.
    """
    paths = {"it": student, "random init": random, TEACHER: teacher}
    heads: dict[str, dict[str, list[Trained]]] = {
        name: ablation.load(kept_as(path, options).with_suffix(".pt")) for name, path in paths.items()
    }
    found = summarize(heads, read_tasks(encoder, options), [HEAD], student="it").margin_kept.get(PHONE)
    return None if found is None else list(found)


def run_curve(options: argparse.Namespace) -> dict:
    """Train one sliced student for long and judge it on its way; 0 updates are its first weights.

    Returns:
        ``points``: updates -> figures; ``margin``: at the end, as of :func:`margin_kept`, over the random run's first
        weights.
    """
    [seed] = options.seeds
    arm, folder = Arm(SLICED, True), options.out / f"curve-{SLICED}-{seed}-{options.updates}"
    train(arm.method, seed, folder, options_of(arm, seed, folder, options), every=EVERY, keep=-1)
    run = load_run(str(folder / "checkpoint_last.pt"), option="slicing")
    points = {0: judge(run, folder / "point-0", options)}
    found = {updates_of(path): path for path in folder.glob("checkpoint[_0-9]*.pt")}
    for number in sorted(found):
        if number in POINTS or number == options.updates:
            run = load_run(str(found[number]), option="slicing")
            run.load_trained()
            points[number] = judge(run, folder / f"point-{number}", options)
    return {"points": points, "cpu_seconds": cpu_seconds(folder)}


def random_points(options: argparse.Namespace) -> dict:
    """Judge a run from random weights that is there already, before its first update and at its end."""
    checkpoint = options.random_run / "checkpoint_last.pt"
    run = load_run(str(checkpoint), data=str(options.data), teacher=str(options.teacher), option="--random-run")
    own = options.out / f"curve-{RANDOM}"
    points = {0: judge(run, own / "point-0", options)}
    run.load_trained()
    return {"points": points | {run.num_updates: judge(run, own / f"point-{run.num_updates}", options)}}


def earlier_points(teacher: list[float], path: Path) -> dict[int, list[float]]:
    """Return a random run's phones by updates from an earlier curve, if the teacher's in it are those given."""
    if not path.is_file():
        return {}
    curves = json.loads(path.read_text(encoding="utf-8"))["curves"]
    if abs(curves[TEACHER][0][1] - teacher[0]) > ALIKE:
        return {}
    return {number: values for number, *values in curves.get(STAR, ())}


def slice_untrained(name: str, options: argparse.Namespace) -> dict:
    """Slice one student as a line of :data:`STEPS` says, and return its loss and what its states leave unexplained."""
    method, count = STEPS[name]
    [seed] = options.seeds
    kept = options.out / f"step-{slug(name)}-{seed}.json"
    if not kept.is_file():
        recipe = read_recipe(options.sliced_config)["model"]
        teacher = load_teacher(str(options.teacher), option="--teacher")
        shape = student_shape(
            teacher.config, num_layers=recipe["encoder_layers"],
            target_params=recipe["target_params"], target_macs=recipe["target_macs"],
        )  # fmt: skip
        layers = match_layers(teacher.num_layers, shape.num_layers)
        sample = draw_for(teacher, options.train_data / f"{TRAIN_SPLIT}.tsv", count=count, seed=seed)
        torch.manual_seed(seed)
        settings = ARCHITECTURES[recipe["_name"]](**shape.fairseq_settings(), padded_group_norm=False)
        student, before = StarHubertModel(settings).eval(), time.process_time()
        report = slice_student(teacher, student, sample.sources, layers=layers, method=method)
        seconds = time.process_time() - before
        held_out = draw_for(teacher, options.data / f"{TEST_SPLIT}.tsv", count=ALL, seed=0, seconds=WHOLE)
        loss, zero = star_losses(teacher.model, student, held_out.sources, layers)
        _keep(
            kept,
            {"name": name, "loss": loss, "loss_of_zero": zero, "cpu_seconds": seconds, "slicing": report.to_dict()},
        )
    return json.loads(kept.read_text(encoding="utf-8"))


def slug(name: str) -> str:
    """Return a name as a folder's."""
    return "".join(letter if letter.isalnum() else "-" for letter in name).strip("-").lower()


def _keep(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, [json.dumps(values, indent=1)])
