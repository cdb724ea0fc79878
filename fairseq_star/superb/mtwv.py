"""The maximum term weighted value of a list of detections, where QUESST's own scorer is not at hand.

    TWV(θ) = 1 − mean over queries of ( P_miss(θ) + β · P_fa(θ) ),   β = C_fa (1 − P) / (C_miss P)

with the constants of QUESST 2014, C_fa = 1, C_miss = 100, P = 0.0008. P_miss is the share of a query's documents that
score below θ, P_fa the share of all others that score θ or more; queries that occur nowhere are left out; MTWV is the
largest TWV of any θ, and 0 at least (nothing detected).

Source: Anguera et al., "Query by Example Search on Speech at MediaEval 2014"; NIST, STD 2006 evaluation plan.
"""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fairseq_star.errors import StarError

COST_FALSE_ALARM, COST_MISS, PRIOR = 1.0, 100.0, 0.0008
BETA = COST_FALSE_ALARM * (1 - PRIOR) / (COST_MISS * PRIOR)
Scores = Mapping[str, Mapping[str, float]]  # query -> document -> score
Truth = Mapping[str, set[str]]  # query -> documents that hold it


def maximum_twv(detections: Path, truth: Path) -> float:
    """MTWV of s3prl's ``benchmark.stdlist.xml`` against an RTTM.

    Raises:
        StarError: a file that cannot be read, or no query that occurs.
    """
    return best_twv(read_detections(detections), read_truth(truth))


def best_twv(scores: Scores, truth: Truth) -> float:
    """The largest TWV over all thresholds.

    Raises:
        StarError: no query occurs in any document.
    """
    queries = [query for query in scores if truth.get(query)]
    if not queries:
        raise StarError("qbe: no query of the detections is in the truth; are both of the same split?")
    # What lowering the threshold past a trial changes, divided by the number of its query's trials of that kind.
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
    """TWV at one threshold, as the formula has it: the slow reference of :func:`best_twv`."""
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
    """s3prl's answers.

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
    """Queries and their documents, of an RTTM's ``LEXEME`` lines (document second, query sixth).

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
