"""Write LibriSpeech's manifests.

    python manifests/librispeech.py ROOT --out DIR [--split 100h 960h dev] [--valid-speakers N] [--complete]
                                    [--resample DIR]

ROOT is the folder of ``train-clean-100`` and so on (the corpus unpacks it as ``LibriSpeech``).

    100h        train-100h.tsv    train-clean-100
    460h        train-460h.tsv    train-clean-100, train-clean-360
    960h        train-960h.tsv    train-clean-100, train-clean-360, train-other-500
    dev         valid.tsv         dev-clean and dev-other, or the one that exists
    FOLDER      FOLDER.tsv        that folder alone: dev-clean, test-other ...

By default 100h, 460h, 960h, dev, test-clean and test-other, those whose folders exist. --valid-speakers N is for a
corpus without dev folders: ``valid.tsv`` then has the last N speakers (by number) of the smallest training split
written, and no training manifest has them. Train with ``task.data=DIR dataset.train_subset=train-100h``.

Each folder's utterances and hours are compared with the published ones; a folder that differs is named, and with
--complete the script then exits with status 1. Files that are unreadable or empty are named and left out, and so are
those that are not 16 kHz mono, unless --resample converts them; see --skip-bad. Links are followed; other files that
look like audio are counted in the last line.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE
from manifests.finding import LeftOut, check_folder, find_audio
from manifests.preparing import Found, add_options, check_copies, prepare, run_script, speaker_of

PUBLISHED = {
    "train-clean-100": (28_539, 100.6),
    "train-clean-360": (104_014, 363.6),
    "train-other-500": (148_688, 496.7),
    "dev-clean": (2_703, 5.4),
    "dev-other": (2_864, 5.3),
    "test-clean": (2_620, 5.4),
    "test-other": (2_939, 5.1),
}
"""Utterances (openslr/librispeech_asr, the data set card's `num_examples`) and hours (Panayotov et al., ICASSP 2015,
Table 1) of each folder."""
HOURS_OFF = 0.3  # the published hours are rounded, and those of the small sets approximate
TRAIN_FOLDERS = {
    "100h": ["train-clean-100"],
    "460h": ["train-clean-100", "train-clean-360"],
    "960h": ["train-clean-100", "train-clean-360", "train-other-500"],
}  # smallest first
DEV_FOLDERS = ["dev-clean", "dev-other"]
TEST_FOLDERS = ["test-clean", "test-other"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line described above and return the exit status.

    Raises:
        StarError: a folder is missing or is not laid out like LibriSpeech, --valid-speakers leaves none to train on, or
            --resample is below ROOT.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of train-clean-100 and its like")
    parser.add_argument(
        "--split", nargs="+", choices=[*TRAIN_FOLDERS, "dev", *PUBLISHED], default=None, metavar="SPLIT",
        help="any of %(choices)s (default: those the text above says)",
    )  # fmt: skip
    parser.add_argument(
        "--valid-speakers", type=int, default=0, metavar="N", help="hold out the last N speakers instead of dev"
    )
    parser.add_argument("--complete", action="store_true", help="fail unless each folder is as published")
    parser.add_argument("--ext", nargs="+", default=["flac"], help="file extensions (default flac)")
    add_options(parser)
    options = parser.parse_args(arguments)
    check_folder(options.root)
    check_copies(options)
    folders = _choose(options.root, options.split, options.valid_speakers)
    lengths = {folder: [] for folder in sorted(set().union(*folders.values()))}
    left_out, problems = LeftOut(), []
    paths = [path for folder in lengths for path in _find(options.root, folder, options.ext, left_out, problems)]
    found = [*problems, *_divide(paths, folders, options.valid_speakers)]
    splits = [*folders, "valid"] if options.valid_speakers else list(folders)

    def count(item: Found, num_samples: int) -> None:
        lengths[_folder(item.path)].append(num_samples)

    status = prepare(options.root, found, options, left_out, splits, count)
    differ = [not _as_published(folder, of_folder) for folder, of_folder in lengths.items()]
    return 1 if options.complete and any(differ) else status


def _choose(root: Path, wanted: list[str] | None, valid_speakers: int) -> dict[str, list[str]]:
    """Return the folders of each manifest, by its name."""
    if valid_speakers < 0 or (valid_speakers and wanted and "dev" in wanted):
        raise StarError("--valid-speakers: must not be negative and does not go with --split dev; choose one")
    chosen = {}
    for split, folders in TRAIN_FOLDERS.items():
        missing = [folder for folder in folders if not (root / folder).is_dir()]
        if wanted and split in wanted and missing:
            raise StarError(f"{root}: lacks {', '.join(missing)}, which --split {split} needs; unpack it there")
        if not missing and (not wanted or split in wanted):
            chosen[f"train-{split}"] = folders
    dev = [folder for folder in DEV_FOLDERS if (root / folder).is_dir()]
    if wanted and "dev" in wanted and not dev:
        raise StarError(f"{root}: lacks {' and '.join(DEV_FOLDERS)}; unpack one, or use --valid-speakers")
    if dev and not valid_speakers and (not wanted or "dev" in wanted):
        chosen["valid"] = dev
    for folder in PUBLISHED if wanted else TEST_FOLDERS:
        if wanted and folder in wanted and not (root / folder).is_dir():
            raise StarError(f"{root}: lacks {folder}, which --split names; unpack it there")
        if (root / folder).is_dir() and (not wanted or folder in wanted):
            chosen[folder] = [folder]
    if not chosen:
        raise StarError(f"{root}: has none of {', '.join(wanted or PUBLISHED)}; name the folder LibriSpeech unpacks to")
    return chosen


def _as_published(folder: str, lengths: Sequence[int]) -> bool:
    """Compare a folder's good files, given their samples, with the published corpus, on stderr."""
    hours = sum(lengths) / SAMPLE_RATE / 3600
    expected, expected_hours = PUBLISHED[folder]
    here = f"{folder}: {len(lengths)} utterances, {hours:.2f} h"
    if len(lengths) == expected and abs(hours - expected_hours) <= HOURS_OFF:
        print(f"{here}, as published", file=sys.stderr)
        return True
    print(
        f"{here}; published are {expected} and {expected_hours} h: unless an excerpt is meant, unpack it again",
        file=sys.stderr,
    )
    return False


