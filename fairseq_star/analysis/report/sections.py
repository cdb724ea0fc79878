"""Sections of the report, in the reader's order, with what to look for in each. Each function returns HTML parts."""

import io
import json
import shlex
from collections.abc import Callable
from datetime import date
from html import escape
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from fairseq_star.analysis.curves import Curves
from fairseq_star.analysis.doctor.doctor import Diagnosis
from fairseq_star.analysis.profile import ProfileResult, ProfileRow, profile
from fairseq_star.analysis.report import charts, html
from fairseq_star.analysis.report.compare import Similarity
from fairseq_star.analysis.report.html import Pictures
from fairseq_star.analysis.runs import Run
from fairseq_star.errors import StarError
from fairseq_star.losses.terms import MEANINGS
from fairseq_star.manifest import SAMPLE_RATE
from fairseq_star.plots.heatmaps import draw_map
from fairseq_star.plots.matrices import LayerMaps, UtteranceMaps
from fairseq_star.plots.style import Theme, render
from fairseq_star.runtime import provenance
from fairseq_star.slicing.report import SlicingReport

PROFILE, PROBE = "profile.json", "probe.json"
MAPS = {
    "teacher": "What the student should learn.",
    "student": "What it learned: bright and dark should lie where the teacher’s do.",
    "before": "Where it began, with its first weights.",
    "masked": "The trained student’s where the moments marked orange along the edges are masked, as in training: "
    "it has to infer them from those around.",
    "difference": "White: as in the teacher. Orange: the student finds two moments more similar than the teacher "
    "does; purple: less. Paler is better.",
}


def opening(name: str, run: Run, similarity: Similarity, profiled: ProfileResult) -> list[str]:
    """Return the title, an introduction and the key numbers."""
    teacher, student = run.task.teacher.num_parameters, sum(p.numel() for p in run.model.parameters())
    rate = SAMPLE_RATE / run.task.teacher.geometry.downsample_rate
    before, after = similarity.tgm_error_before.mean(), similarity.tgm_error.mean()
    ratio = next((row.macs_ratio for row in profiled.rows[1:] if row.macs_ratio), None)
    facts = [
        (f"{student / teacher:.0%}", f"of the teacher’s size: {student:,} of {teacher:,} parameters"),
        *([(f"{ratio:.0%}", "of the teacher’s work (multiply-accumulates)")] if ratio else []),
        (f"{before:.0%} → {after:.0%}", "error of the student’s relation maps, before and after training (0 %: none)"),
        (f"{run.num_updates:,}", "training updates behind this student"),
    ]
    return [
        f"<h1>Distillation report: {escape(name)}</h1>",
        f'<p class="muted">{date.today().isoformat()} · {escape(run.checkpoint)}</p>',
        f"<p>A large <b>teacher</b> network turns speech into features, layer by layer, {rate:g} times a second. A "
        "small <b>student</b> was trained on audio alone, without labels, to relate the moments of an utterance to one "
        "another as the teacher does (STaR distillation). This page shows how far it got.</p>",
        html.facts(facts),
    ]


def training(pictures: Pictures, curves: Curves | None, run_dir: Path) -> list[str]:
    """Return the losses over the updates."""
    head = "<h2>Did it learn?</h2>"
    if curves is None:
        return [
            head,
            f"<p>No record of the losses is in {escape(str(run_dir))}: neither TensorBoard’s event files "
            "(<code>common.tensorboard_logdir</code>) nor fairseq’s output in a <code>.log</code> file.</p>",
        ]

    def figure(term: str) -> str:
        drawn = render(lambda theme: charts.draw_losses(theme, curves, term))
        alt = f"{term} over the updates, training and validation"
        return pictures.figure(f"losses_{term}", drawn, alt, f"<b>{term}</b>: {MEANINGS[term]}.")

    return [
        head,
        "<p>The loss measures how far the student’s relations are from the teacher’s: for speech it is trained on, and "
        "(validation) for speech it never trained on.</p>",
        html.look(
            "<b>What to look for:</b> both curves fall, and validation stays near training. Still falling at the end: "
            "train longer. Validation rising while training falls: too little data."
        ),
        html.pictures([figure(term) for term in MEANINGS if term in curves.train]),
    ]


