"""Check of new manifests against others in the same folder."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fairseq_star.audio.utterances import place_of
from fairseq_star.errors import StarError
from fairseq_star.manifest import stream_manifest


def compare_splits(out: Path, written: Sequence[str]) -> Iterator[str]:
    """Yield a sentence if ``valid.tsv`` is an earlier run's, and one for each training manifest that overlaps it.

    Args:
        out: the folder of the manifests.
        written: the names of those just written, without ``.tsv``. Two of them share nothing by construction.
    """
    valid = out / "valid.tsv"
    trains = [path for path in sorted(out.glob("train*.tsv")) if path.stem in written or "valid" in written]
    trains = [path for path in trains if not {path.stem, "valid"} <= set(written)]
    if not trains or not valid.is_file():
        return
    try:
        held_out = set(_places(valid))
        if "valid" not in written:
            root = stream_manifest(valid)[0]
            yield f"{valid}: is an earlier run's, {len(held_out)} files below {root}; remove it if it is not wanted"
        for train in trains:
            both = [place for place in _places(train) if place in held_out]
            if both:
                yield f"{train}: {len(both)} files are also in {valid}, the first is {both[0]}; take them out of one"
    except StarError as error:
        yield str(error)


def _places(manifest: Path) -> Iterator[str]:
    root, entries = stream_manifest(manifest)
    return (place_of(os.path.join(root, entry.path)) for entry in entries)
