"""Match of transcripts and utterances."""

import functools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fairseq_star.audio.utterances import is_copy, original_name, place_of, utterance_key
from fairseq_star.errors import StarError
from fairseq_star.manifest import ManifestEntry, parse_archive_entry
from manifests.copies import recorded
from manifests.finding import LeftOut, is_macos_leftover, readable_extensions
from manifests.sources import JSON_LINES, PATH_COLUMNS, TABLES, Found, choose_column, lines_of, read_rows, read_zip

TEXT_COLUMNS = ("text", "sentence", "transcription", "transcript")


class Transcript(NamedTuple):
    """Line of a file of transcripts."""

    written: str  # the path or utterance as that line has it
    text: str
    where: str  # 'file:line: '


class Transcripts:
    """Transcripts from --text, or from the ``*.trans.txt`` in each audio file's folder.

    Args:
        files: Kaldi's ``text`` or tables; none for ``*.trans.txt``.

    Raises:
        StarError: a file that is missing or malformed, or has two transcripts of one name.
    """

    def __init__(self, files: Sequence[Path]):
        self.told = _read(files) if files else None
        self.folder = None, {}  # transcripts of one folder

    def of_all(self, entries: Iterable[tuple[Path, str, ManifestEntry]]) -> list[tuple[Path, ManifestEntry, str, str]]:
        """Return each entry's transcript, "" if it has none, and the reason if there is one.

        Args:
            entries: each with its manifest and the manifest's root.
        """
        found = []
        files: dict[str, dict[str, tuple]] = defaultdict(dict)  # by transcript: whose it would be, and how exactly
        for manifest, root, entry in entries:
            path = place_of(os.path.join(root, entry.path))
            place = _source_of(path)
            transcript, exact, problem = self._of(path, place)
            if transcript:
                files[transcript.where][place] = exact
            found.append((manifest, entry, place, transcript, problem))
        told = []
        for manifest, entry, place, transcript, problem in found:
            text = transcript.text if transcript else ""
            rivals = files[transcript.where] if transcript else {}
            rival = next((one for one, exact in rivals.items() if one != place and exact >= rivals[place]), None)
            if rival:
                problem = f"shares {transcript.where}{transcript.written!r} with {rival}; write the folders there too"
            told.append((manifest, entry, "" if rival else text, problem))
        return told

    def _of(self, path: str, place: str) -> tuple[Transcript | None, tuple, str]:
        """Return a file's transcript, how exactly its name agrees, and a problem."""
        texts = self.told
        if texts is None:
            folder = os.path.dirname(place)
            if self.folder[0] != folder:
                names = sorted(Path(folder).glob("*.trans.txt"))
                self.folder = folder, _read([name for name in names if not is_macos_leftover(name.name)])
            texts = self.folder[1]
        for name in dict.fromkeys((place, path, os.path.splitext(place)[0])):
            key = utterance_key(name)
            for start in range(len(key)):  # what says most of the path counts
                if key[start:] in texts:
                    return _best(texts[key[start:]], place)
        return None, (), ""


def _best(fitting: list[Transcript], place: str) -> tuple[Transcript | None, tuple, str]:
    """Return, of the transcripts of a key, the one with the file's own extension, or else in its own Unicode form."""
    name = os.path.basename(place)

    def exactness(one: Transcript) -> tuple:
        last = one.written.replace("\\", "/").rpartition("/")[2]
        return original_name(last) == original_name(name), last == name

    best = max(fitting, key=exactness)
    for other in fitting:
        if exactness(other) == exactness(best) and other.text != best.text:
            return None, (), f"has two transcripts, of {best.where}{best.written!r} and {other.where}{other.written!r}"
    return best, exactness(best), ""


def _source_of(path: str) -> str:
    """Return the path of the audio before it was copied or packed, which transcripts refer to."""
    if is_copy(path):
        return recorded(path).get("source", path)
    if entry := parse_archive_entry(path):
        name = _names_in(entry.archive).get(f"{os.path.basename(entry.archive)}:{entry.offset}:{entry.size}")
        return f"{entry.archive}/{name}" if name else path
    return path


@functools.lru_cache(maxsize=8)
def _names_in(archive: str) -> dict[str, str]:
    try:
        items = list(read_zip(Path(archive), readable_extensions(), LeftOut()))
    except StarError:  # transcripts may still name the entry as the manifest does
        return {}
    return {item.path: item.name for item in items if isinstance(item, Found)}


def _read(paths: Sequence[Path]) -> dict[tuple[str, ...], list[Transcript]]:
    """Read the transcripts, by key."""
    texts: dict[tuple[str, ...], list[Transcript]] = defaultdict(list)
    known: dict[str, str] = {}
    for path in paths:
        for where, written, text in _table(path) if path.suffix.lower() in TABLES | JSON_LINES else _utterances(path):
            if known.get(written, text) != text:
                raise StarError(f"{where}{written!r} has another transcript already; delete one")
            if written not in known and (key := utterance_key(written)):
                texts[key].append(Transcript(written, text, where))
            known[written] = text
    return texts


def _utterances(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(lines_of(path), start=1):
        key, _, text = line.strip().replace("\t", " ").partition(" ")
        if key:
            yield f"{path}:{number}: ", key, text


def _table(path: Path) -> Iterator[tuple[str, str, str]]:
    for where, row in read_rows(path):
        if isinstance(row, StarError):
            raise row
        key = row[choose_column(where, row, PATH_COLUMNS, "rename the path's column")]
        text = row[choose_column(where, row, TEXT_COLUMNS, "rename the transcript's column")]
        if not isinstance(key, str) or not isinstance(text, str):
            raise StarError(f"{where}path and transcript must be text, are {key!r} and {text!r}; correct that line")
        yield where, key.strip(), text
