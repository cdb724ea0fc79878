"""Scorers outside s3prl: QUESST's own script for query by example, pyannote.metrics for diarization.

A scorer that is missing is named in the result's notes; s3prl's predictions are kept in any event.
"""

import json
import shutil
import subprocess
from pathlib import Path

from fairseq_star.errors import StarError
from fairseq_star.superb import mtwv, parsing
from fairseq_star.superb.corpora import Description
from fairseq_star.superb.toolkit import DIARIZATION_SCORER, PROGRAMS, Environment, Toolkit

QUESST_SCRIPT = "score-TWV-Cnxe.sh"
DEFAULT_SCORE = "-10"  # of trials that are not listed, as s3prl's docs/superb.md scores
# s3prl's diarization/score.sh tries these and takes the lowest error.
MEDIANS = (1, 11)
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)


def lacks(tasks: list[str], description: Description, environment: Environment) -> list[str]:
    """A sentence on each scorer, or reader of audio, that is missing and can be done without."""
    told = []
    if "qbe" in tasks:
        script = description.folder("quesst14") / "scoring" / QUESST_SCRIPT
        missing = script if not script.is_file() else None if shutil.which("java") else "java"
        if missing:
            told.append(f"qbe: {missing} is missing: this project's own MTWV will stand for QUESST's")
    if "sd" in tasks and DIARIZATION_SCORER in environment.found["missing"]:
        told.append(
            f"sd: {DIARIZATION_SCORER} is missing beside s3prl (pip install it there): without it there is no DER"
        )
    heard = [name for name in ("ks", "qbe", "asv") if name in tasks]
    if heard and not environment.found["sox"]:
        told.append(
            f"{', '.join(heard)}: libsox is missing (apt-get install libsox-dev): sox's effects are stood in for"
        )
    return told


def queries(folder: Path, root: Path, split: str, notes: list[str]) -> float | None:
    """The MTWV of what s3prl found, by QUESST's script where the corpus has it, else by :mod:`mtwv`.

    Args:
        folder: with ``benchmark.stdlist.xml``.
        root: of the corpus.
        split: ``dev`` or ``eval``.

    Returns:
        None where there is no truth to score with.

    Raises:
        StarError: the script failed.
    """
    scoring = root / "scoring"
    truth = scoring / f"groundtruth_quesst14_{split}"
    if (scoring / QUESST_SCRIPT).is_file() and shutil.which("java"):
        result = subprocess.run(
            ["bash", QUESST_SCRIPT, str(folder), truth.name, DEFAULT_SCORE],
            cwd=scoring, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if result.returncode or not (folder / "score.out").is_file():
            raise StarError(f"qbe: {QUESST_SCRIPT} failed: {parsing.last_error(result.stderr or result.stdout)}")
        return parsing.twv(parsing.read([folder / "score.out"]))
    missing = "java" if (scoring / QUESST_SCRIPT).is_file() else f"{scoring / QUESST_SCRIPT}"
    tables = sorted(truth.glob("*.rttm"))
    if not tables:
        notes.append(f"no MTWV: {missing} and {truth}/*.rttm are missing; s3prl's answers are kept in {folder.parent}")
        return None
    notes.append(f"MTWV by this project's own scorer: {missing} is missing")
    return mtwv.maximum_twv(folder / "benchmark.stdlist.xml", tables[0])


def diarization(expdir: Path, reference: Path, toolkit: Toolkit, notes: list[str]) -> dict[str, float]:
    """The lowest DER over s3prl's thresholds and median filters, without a collar, overlaps scored: as dscore has it.

    Raises:
        StarError: s3prl's ``make_rttm.py`` failed.
    """
    scoring = expdir / "scoring"
    files = sorted((scoring / "predictions").glob("*.h5"))
    (scoring / "file_list").write_text("".join(f"{path}\n" for path in files), encoding="utf-8")
    shift = (expdir / "frame_shift").read_text(encoding="utf-8").strip()
    written = []
    for median in MEDIANS:
        for threshold in THRESHOLDS:
            written.append(scoring / f"hyp_{threshold}_{median}.rttm")
            _run(toolkit, [
                "downstream/diarization/make_rttm.py", f"--median={median}", f"--threshold={threshold}",
                f"--frame_shift={shift}", "--subsampling=1", "--sampling_rate=16000", str(scoring / "file_list"),
                str(written[-1]),
            ])  # fmt: skip
    try:
        rates = json.loads(_run(toolkit, [str(PROGRAMS / "diarization.py"), str(reference), *map(str, written)]))
    except StarError as error:
        if "No module named 'pyannote" not in str(error):
            raise
        notes.append(f"no DER: pip install pyannote.metrics beside s3prl; its predictions are kept in {scoring}")
        return {}
    best = min(rates, key=rates.get)
    notes.append(f"DER by pyannote.metrics, no collar, overlaps scored; the lowest of {len(rates)} ({Path(best).stem})")
    return {"der": rates[best]}


def _run(toolkit: Toolkit, arguments: list[str]) -> str:
    result = subprocess.run(
        toolkit.python(*arguments), capture_output=True, text=True, check=False, **toolkit.process_options()
    )
    if result.returncode:
        raise StarError(f"sd: {Path(arguments[0]).name} failed: {parsing.last_error(result.stderr)}")
    return result.stdout
