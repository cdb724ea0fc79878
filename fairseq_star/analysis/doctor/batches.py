"""Findings on what the batches are made of and how fast they come: padding, waiting, files left out."""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from fairseq_star.analysis.doctor.record import Record
from fairseq_star.fairseq_hooks.symptoms import SURE, Finding, padded, waiting_for_data


def check_batches(record: Record) -> Iterator[Finding]:
    """Judge padding, the wait for data, and audio that could not be read."""
    for name, judge in (("padding", padded), ("data_wait", waiting_for_data)):
        curve = record.curve(name)
        if curve and (found := judge(median(curve.values()))):
            yield found
    if bad := int(sum(record.curve("bad_audio").values())):
        yield Finding(
            "bad-audio",
            f"{bad:,} times an utterance could not be read and was left out",
            SURE,
            "restore the files that the log names, or write the manifests again with manifests/audio_folder.py",
        )


def check_cache(record: Record) -> Iterator[Finding]:
    """Judge whether the teacher cache holds this teacher's states under other settings than the run's."""
    folder = record.option("task.teacher_cache")
    if not folder or record.teacher is None or not Path(folder).is_dir():
        return
    wanted = {
        "dtype": record.option("task.teacher_cache_dtype"),
        "compression": record.option("task.teacher_cache_compression", "none"),
        "dim": record.option("task.teacher_cache_dim"),
    }
    for about in sorted(Path(folder).glob("*/about.json")):
        try:
            found = json.loads(about.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(found, dict) or found.get("teacher") != record.teacher:
            continue
        has = {"compression": "none", "dim": None} | {name: found[name] for name in wanted if name in found}
        own = wanted
        if wanted["compression"] != "none":
            own = wanted | {"dtype": "int8", "dim": wanted["dim"] or has["dim"]}
        differing = [
            f"{name} {has.get(name)} (the run's: {value})" for name, value in own.items() if has.get(name) != value
        ]
        if differing:
            yield Finding(
                "cache-of-other-settings",
                f"{about.parent} holds the teacher's states with {', '.join(differing)}, which the run does not read",
                SURE,
                "give the same task.teacher_cache_dtype, task.teacher_cache_compression and task.teacher_cache_dim, or "
                f"remove {about.parent}",
            )
