"""Writes LibriSpeech's manifests.

    python manifests/librispeech.py ROOT --out DIR [--split 100h 960h dev] [--valid-speakers N]

ROOT is the folder that holds `train-clean-100` and its like (the corpus unpacks it as `LibriSpeech`).

    100h    train-100h.tsv    train-clean-100
    960h    train-960h.tsv    train-clean-100, train-clean-360, train-other-500
    dev     valid.tsv         dev-clean and dev-other, or the one of them that is there

By default each split whose folders are there. --valid-speakers N is for a corpus without dev folders: `valid.tsv` then
holds the last N speakers (by number) of the smallest training split written, and no training manifest has them.
Train with `task.data=DIR dataset.train_subset=train-100h dataset.valid_subset=valid`.
Files that are unreadable, empty, not mono or not 16 kHz are named and left out; see --skip-bad.
"""

import argparse
from pathlib import Path

import _repo_root  # noqa: F401
from fairseq_star.errors import StarError
from preparing import (
    add_options,
    check_folder,
    find_audio,
    read_lengths,
    run_script,
    speaker_of,
    split_by_speaker,
    write_manifests,
)

TRAIN_FOLDERS = {
    "100h": ["train-clean-100"],
    "960h": ["train-clean-100", "train-clean-360", "train-other-500"],
}  # smallest first
DEV_FOLDERS = ["dev-clean", "dev-other"]


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's text. Returns the status to exit with.

    Raises:
        StarError: a folder is missing, is not laid out like LibriSpeech, or --valid-speakers leaves none to train on.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--split", nargs="+", choices=[*TRAIN_FOLDERS, "dev"], default=None, help="default: all there")
    parser.add_argument(
        "--valid-speakers", type=int, default=0, metavar="N", help="hold out the last N speakers instead of dev"
    )
    options = parser.parse_args(arguments)
    check_folder(options.root)
    folders = _choose(options.root, options.split, options.valid_speakers)
    every_folder = sorted({folder for of_split in folders.values() for folder in of_split})
    found = {folder: _find(options.root, folder) for folder in every_folder}
    splits = {split: [path for folder in names for path in found[folder]] for split, names in folders.items()}
    if options.valid_speakers:
        splits = _hold_out(splits, options.valid_speakers)
    paths = sorted({path for of_split in splits.values() for path in of_split}, key=_order)
    num_samples, problems = read_lengths(options.root, paths, options.headers_only)
    return write_manifests(options.root, options.out, splits, num_samples, problems, options.skip_bad)


def _choose(root: Path, wanted: list[str] | None, valid_speakers: int) -> dict[str, list[str]]:
    """Manifest name to folders."""
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
    if not chosen:
        raise StarError(f"{root}: holds neither train-clean-100 nor dev-clean; name the folder LibriSpeech unpacks to")
    return chosen


def _find(root: Path, folder: str) -> list[str]:
    paths = [f"{folder}/{path}" for path in find_audio(root / folder, ["flac"])]
    for path in paths:
        if path.count("/") != 3:
            raise StarError(f"{root / path}: is not in <split>/<speaker>/<chapter>/; if meant so, use audio_folder.py")
    return sorted(paths, key=_order)


def _order(path: str) -> tuple:
    """Sorts paths with their speaker and chapter folders by number: 26 before 103."""
    folder, speaker, chapter, name = path.split("/")
    return folder, _number(speaker), _number(chapter), name


def _number(text: str) -> tuple[bool, int, str]:
    """Numbers by value, before anything else by its letters."""
    return not text.isdecimal(), int(text) if text.isdecimal() else 0, text


def _hold_out(splits: dict[str, list[str]], num_speakers: int) -> dict[str, list[str]]:
    smallest = next(iter(splits.values()))
    speakers = list(dict.fromkeys(speaker_of(path) for path in sorted(smallest, key=lambda path: _order(path)[1])))
    if num_speakers >= len(speakers):
        raise StarError(f"--valid-speakers {num_speakers}: must be below {len(speakers)}, the number of speakers there")
    held_out = speakers[-num_speakers:]
    divided = {split: split_by_speaker(paths, held_out)[0] for split, paths in splits.items()}
    return {**divided, "valid": split_by_speaker(smallest, held_out)[1]}


if __name__ == "__main__":
    run_script(main)
