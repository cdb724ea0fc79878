"""Readers of lists of audio: plain lists, tables, JSON lines, Kaldi's wav.scp, other manifests, zip archives.

Each reader yields a ``Found`` per file, or a StarError for a line that cannot be used; one line is in memory at a time.
"""

import csv
import json
import math
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from fairseq_star.audio.utterances import has_audio_extension
from fairseq_star.errors import StarError
from fairseq_star.manifest import stream_manifest
from fairseq_star.runtime.files import open_text
from manifests.finding import LeftOut, with_dots
from manifests.preparing import Found, Part, warn

PATH_COLUMNS = ("file_path", "file_name", "audio_filepath", "audio", "path")
"""In order: s3prl's, HuggingFace's, NeMo's, fairseq S2T's, CommonVoice's."""
LENGTH_COLUMNS = ("length", "num_samples")
START_COLUMNS, END_COLUMNS, SECONDS_COLUMNS = ("offset", "start", "start_time"), ("end", "end_time"), ("duration",)
"""Seconds of a part of a file: NeMo's and others'."""
UNREAD = {
    ".parquet": "a Parquet table; write its audio to files, for example with `datasets` and soundfile, and list those",
    ".arrow": "an Arrow table; write its audio to files, for example with `datasets` and soundfile, and list those",
    ".tar": "a tar archive, which fairseq cannot read from; unpack it and list the folder",
    ".gz": "compressed; unpack it first, for example with `gunzip -k`",
    ".bz2": "compressed; unpack it first, for example with `bunzip2 -k`",
    ".xz": "compressed; unpack it first, for example with `unxz -k`",
    ".zst": "compressed; unpack it first, for example with `unzstd`",
    ".xlsx": "a spreadsheet; save it as CSV and list that",
}
"""Endings of files that are no lists, and what to do with each."""
TABLES = {".csv", ".tsv"}
JSON_LINES = {".jsonl", ".json"}


def read_list(path: Path) -> Iterator[Found | StarError]:
    """Read a path per line; empty lines are skipped."""
    for number, line in enumerate(lines_of(path), start=1):
        if line.strip():
            yield Found(line.strip(), where=f"{path}:{number}: ")


def read_table(path: Path, column: str | None = None) -> Iterator[Found | StarError]:
    """Read a table of audio: ``file_path,length`` as in s3prl's ``len_for_bucket`` and the re-implementation,
    HuggingFace's metadata.csv and .jsonl with ``file_name``, and so on; other columns are ignored."""
    for where, row in read_rows(path):
        if isinstance(row, StarError):
            yield row
            continue
        if isinstance(row.get("recording"), dict):
            raise StarError(
                f"{where}is a cut of lhotse, a part of a recording; write the cuts to files (`CutSet.save_audios`) and "
                "list their folder with manifests/audio_folder.py"
            )
        name = choose_column(where, row, [column] if column else PATH_COLUMNS, "name the path's with --column")
        audio = row[name]
        if isinstance(audio, dict):  # HuggingFace's, of a file
            audio = audio.get("path")
        told = next((row[key] for key in LENGTH_COLUMNS if row.get(key) not in (None, "")), None)
        part = _part_of(row)
        if isinstance(part, StarError):
            yield StarError(f"{where}{part}")
        elif not isinstance(audio, str) or not audio.strip():
            yield StarError(f"{where}{name} is {audio!r}, must be a path; correct or delete that line")
        elif audio.lstrip().startswith("{"):
            yield StarError(
                f"{where}{name} is a dict as text ({audio.strip()[:60]!r}), must be a path; write that alone"
            )
        elif told is not None and not (str(told).isdecimal() and int(told) > 0):
            yield StarError(f"{where}the length of {audio!r} is {told!r}, must be a number of samples; correct it")
        else:
            yield Found(audio.strip(), None if told is None else int(told), where, part=part)