def health(diagnosis: Diagnosis) -> list[str]:
    """Return what ``fairseq-star doctor`` finds."""
    found = "".join(
        f"<li><p><b>{escape(finding.sentence)}</b> ({finding.sure}). To mend it: {escape(finding.mend)}.</p></li>"
        for finding in diagnosis.findings
    )
    return [
        "<h2>Is the run well?</h2>",
        f"<p>{escape(diagnosis.state.capitalize())}. {escape('; '.join(diagnosis.figures))}.</p>",
        f"<ol>{found}</ol>"
        if found
        else "<p>No findings: loss, gradients, schedule, batches and speed are as they should be.</p>",
    ]


def beginning(pictures: Pictures, sliced: SlicingReport | None) -> list[str]:
    """Return a sliced student's distance from its teacher before the first update; nothing for random weights."""
    if sliced is None:
        return []
    drawn = render(lambda theme: charts.draw_slicing(theme, sliced.unexplained))
    alt = "unexplained variance of the teacher’s kept channels, state by state"
    loss = ""
    if sliced.loss is not None:
        loss = (
            f" Its loss before the first update was {sliced.loss:,.1f}; that of an all-zero student is "
            f"{sliced.loss_of_zero:,.1f}."
        )
    return [
        "<h2>Where it began</h2>",
        "<p>Its first weights were not random: they were sliced out of the teacher with "
        f"{sliced.utterances} utterances ({sliced.seconds_of_audio / 60:.1f} minutes of audio) in "
        f"{sliced.wall_seconds:.0f} seconds.{loss}</p>",
        html.look(
            "<b>What to look for:</b> low bars that do not grow from left to right. High ones: the student is very "
            "small for this teacher, or the utterances were too few or unlike the training data."
        ),
        html.pictures(
            [pictures.figure("slicing", drawn, alt, "Share of the teacher’s variance that the student missed.")]
        ),
    ]


