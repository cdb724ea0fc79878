"""The report's sections: what a reader sees, in order, and what to look for in it. Each gives HTML parts."""

import io
import shlex
from collections.abc import Callable
from datetime import date
from html import escape
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from fairseq_star.analysis.profile import ProfileResult
from fairseq_star.analysis.report import charts, html, results
from fairseq_star.analysis.report.compare import Similarity
from fairseq_star.analysis.report.html import Pictures
from fairseq_star.analysis.report.losses import Losses
from fairseq_star.analysis.runs import Run
from fairseq_star.losses.terms import MEANINGS
from fairseq_star.manifest import SAMPLE_RATE
from fairseq_star.plots.heatmaps import draw_map
from fairseq_star.plots.matrices import LayerMaps, UtteranceMaps
from fairseq_star.plots.style import Theme, render
from fairseq_star.runtime import provenance
from fairseq_star.slicing.report import SlicingReport

MAPS = {
    "teacher": "What the student should learn.",
    "student": "What it learned: bright and dark should lie where the teacher’s do.",
    "before": "Where it began, with its first weights.",
    "masked": "The trained student’s where the moments marked orange along the edges are hidden from it, as in "
    "training: what it makes of them comes from those around.",
    "difference": "White: as in the teacher. Orange: the student takes two moments for more alike than the teacher "
    "does; purple: for less. Paler is better.",
}


def opening(name: str, run: Run, similarity: Similarity, profile: ProfileResult) -> list[str]:
    """Title, what this is about, and the few numbers that matter."""
    teacher, student = run.task.teacher.num_parameters, sum(p.numel() for p in run.model.parameters())
    rate = SAMPLE_RATE / run.task.teacher.geometry.downsample_rate
    before, after = similarity.tgm_error_before.mean(), similarity.tgm_error.mean()
    ratio = next((row.macs_ratio for row in profile.rows[1:] if row.macs_ratio), None)
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
        "small <b>student</b> was trained on bare audio, without labels, to relate the moments of an utterance to one "
        "another as the teacher does (STaR distillation). This page shows how far it got.</p>",
        html.facts(facts),
    ]


def training(kept: Pictures, losses: Losses | None, run_dir: Path) -> list[str]:
    """The losses over the updates."""
    head = "<h2>Did it learn?</h2>"
    if losses is None:
        return [
            head,
            f"<p>No record of the losses was found in {escape(str(run_dir))}: neither TensorBoard’s event files "
            "(<code>common.tensorboard_logdir</code>) nor fairseq’s output in a <code>.log</code> file.</p>",
        ]

    def figure(term: str) -> str:
        drawn = render(lambda theme: charts.draw_losses(theme, losses, term))
        alt = f"{term} over the updates, training and validation"
        return kept.figure(f"losses_{term}", drawn, alt, f"<b>{term}</b>: {MEANINGS[term]}.")

    return [
        head,
        "<p>The loss measures how far the student’s relations are from the teacher’s: for speech it is trained on, and "
        "(validation) for speech it never trained on.</p>",
        html.look(
            "<b>What to look for:</b> both curves fall, and validation stays near training. Still falling at the end: "
            "train longer. Validation rising while training falls: too little data."
        ),
        html.pictures([figure(term) for term in losses.terms()]),
    ]


def beginning(kept: Pictures, sliced: SlicingReport | None) -> list[str]:
    """How near the student was to its teacher before the first update, where its first weights were sliced."""
    if sliced is None:
        return []
    drawn = render(lambda theme: charts.draw_slicing(theme, sliced.unexplained))
    alt = "unexplained variance of the teacher’s kept channels, state by state"
    loss = ""
    if sliced.loss is not None:
        loss = (
            f" Its loss before the first update was {sliced.loss:,.1f}; that of a student that says nothing at all is "
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
        html.pictures([kept.figure("slicing", drawn, alt, "Share of the teacher’s variance that the student missed.")]),
    ]