def _part_of(row: dict) -> Part | StarError | None:
    """Return the part of its file that a row is about, in seconds; None where it states none."""
    try:
        start, end, seconds = (
            next((float(row[key]) for key in keys if row.get(key) not in (None, "")), None)
            for keys in (START_COLUMNS, END_COLUMNS, SECONDS_COLUMNS)
        )
    except (TypeError, ValueError):
        return StarError("start, end and duration must be numbers of seconds; correct that line")
    if start is None and end is None and seconds is None:
        return None
    if not all(math.isfinite(value or 0.0) for value in (start, end, seconds)):
        return StarError("start, end and duration must be finite numbers of seconds; correct that line")
    return Part(start or 0.0, end if end is not None or seconds is None else (start or 0.0) + seconds)


def read_rows(path: Path) -> Iterator[tuple[str, dict | StarError]]:
    """Yield, for each line, the prefix of messages about it and its fields.

    The file's name decides: CSV (commas) or TSV (tabs) with a header, or JSON lines.
    """
    if path.suffix.lower() in JSON_LINES:
        for number, line in enumerate(lines_of(path), start=1):
            if number == 1 and line.lstrip().startswith("["):
                raise StarError(f"{path}: is one JSON array; write an object a line, for example with `jq -c '.[]'`")
            if line.strip():
                yield f"{path}:{number}: ", _json_object(f"{path}:{number}: ", line)
        return
    # CommonVoice's tab-separated tables have no quoting: a quotation mark is an ordinary character. In CSV it may
    # enclose line breaks, so one too many would join rows.
    tabs = path.suffix.lower() == ".tsv"
    form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    with open_source(path) as file:
        rows = _rows(path, csv.reader(file, **form))
        _, header = next(rows, ("", []))
        if isinstance(header, StarError):
            raise header
        for where, fields in rows:
            if isinstance(fields, StarError):
                yield where, fields
            elif len(fields) == len(header):
                yield where, dict(zip(header, fields, strict=True))
            elif fields:
                fault = f"has {len(fields)} fields, the header has {len(header)}; correct or delete that line"
                yield where, StarError(f"{where}{fault}")


def _rows(path: Path, reader) -> Iterator[tuple[str, list[str] | StarError]]:
    """Yield the prefix of messages about a row, and the row; malformed CSV costs its own lines alone."""
    while True:
        first = reader.line_num + 1
        try:
            row = _guarded(path, lambda: next(reader, None))
            fault = "looks like several rows that a quotation mark joins" if row and _has_joined_rows(row) else ""
        except csv.Error as error:
            row, fault = [], f"is no CSV ({error})"
        if row is None:
            return
        where = f"{path}:{reader.line_num}: "
        if fault:
            lines = f" from line {first} to here" if first < reader.line_num else ""
            row = StarError(f"{where}the row{lines} {fault}; correct the quotation marks in it")
        yield where, row


def _has_joined_rows(row: Sequence[str]) -> bool:
    """Return True if a field contains further lines that name audio."""
    further = [line for field in row for line in field.splitlines()[1:]]
    return any(has_audio_extension(item.strip(' "')) for line in further for item in line.split(","))


def _json_object(where: str, line: str) -> dict | StarError:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict):
        return row
    return StarError(f"{where}is no JSON object, but {line[:60]!r}; correct or delete that line")


def choose_column(where: str, row: Iterable[str], candidates: Sequence[str], fix: str) -> str:
    """Return the first candidate that is a column; raise StarError if none is."""
    for name in candidates:
        if name in row:
            return name
    raise StarError(f"{where}no column {' or '.join(candidates)}, but {', '.join(map(repr, row))}; {fix}")


