"""Write manifests of the audio listed in a file: ``train.tsv`` and, held out by file, ``valid.tsv``.

    python manifests/audio_list.py FILE [FILE ...] --out DIR [--root ROOT] [--valid-percent 1] [--resample DIR]

The name of a FILE decides its format:

    *.csv *.tsv    a table with a header: ``file_path,length`` (s3prl, the re-implementation), ``file_name``
                   (HuggingFace's metadata.csv), ``path`` (CommonVoice), ``audio``; other columns are ignored
    *.jsonl *.json a JSON object per line: ``file_name`` (HuggingFace's metadata.jsonl), ``audio_filepath`` (NeMo)
    *.scp          Kaldi's wav.scp, of files; commands and offsets into archives are refused
    *.zip          the audio in it, stored without compression, which fairseq reads from the archive
    a manifest     of fairseq, whatever its name: its entries, checked, split or converted again
    anything else  a list, one path a line

A table's row may name a part of a file (``offset``, ``start``, ``end``, ``duration``, in seconds): where that is not
the whole file it is named and left out, since a manifest lists whole files.

A FILE may be a pipe (``<(find corpus -name '*.flac')``, ``/dev/stdin``): a list or a manifest. Relative paths are
below --root, by default below the FILE's own folder, those of a pipe below the present one. A length in a table is
compared with the file, or with --trust-lengths used unchecked: no audio is opened, which lists millions of files in
seconds. Files not in 16 kHz mono are named and left out, or converted with --resample; malformed lines and files listed
twice are left out too. The script then exits with status 1, or 0 with --skip-bad.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fairseq_star.errors import StarError
from fairseq_star.runtime.files import is_pipe
from manifests.finding import LeftOut, check_folder, is_macos_leftover, readable_extensions
from manifests.preparing import Found, add_options, add_split_options, check_split_options, prepare, run_script
from manifests.sources import (
    JSON_LINES,
    TABLES,
    UNREAD,
    manifest_root,
    read_list,
    read_listed,
    read_table,
    read_wav_scp,
    read_zip,
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line described above and return the exit status.

    Raises:
        StarError: a FILE that is missing or of another format, no good entry in any, or an option out of range.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="list, table, wav.scp or archive")
    parser.add_argument("--root", type=Path, default=None, help="folder of relative paths (default: each FILE's own)")
    parser.add_argument("--column", default=None, help="the column or key of the path, where it has another name")
    parser.add_argument("--trust-lengths", action="store_true", help="take the table's lengths, open no audio")
    add_options(parser)
    add_split_options(parser)
    options = parser.parse_args(arguments)
    check_split_options(options)
    if options.trust_lengths and options.resample:
        raise StarError("--trust-lengths opens no audio, so it does not go with --resample; leave one out")
    if options.root:
        check_folder(options.root)
    for path in options.files:
        if not (path.is_file() or is_pipe(path)):
            raise StarError(f"{path}: no such file; correct the name (a folder goes to manifests/audio_folder.py)")
    bases = [os.path.abspath(_base(path, options.root)) for path in options.files]
    root, left_out = os.path.commonpath(bases), LeftOut()
    return prepare(Path(root), _read_all(options.files, bases, root, options.column, left_out), options, left_out)


def _base(path: Path, root: Path | None) -> str | Path:
    """Return the folder of a file's relative paths."""
    if path.suffix == ".zip":  # its entries are named by the archive, whatever --root says
        return path.parent
    return root or manifest_root(path) or (os.getcwd() if is_pipe(path) else path.parent)


def _read_all(
    files: Sequence[Path], bases: Sequence[str], root: str, column: str | None, left_out: LeftOut
) -> Iterator[Found | StarError]:
    """Yield the entries of all files, with paths below one root."""
    for path, base in zip(files, bases, strict=True):
        below = os.path.relpath(base, root)
        for item in _read(path, column, left_out):
            if isinstance(item, Found) and is_macos_leftover(item.path):
                left_out.macos += 1
                continue
            if isinstance(item, Found) and below != "." and not os.path.isabs(item.path):
                item = item._replace(path=os.path.join(below, item.path))
            yield item


def _read(path: Path, column: str | None, left_out: LeftOut) -> Iterator[Found | StarError]:
    suffix = path.suffix.lower()
    if suffix in UNREAD:
        raise StarError(f"{path}: is {UNREAD[suffix]}")
    if suffix == ".zip":
        return read_zip(path, readable_extensions(), left_out)
    if manifest_root(path):
        return read_listed(path)
    if suffix == ".scp":
        return read_wav_scp(path)
    if suffix in TABLES | JSON_LINES:
        return read_table(path, column)
    return read_list(path)


if __name__ == "__main__":
    run_script(main)
