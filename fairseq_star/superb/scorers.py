"""Scorers outside s3prl: QUESST's own script for query by example, pyannote.metrics for diarization.

The result's notes name a scorer that is missing; s3prl's predictions are kept in any event. Without QUESST's script the
maximum term weighted value is computed here:

    TWV(θ) = 1 − mean over queries of ( P_miss(θ) + β · P_fa(θ) ),   β = C_fa (1 − P) / (C_miss P)

with the constants of QUESST 2014, C_fa = 1, C_miss = 100, P = 0.0008. P_miss is the share of a query's documents that
score below θ, P_fa the share of all others that score θ or more; queries that occur nowhere are left out; MTWV is the
largest TWV of any θ, and at least 0 (nothing detected).

Source: Anguera et al., "Query by Example Search on Speech at MediaEval 2014"; NIST, STD 2006 evaluation plan.
"""

import json
import math
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fairseq_star.errors import StarError
from fairseq_star.superb import parsing
from fairseq_star.superb.corpora import Description
from fairseq_star.superb.toolkit import DIARIZATION_SCORER, PROGRAMS, Environment, Toolkit

QUESST_SCRIPT = "score-TWV-Cnxe.sh"
DEFAULT_SCORE = "-10"  # of trials that are not listed, as in s3prl's docs/superb.md
# s3prl's diarization/score.sh tries these and takes the lowest error.
MEDIANS = (1, 11)
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
COST_FALSE_ALARM, COST_MISS, PRIOR = 1.0, 100.0, 0.0008
BETA = COST_FALSE_ALARM * (1 - PRIOR) / (COST_MISS * PRIOR)
Scores = Mapping[str, Mapping[str, float]]  # query -> document -> score
Truth = Mapping[str, set[str]]  # query -> documents that contain it


def missing_scorers(tasks: list[str], description: Description, environment: Environment) -> list[str]:
    """Return a sentence on each optional scorer or audio library that is missing."""
    sentences = []
    if "qbe" in tasks:
        script = description.folder("quesst14") / "scoring" / QUESST_SCRIPT
        missing = script if not script.is_file() else None if shutil.which("java") else "java"
        if missing:
            sentences.append(f"qbe: {missing} is missing: this project's own MTWV replaces QUESST's")
    if "sd" in tasks and DIARIZATION_SCORER in environment.found["missing"]:
        sentences.append(
            f"sd: {DIARIZATION_SCORER} is missing in s3prl's environment (pip install it there): no DER without it"
        )
    affected = [name for name in ("ks", "qbe", "asv") if name in tasks]
    if affected and not environment.found["sox"]:
        sentences.append(
            f"{', '.join(affected)}: libsox is missing (apt-get install libsox-dev): sox's effects are replaced"
        )
    return sentences


def queries(folder: Path, root: Path, split: str, notes: list[str]) -> float | None:
    """Return the MTWV of s3prl's answers, by QUESST's script where the corpus has it, else by :func:`maximum_twv`.

    Args:
        folder: the one with ``benchmark.stdlist.xml``.
        root: the corpus.
        split: ``dev`` or ``eval``.
        notes: gains a sentence where QUESST's scorer is missing; without a truth either the value is None.

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
    return maximum_twv(folder / "benchmark.stdlist.xml", tables[0])


def diarization(expdir: Path, reference: Path, toolkit: Toolkit, notes: list[str]) -> dict[str, float]:
    """Return the lowest DER over s3prl's thresholds and median filters, without a collar, overlaps scored, as dscore.

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
        notes.append(
            f"no DER: pip install pyannote.metrics in s3prl's environment; its predictions are kept in {scoring}"
        )
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


def maximum_twv(detections: Path, truth: Path) -> float:
    """Return the MTWV of s3prl's ``benchmark.stdlist.xml`` against an RTTM.

    Raises:
        StarError: a file that cannot be read, or no query that occurs.
    """
    return best_twv(read_detections(detections), read_truth(truth))


def best_twv(scores: Scores, truth: Truth) -> float:
    """Return the largest TWV over all thresholds.

    Raises:
        StarError: no query occurs in any document.
    """
    queries = [query for query in scores if truth.get(query)]
    if not queries:
        raise StarError("qbe: no query of the detections is in the truth; are both of the same split?")
    # Change of TWV as the threshold falls past a trial: one over its query's number of trials of that kind.
    gains, values = [], []
    for query in queries:
        documents = scores[query]
        hits = sum(document in truth[query] for document in documents)
        others = len(documents) - hits
        for document, value in documents.items():
            is_hit = document in truth[query]
            gains.append(1 / len(truth[query]) if is_hit else -BETA / others)
            values.append(value)
    order = np.argsort(-np.array(values), kind="stable")
    ranked, total = np.array(values)[order], np.cumsum(np.array(gains)[order]) / len(queries)
    ends = np.append(ranked[1:] != ranked[:-1], True)  # equal scores are detected together
    return max(0.0, float(total[ends].max()))


def twv(scores: Scores, truth: Truth, threshold: float) -> float:
    """Return TWV at one threshold by its formula: the slow reference of :func:`best_twv`."""
    losses = []
    for query, documents in scores.items():
        if not truth.get(query):
            continue
        found = {document for document, value in documents.items() if value >= threshold}
        others = set(documents) - truth[query]
        misses = len(truth[query] - found) / len(truth[query])
        alarms = len(found & others) / len(others) if others else 0.0
        losses.append(misses + BETA * alarms)
    return 1 - math.fsum(losses) / len(losses)


def read_detections(path: Path) -> dict[str, dict[str, float]]:
    """Read s3prl's answers.

    Raises:
        StarError: no such file, or no XML of that kind.
    """
    try:
        root = ElementTree.parse(path).getroot()
        return {
            terms.attrib["termid"]: {term.attrib["file"]: float(term.attrib["score"]) for term in terms.iter("term")}
            for terms in root.iter("detected_termlist")
        }
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        raise StarError(f"{path}: is no list of detections ({error}); evaluate again") from error


def read_truth(path: Path) -> dict[str, set[str]]:
    """Read queries and their documents from an RTTM's ``LEXEME`` lines (document second, query sixth).

    Raises:
        StarError: no such file, or a line with fewer fields.
    """
    found: dict[str, set[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise StarError(f"{path}: cannot be read ({error.strerror}); unpack QUESST 2014 again") from error
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if fields[:1] != ["LEXEME"]:
            continue
        if len(fields) < 6:
            raise StarError(f"{path}:{number}: expected LEXEME document channel start length query, found {line!r}")
        found.setdefault(fields[5], set()).add(fields[1])
    return found