def _find(
    root: Path, folder: str, extensions: Iterable[str], left_out: LeftOut, problems: list[StarError]
) -> list[str]:
    """Find a folder's audio, speakers and chapters by number; add to ``problems`` what cannot be listed."""
    paths = []
    for found in find_audio(root / folder, extensions, left_out):
        if isinstance(found, StarError):
            problems.append(found)
            continue
        path = f"{folder}/{found}"
        if path.count("/") != 3:
            raise StarError(f"{root / path}: is not in <split>/<speaker>/<chapter>/; if meant so, use audio_folder.py")
        paths.append(path)
    return sorted(paths, key=_order)


def _order(path: str) -> tuple:
    """Sort paths with their speaker and chapter folders by number: 26 before 103."""
    folder, speaker, chapter, name = path.split("/")
    return folder, _number(speaker), _number(chapter), name


def _number(text: str) -> tuple[bool, int, str]:
    """Return a sort key: numbers by value, before anything else by its letters."""
    return not text.isdecimal(), int(text) if text.isdecimal() else 0, text


def _folder(path: str) -> str:
    return path.partition("/")[0]


def _divide(paths: Sequence[str], folders: Mapping[str, Sequence[str]], num_speakers: int) -> list[Found]:
    """Assign each file to manifests: those of its folder, or, for a speaker held out of the smallest split (first of
    ``folders``), ``valid`` alone."""
    smallest = next(iter(folders.values()))
    held_out = set()
    if num_speakers:
        held_out = _last_speakers((path for path in paths if _folder(path) in smallest), num_speakers)

    def splits_of(path: str) -> tuple[str, ...]:
        if speaker_of(path) in held_out:
            return ("valid",) if _folder(path) in smallest else ()
        return tuple(name for name, names in folders.items() if _folder(path) in names)

    return [Found(path, splits=splits_of(path)) for path in paths]


def _last_speakers(paths: Iterable[str], num_speakers: int) -> set[str]:
    speakers = sorted({speaker_of(path) for path in paths}, key=_number)
    if num_speakers >= len(speakers):
        raise StarError(f"--valid-speakers {num_speakers}: must be below {len(speakers)}, the number of speakers there")
    return set(speakers[-num_speakers:])


if __name__ == "__main__":
    run_script(main)