def read_wav_scp(path: Path) -> Iterator[Found | StarError]:
    """Read Kaldi's ``utterance path`` lines. Commands and offsets into archives are refused: a manifest names files."""
    if path.with_name("segments").exists():
        warn(f"{path}: lists whole recordings; the segments file next to it is not applied")
    for number, line in enumerate(lines_of(path), start=1):
        where = f"{path}:{number}: "
        utterance, _, location = line.strip().partition(" ")
        location = location.strip()
        if not line.strip():
            continue
        if not location:
            yield StarError(f"{where}expected 'utterance path', found {line!r}; correct or delete that line")
        elif location.endswith("|"):
            yield StarError(
                f"{where}{utterance} is a command (it ends in '|'), and a manifest names files; write its output to"
                " files and list those"
            )
        elif location.rpartition(":")[2].isdecimal() and ".zip:" not in location:
            yield StarError(
                f"{where}{utterance} is a place in a Kaldi archive ({location!r}), which fairseq cannot read; write it"
                " to files and list those"
            )
        else:
            yield Found(location, where=where)


def read_zip(path: Path, extensions: Iterable[str], left_out: LeftOut) -> Iterator[Found | StarError]:
    """List the audio in a zip archive as ``archive.zip:offset:size``: fairseq reads entries stored without compression.

    Raises:
        StarError: no zip archive, a name fairseq cannot parse, or no audio in it.
    """
    if path.suffix != ".zip" or ":" in str(path):
        raise StarError(f"{path}: fairseq reads archives whose name ends in .zip and has no colon; rename it")
    wanted = with_dots(extensions)
    found = False
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            for entry in archive.infolist():
                if entry.is_dir() or left_out.leaves_out(entry.filename, wanted):
                    continue
                found = True
                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                    how = "encrypted" if entry.flag_bits & 1 else "compressed"
                    yield StarError(
                        f"{path}: {entry.filename} is {how}, and fairseq reads stored entries alone; pack it again with"
                        " `zip -0 -r`, or unpack it and list the folder"
                    )
                    continue
                # The local header's extra field counts: it may be longer than the directory's.
                file.seek(entry.header_offset + 26)
                offset = entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
                yield Found(f"{path.name}:{offset}:{entry.file_size}", where=f"{entry.filename}: ", name=entry.filename)
    except (zipfile.BadZipFile, OSError, struct.error, NotImplementedError) as error:
        raise StarError(f"{path}: cannot be read as a zip archive ({error}); restore it") from error
    if not found:
        fault = f"{path}: has no file ending in {', '.join(sorted(wanted))}; name another archive or --ext"
        raise StarError(f"{fault} ({left_out})" if str(left_out) else fault)


def manifest_root(path: Path) -> str | None:
    """Return the root of a file that is one of fairseq's manifests, None for any other."""
    try:
        with open_source(path) as file:
            root, line = file.readline(1 << 16), file.readline(1 << 16)
    except UnicodeDecodeError:
        return None
    root, entry = root.strip(), line.rstrip("\r\n").rpartition("\t")
    is_root = root and "\t" not in root and root not in PATH_COLUMNS and not has_audio_extension(root)
    return root if is_root and entry[0] and "\t" not in entry[0] and entry[2].isdecimal() else None


def read_listed(path: Path) -> Iterator[Found | StarError]:
    """Read the entries of another manifest, with its lengths."""
    for number, entry in enumerate(stream_manifest(path)[1], start=2):
        yield Found(entry.path, entry.num_samples, f"{path}:{number}: ")


def open_source(path: Path) -> TextIO:
    """Open a UTF-8 text file or pipe; line breaks are not converted."""
    try:
        return open_text(path, newline="")
    except OSError as error:
        raise StarError(f"{path}: cannot be read ({error.strerror}); correct the name") from error


def lines_of(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, without line breaks."""
    with open_source(path) as file:
        while line := _guarded(path, file.readline):
            yield line.rstrip("\r\n")


def _guarded(path: Path, read: Callable):
    """Run one read; raise StarError if the file is not UTF-8 text."""
    try:
        return read()
    except UnicodeDecodeError as error:
        raise StarError(f"{path}: is not UTF-8 text; convert it, for example with `iconv -t UTF-8`") from error