def utterance(pictures: Pictures, maps: UtteranceMaps) -> list[str]:
    """Return heat maps of the chosen layers, the middle one unfolded, with the utterance's audio."""

    def figure(layer: LayerMaps, which: str) -> str:
        drawn = render(lambda theme: draw_map(theme, maps, layer, which))
        alt = f"temporal Gram matrix of student layer {layer.student_layer}: {which}"
        return pictures.figure(f"tgm_layer{layer.student_layer:02d}_{which}", drawn, alt, MAPS[which])

    def folded(layer: LayerMaps) -> str:
        drawn = [which for which in MAPS if which != "masked" or layer.masked is not None]
        shown = html.pictures([figure(layer, which) for which in drawn], maps=True)
        summary = f"Student layer {layer.student_layer}, teacher layer {layer.teacher_layer}"
        return html.folded(summary, shown, is_open=layer is maps.layers[len(maps.layers) // 2])

    transcript = f" “{escape(maps.transcript.capitalize())}”" if maps.transcript else ""
    phones = "the phones it consists of and " if maps.phones else ""
    return [
        "<h2>Gram matrices of one utterance</h2>",
        f"<p>{escape(maps.name)}{transcript}</p>",
        html.audio(_wav(maps.samples)),
        "<p>Each map compares every moment of this utterance with every other (a <i>temporal Gram matrix</i>): the "
        "point at 2 s across and 1 s down shows how similar the network finds these two moments. Above it are "
        f"{phones}the spectrogram, on the same time axis.</p>",
        html.look(
            "<b>What to look for:</b> bright (yellow) means similar, dark (blue) dissimilar, in the same colours for "
            "teacher and student. A repeated sound makes a bright spot off the diagonal; a long or steady sound, or a "
            "pause, makes a block. The student’s pattern should be the teacher’s."
        ),
        *(folded(layer) for layer in maps.layers),
    ]


def likeness(pictures: Pictures, similarity: Similarity, split: str) -> list[str]:
    """Return CKA of all pairs of layers, and CKA and TGM error of the trained pairs before and after training."""

    def figure(name: str, draw: Callable[[Theme], object], alt: str, caption: str) -> str:
        return pictures.figure(name, render(draw), alt, caption)

    before, after = similarity.matched(similarity.cka_before), similarity.matched(similarity.cka)
    error_before, error = similarity.tgm_error_before, similarity.tgm_error
    figures = [
        figure(
            "cka",
            lambda theme: charts.draw_cka(theme, similarity),
            "CKA of every teacher layer against every student layer",
            "<b>CKA</b> of every pair of layers, trained student. Framed: the pairs that training compared; each "
            "should be among the brightest of its row. 0 is the input of the first layer.",
        ),
        figure(
            "cka_by_layer",
            lambda theme: charts.draw_by_layer(theme, before, after, "CKA", True),
            "CKA of the framed pairs, before and after training",
            "The framed pairs before and after training. <b>Higher is better.</b>",
        ),
        figure(
            "tgm_error",
            lambda theme: charts.draw_by_layer(theme, error_before, error, "error of the relation maps", False),
            "relative error of the temporal Gram matrices, before and after training",
            "Distance of the student’s map from the teacher’s, relative to the teacher’s own size. "
            "<b>Lower is better.</b>",
        ),
    ]
    return [
        "<h2>Where do teacher and student differ?</h2>",
        f"<p>Over {similarity.num_utterances} utterances ({similarity.num_frames:,} frames) of the manifest "
        f"<code>{escape(split)}</code>. CKA (linear centred kernel alignment) measures how similarly two layers "
        "describe the same frames, whatever their width: 1 when one is a rotation of the other, near 0 when they have "
        "nothing in common. Training does not optimize it directly, so it is a second opinion.</p>",
        html.look(
            "<b>What to look for:</b> a gap between the dashed line (before) and the solid one (after) in every layer. "
            "A layer that stands out is where the student lacks room or training."
        ),
        html.pictures(figures),
    ]


def cost(profiled: ProfileResult) -> list[str]:
    """Return the profile's table."""
    return [
        "<h2>What does it cost to run?</h2>",
        "<p>MACs are multiply-accumulates, counted, not timed, attention included; SUPERB’s figure is the sum over 32 "
        "utterances of LibriSpeech test-clean (225 s).</p>",
        profile_table(profiled),
    ]


def knowledge(pictures: Pictures, probe: dict | None, checkpoint: Path, run_dir: Path) -> list[str]:
    """Return the probe's accuracies, or the command that measures them."""
    head = "<h2>How well do its features predict phones, keywords and speakers?</h2>"
    if probe is None:
        files = shlex.quote(str(checkpoint)), shlex.quote(str(run_dir / PROBE))
        return [
            head,
            "<p>Not measured yet. A probe trains small classifiers on the frozen features (phones, keywords, "
            "speakers). With labelled manifests, run this and then the report again:</p>",
            html.plain("fairseq-star probe {} --json > {}".format(*files)),
        ]

    def figure(task: str) -> str:
        drawn = render(lambda theme: charts.draw_probe(theme, probe["rows"], task))
        return pictures.figure(f"probe_{task}", drawn, f"accuracy of the {task} probe by features")

    return [
        head,
        "<p>Small classifiers on the frozen features, tested on speech they were not trained on. Bars, and the ranges "
        f"in the table: 95 % confidence intervals ({len(probe['seeds'])} seeds).</p>",
        html.look(
            "<b>What to look for:</b> the student should be well above the plain spectral features (FBANK, MFCC; "
            "normalized over each utterance as in SUPERB) and its own untrained self (random init), and close to the "
            "teacher. FBANK, not normalized, keeps the mean spectrum, which identifies a few voices easily. "
            + escape(margins(probe))
        ),
        html.pictures([figure(task) for task in probe_tasks(probe)]),
        probe_table(probe),
    ]


def making(run: Run, curves: Curves | None, command: str) -> list[str]:
    """Return command, versions, hardware, and the run's whole configuration."""
    made = {
        "made with": command,
        "date": date.today().isoformat(),
        "checkpoint": run.checkpoint,
        "teacher": f"{run.cfg.task.teacher} ({run.task.teacher.family})",
        "losses from": curves.source if curves else "none found",
        **provenance.versions(),
        "commit": provenance.commit() or "not a clone",
        "hardware": provenance.hardware(),
    }
    width = max(map(len, made))
    return [
        "<h2>How was it made?</h2>",
        "<p>Versions and hardware are those of this report; the run’s own settings are below.</p>",
        html.plain("\n".join(f"{name:<{width}}  {value}" for name, value in made.items())),
        html.folded("The run’s configuration", html.plain(OmegaConf.to_yaml(run.cfg))),
    ]


def _wav(samples: np.ndarray) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples * 0.9, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def read_profile(run_dir: Path, checkpoint: str, teacher: str) -> ProfileResult:
    """Read the profile in ``run_dir``; without one, count parameters and MACs now (no time is measured).

    Raises:
        StarError: the file is no profile.
    """
    path = run_dir / PROFILE
    if not path.is_file():
        return profile([checkpoint], teacher=teacher, speed=False)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return ProfileResult(**found | {"rows": [ProfileRow(**row) for row in found["rows"]]})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StarError(
            f"{path}: is no result of `fairseq-star profile --json`; write it again or remove it"
        ) from error


def profile_table(result: ProfileResult) -> str:
    """Return a table of one line a model, the teacher first, paths shortened to their last part."""
    head = ["model", "parameters", f"GMACs per second ({result.seconds:g} s)", "GMACs, SUPERB", "of the teacher's"]
    measured = any(row.real_time_factor is not None for row in result.rows)
    head += ["real-time factor", "peak memory (MiB)"] if measured else []

    def cells(row: ProfileRow) -> list[str]:
        values = [(row.num_parameters, ","), (row.gmacs_per_second, ".3f"), (row.gmacs_superb, ".1f")]
        values += [(row.macs_ratio, ".3f")]
        values += [(row.real_time_factor, ".4f"), (row.peak_mib, ".0f")] if measured else []
        return [Path(row.name).name, *("" if value is None else format(value, form) for value, form in values)]

    return html.table(head, [cells(row) for row in result.rows])


def read_probe(run_dir: Path) -> dict | None:
    """Read the probe in ``run_dir`` (:class:`fairseq_star.analysis.probe.ProbeResult` as a dict), None without one.

    Raises:
        StarError: the file is no probe.
    """
    path = run_dir / PROBE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for row in found["rows"]:
            for name in ("accuracy", "low", "high"):
                float(row[name])
            str(row["task"]), str(row["features"])
        dict(found["margin_kept"]), list(found["seeds"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StarError(f"{path}: is no result of `fairseq-star probe --json`; write it again or remove it") from error
    return found


def probe_tasks(probe: dict) -> list[str]:
    """Return the tasks in the order they were probed."""
    return list(dict.fromkeys(row["task"] for row in probe["rows"]))


def probe_table(probe: dict) -> str:
    """Return a table of accuracy and its 95 % interval in percent: features down, tasks across."""
    tasks = probe_tasks(probe)
    rows: dict[str, dict[str, str]] = {}
    for row in probe["rows"]:
        text = f"{100 * row['accuracy']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        rows.setdefault(row["features"], {})[row["task"]] = text
    return html.table(
        ["features", *tasks], [[name, *(of.get(task, "") for task in tasks)] for name, of in rows.items()]
    )


def margins(probe: dict) -> str:
    """Return a sentence on how much of the teacher's lead the student keeps; empty where the probe has no figure."""
    kept = [
        f"{task} {100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
        for task, (share, low, high) in probe["margin_kept"].items()
    ]
    return f"Of the teacher’s lead over random init, the student keeps: {', '.join(kept)}." if kept else ""
