"""Profile and probe of a run, as ``fairseq-star profile --json`` and ``fairseq-star probe --json`` leave them."""

import json
from pathlib import Path

from fairseq_star.analysis.profile import ProfileResult, ProfileRow, profile
from fairseq_star.analysis.report.html import table
from fairseq_star.errors import StarError

PROFILE, PROBE = "profile.json", "probe.json"


def read_profile(run_dir: Path, checkpoint: str, teacher: str) -> ProfileResult:
    """The profile in ``run_dir``; without one, parameters and MACs counted now (no time is measured).

    Raises:
        StarError: what is there is no profile.
    """
    path = run_dir / PROFILE
    if not path.is_file():
        return profile([checkpoint], teacher=teacher, speed=False)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return ProfileResult(**found | {"rows": [ProfileRow(**row) for row in found["rows"]]})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StarError(f"{path}: is no result of `fairseq-star profile --json`; write it anew or remove it") from error


def profile_table(result: ProfileResult) -> str:
    """One line a model, the teacher first; a path is shown by its last part."""
    head = ["model", "parameters", f"GMACs per second ({result.seconds:g} s)", "GMACs, SUPERB", "of the teacher's"]
    measured = any(row.real_time_factor is not None for row in result.rows)
    head += ["real-time factor", "peak memory (MiB)"] if measured else []

    def cells(row: ProfileRow) -> list[str]:
        values = [(row.num_parameters, ","), (row.gmacs_per_second, ".3f"), (row.gmacs_superb, ".1f")]
        values += [(row.macs_ratio, ".3f")]
        values += [(row.real_time_factor, ".4f"), (row.peak_mib, ".0f")] if measured else []
        return [Path(row.name).name, *("" if value is None else format(value, form) for value, form in values)]

    return table(head, [cells(row) for row in result.rows])


def read_probe(run_dir: Path) -> dict | None:
    """The probe in ``run_dir`` (:class:`fairseq_star.analysis.probe.ProbeResult` as a dict), None where there is none.

    Raises:
        StarError: there is one, but it is not what the command writes.
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
        raise StarError(f"{path}: is no result of `fairseq-star probe --json`; write it anew or remove it") from error
    return found


def probe_tasks(probe: dict) -> list[str]:
    """Tasks in the order they were probed."""
    return list(dict.fromkeys(row["task"] for row in probe["rows"]))


def probe_table(probe: dict) -> str:
    """Features down, tasks across: accuracy and its 95 % interval in percent."""
    tasks = probe_tasks(probe)
    rows: dict[str, dict[str, str]] = {}
    for row in probe["rows"]:
        text = f"{100 * row['accuracy']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        rows.setdefault(row["features"], {})[row["task"]] = text
    return table(["features", *tasks], [[name, *(of.get(task, "") for task in tasks)] for name, of in rows.items()])


def margins(probe: dict) -> str:
    """What the student kept of the teacher's lead, a sentence; empty where the probe doesn't say."""
    kept = [
        f"{task} {100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
        for task, (share, low, high) in probe["margin_kept"].items()
    ]
    return f"Of the teacher’s lead over random init, the student keeps: {', '.join(kept)}." if kept else ""