def utterance(kept: Pictures, maps: UtteranceMaps) -> list[str]:
    """Heat maps of the chosen layers, the middle one unfolded, and the sound they belong to."""

    def figure(layer: LayerMaps, which: str) -> str:
        drawn = render(lambda theme: draw_map(theme, maps, layer, which))
        alt = f"temporal Gram matrix of student layer {layer.student_layer}: {which}"
        return kept.figure(f"tgm_layer{layer.student_layer:02d}_{which}", drawn, alt, MAPS[which])

    def folded(layer: LayerMaps) -> str:
        drawn = [which for which in MAPS if which != "masked" or layer.masked is not None]
        shown = html.pictures([figure(layer, which) for which in drawn], maps=True)
        summary = f"Student layer {layer.student_layer}, teacher layer {layer.teacher_layer}"
        return html.folded(summary, shown, is_open=layer is maps.layers[len(maps.layers) // 2])

    said = f" “{escape(maps.transcript.capitalize())}”" if maps.transcript else ""
    phones = "the phones it consists of and " if maps.phones else ""
    return [
        "<h2>What the student makes of one utterance</h2>",
        f"<p>{escape(maps.name)}{said}</p>",
        html.audio(_wav(maps.samples)),
        "<p>Each map compares every moment of this utterance with every other (a <i>temporal Gram matrix</i>): the "
        "point at 2 s across and 1 s down tells how alike the network finds these two moments. Above it are "
        f"{phones}the spectrogram, on the same time axis.</p>",
        html.look(
            "<b>What to look for:</b> bright (yellow) means alike, dark (blue) unlike, in the same colours for teacher "
            "and student. A sound that returns makes a bright spot off the diagonal; a long or steady sound, or a "
            "pause, makes a block. The student’s pattern should be the teacher’s."
        ),
        *(folded(layer) for layer in maps.layers),
    ]


def likeness(kept: Pictures, similarity: Similarity, split: str) -> list[str]:
    """Layer by layer: CKA of all pairs, CKA and TGM error of the trained pairs before and after."""

    def figure(name: str, draw: Callable[[Theme], object], alt: str, caption: str) -> str:
        return kept.figure(name, render(draw), alt, caption)

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
        f"<code>{escape(split)}</code>. CKA (linear centred kernel alignment) tells how alike two layers describe the "
        "same frames, whatever their width: 1 when one is a rotation of the other, near 0 when they have nothing in "
        "common. Training does not optimize it directly, so it is a second opinion.</p>",
        html.look(
            "<b>What to look for:</b> a gap between the dashed line (before) and the solid one (after) in every layer. "
            "A layer that stands out is where the student lacks room or training."
        ),
        html.pictures(figures),
    ]


def cost(profile: ProfileResult) -> list[str]:
    """The profile's table."""
    return [
        "<h2>What does it cost to run?</h2>",
        "<p>MACs are multiply-accumulates, counted, not timed, attention included; SUPERB’s figure is the sum over 32 "
        "utterances of LibriSpeech test-clean (225 s).</p>",
        results.profile_table(profile),
    ]


def knowledge(kept: Pictures, probe: dict | None, checkpoint: Path, run_dir: Path) -> list[str]:
    """The probe's accuracies, or how to have them."""
    head = "<h2>What do its features know?</h2>"
    if probe is None:
        files = shlex.quote(str(checkpoint)), shlex.quote(str(run_dir / results.PROBE))
        return [
            head,
            "<p>Not measured yet. A probe trains small classifiers on the frozen features (phones, keywords, "
            "speakers). With labelled manifests, run this and then the report again:</p>",
            html.plain("fairseq-star probe {} --json > {}".format(*files)),
        ]

    def figure(task: str) -> str:
        drawn = render(lambda theme: charts.draw_probe(theme, probe["rows"], task))
        return kept.figure(f"probe_{task}", drawn, f"accuracy of the {task} probe by features")

    return [
        head,
        "<p>Small classifiers on the frozen features, tested on speech they were not trained on. Bars, and the ranges "
        f"in the table: 95 % confidence intervals ({len(probe['seeds'])} seeds).</p>",
        html.look(
            "<b>What to look for:</b> the student should be well above the plain spectral features (FBANK, MFCC; "
            "normalized over each utterance as in SUPERB) and its own untrained self (random init), and close to the "
            "teacher. FBANK, not normalized, keeps the mean spectrum, by which a few voices are told easily. "
            + escape(results.margins(probe))
        ),
        html.pictures([figure(task) for task in results.probe_tasks(probe)]),
        results.probe_table(probe),
    ]


def making(run: Run, losses: Losses | None, command: str) -> list[str]:
    """Command, versions, hardware, and the run's whole configuration."""
    made = {
        "made with": command,
        "date": date.today().isoformat(),
        "checkpoint": run.checkpoint,
        "teacher": f"{run.cfg.task.teacher} ({run.task.teacher.family})",
        "losses from": losses.source if losses else "none found",
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
