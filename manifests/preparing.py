"""What the manifest scripts share: finding audio, reading its headers, dividing files, writing manifests, reporting."""

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import _repo_root  # noqa: F401
from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE, ManifestEntry, probe_all, write_manifest


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options every script has: the folder, --out, --skip-bad, --headers-only."""
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of the audio")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the manifests; made if new")
    parser.add_argument(
        "--skip-bad", action="store_true",
        help="end with status 0 though files were left out (unreadable, empty, not mono, not 16 kHz)",
    )  # fmt: skip
    parser.add_argument(
        "--headers-only", action="store_true",
        help="do not decode each file's last sample: much quicker, but a file cut short goes unnoticed",
    )  # fmt: skip


def find_audio(root: Path, extensions: Iterable[str]) -> list[str]:
    """Audio files below a folder, at any depth, by extension (in any case); names that begin with a dot are left out.

    Returns:
        Paths relative to `root` with forward slashes, sorted.

    Raises:
        StarError: `root` is no folder, or holds no such file.
    """
    check_folder(root)
    wanted = {f".{extension.lower().lstrip('.')}" for extension in extensions}
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if os.path.splitext(name)[1].lower() in wanted and not name.startswith("."):
                found.append(Path(folder, name).relative_to(root).as_posix())
    if not found:
        raise StarError(f"{root}: holds no file ending in {', '.join(sorted(wanted))}; name another folder or --ext")
    return sorted(found)


def check_folder(root: Path) -> None:
    """Raises StarError where `root` is no folder."""
    if not root.is_dir():
        raise StarError(f"{root}: is no folder; name the folder that holds the audio")


def read_lengths(root: Path, paths: Sequence[str], headers_only: bool) -> tuple[dict[str, int], list[str]]:
    """Reads all files' lengths in parallel, with a progress bar.

    Returns:
        The good files' numbers of samples by path, in the order given, and one sentence for each bad file.
    """
    results = probe_all([root / path for path in paths], SAMPLE_RATE, read_end=not headers_only)
    good = {path: result for path, result in zip(paths, results, strict=True) if not isinstance(result, StarError)}
    return good, [str(result) for result in results if isinstance(result, StarError)]


def split_by_file(paths: Sequence[str], percent: float, seed: int) -> tuple[list[str], list[str]]:
    """Holds out a share of files, chosen by a hash of seed and path: it depends on neither order nor machine, and a
    file added later moves few others.

    Returns:
        (training paths, held-out paths), each in the order given. At least one file on either side where two or more
        are given and `percent` is above 0.
    """
    num_held_out = 0 if percent == 0 else min(max(1, round(len(paths) * percent / 100)), len(paths) - 1)
    ranked = sorted(paths, key=lambda path: hashlib.sha256(f"{seed}\0{path}".encode()).digest())
    held_out = set(ranked[:num_held_out])
    return [path for path in paths if path not in held_out], [path for path in paths if path in held_out]


def split_by_speaker(paths: Sequence[str], held_out_speakers: Iterable[str]) -> tuple[list[str], list[str]]:
    """(training paths, held-out paths) of LibriSpeech paths, by the speaker's folder."""
    held_out = set(held_out_speakers)
    return (
        [path for path in paths if speaker_of(path) not in held_out],
        [path for path in paths if speaker_of(path) in held_out],
    )


def speaker_of(path: str) -> str:
    """The speaker in `.../<speaker>/<chapter>/<utterance>.flac`."""
    return PurePosixPath(path).parts[-3]


def write_manifests(
    root: Path, out: Path, splits: Mapping[str, Sequence[str]], num_samples: Mapping[str, int], problems: Sequence[str],
    skip_bad: bool,
) -> int:  # fmt: skip
    """Writes one manifest a split, names the bad files and sums up. The manifests hold the good files only, whether or
    not there were bad ones.

    Args:
        root: the folder all paths are below; its absolute path becomes the manifests' first line.
        out: folder for the manifests.
        splits: paths by split; those that are not in `num_samples` are left out.
        num_samples: length of each good file.
        problems: one sentence a bad file.
        skip_bad: bad files are no failure.

    Returns:
        The status to exit with: 1 where files were left out without `skip_bad`.

    Raises:
        StarError: a split without one good file.
    """
    for problem in problems:
        print(problem, file=sys.stderr)
    for split, paths in splits.items():
        entries = [ManifestEntry(path, num_samples[path]) for path in paths if path in num_samples]
        write_manifest(out / f"{split}.tsv", os.path.abspath(root), entries)
        hours = sum(entry.num_samples for entry in entries) / SAMPLE_RATE / 3600
        print(f"{out / split}.tsv: {len(entries)} files, {hours:.2f} h")
    if problems:
        advice = "" if skip_bad else "; mend them and run this again, or give --skip-bad to go without them"
        print(f"{len(problems)} bad files left out{advice}", file=sys.stderr)
    return 1 if problems and not skip_bad else 0


def run_script(main: Callable[[], int | None]) -> None:
    """Runs a script's main and exits with its status; a user's error is told in its one sentence, status 1."""
    try:
        sys.exit(main())
    except StarError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
